"""What is no error and never meant is told once, by name; what is meant is not told."""

import warnings
from collections.abc import Callable

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax

import jaxdp
from tests.drawn import normal

X, W = normal(0, 4, 5, 3), jnp.ones((3, 2))
KEYS = jax.random.split(jax.random.key(1), 4)
TYPED, RAW = jax.random.key(2), jax.random.PRNGKey(2)


def dropped(x: jax.Array, key: jax.Array) -> jax.Array:
    return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, jnp.zeros_like(x))


def shared(key: Callable) -> Callable:
    return lambda p, e: jnp.sum(jnp.square(dropped(e[0] @ p, key(e))))


def carried(p: jax.Array, e: tuple) -> jax.Array:
    def step(carry: tuple, _: None) -> tuple:
        h, key = carry
        key, now = jax.random.split(key)
        return (dropped(h, now), key), None

    return jnp.sum(jnp.square(lax.scan(step, (e[0] @ p, e[1]), None, length=2)[0][0]))


@pytest.mark.parametrize(
    "key",
    [
        lambda e: jax.random.key(0),
        lambda e: TYPED,
        lambda e: jax.random.split(RAW)[1],
        lambda e: jax.random.fold_in(TYPED, 3),
        lambda e: jax.jit(jax.random.wrap_key_data)(RAW),
    ],
)
def test_a_key_for_all_examples(key: Callable) -> None:
    with pytest.warns(UserWarning, match="from a key that does not come from the example.*carry a key per example"):
        jaxdp.per_example_grad(shared(key))(W, (X, KEYS)).squared_norms()


def test_a_key_for_all_examples_inside_loops_and_branches() -> None:
    def scanned(p: jax.Array, e: tuple) -> jax.Array:
        step = jax.checkpoint(lambda h, key: (dropped(h, key), None))
        return jnp.sum(jnp.square(lax.scan(step, e[0] @ p, jax.random.split(TYPED, 2))[0]))

    def branched(p: jax.Array, e: tuple) -> jax.Array:
        h = e[0] @ p
        return jnp.sum(jnp.square(lax.cond(jnp.float32(1) > 0, lambda: dropped(h, TYPED), lambda: h)))

    for loss in (scanned, branched):
        with pytest.warns(UserWarning, match="does not come from the example"):
            jaxdp.per_example_grad(loss)(W, (X, KEYS)).squared_norms()


def test_keys_of_the_examples_are_not_told_of() -> None:
    by_place = lambda p, e: jnp.sum(jnp.square(dropped(e[0] @ p, jax.random.fold_in(TYPED, e[1]))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jaxdp.per_example_grad(shared(lambda e: e[1]))(W, (X, KEYS)).squared_norms()
        jaxdp.per_example_grad(carried)(W, (X, KEYS)).squared_norms()
        jaxdp.per_example_grad(by_place)(W, (X, jnp.arange(4))).squared_norms()


def _nnx() -> tuple:
    graph, params, rest = nnx.split(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), nnx.Param, ...)
    apply = lambda p, x, train: nnx.merge(graph, p, rest, copy=True)(x, use_running_average=not train)
    return apply, params, "flax"


def _linen() -> tuple:
    layer = nn.BatchNorm()
    variables = layer.init(jax.random.key(0), X[0], use_running_average=True)
    both = lambda p: {**variables, "params": p}

    def apply(p: dict, x: jax.Array, train: bool) -> jax.Array:
        if not train:
            return layer.apply(both(p), x, use_running_average=True)
        return layer.apply(both(p), x, use_running_average=False, mutable=["batch_stats"])[0]

    return apply, variables["params"], "flax"


def _haiku() -> tuple:
    model = hk.without_apply_rng(hk.transform_with_state(lambda x, train: hk.BatchNorm(True, True, 0.9)(x, train)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with jax.numpy_dtype_promotion("standard"):
            params, state = model.init(jax.random.key(0), X[0], True)

    def apply(p: dict, x: jax.Array, train: bool) -> jax.Array:
        # The library's own layer mixes dtypes.
        with jax.numpy_dtype_promotion("standard"):
            return model.apply(p, state, x, train)[0]

    return apply, params, "haiku"


@pytest.mark.parametrize("library", [_nnx, _linen, _haiku])
def test_statistics_of_a_batch_of_one_example(library: Callable) -> None:
    apply, params, name = library()
    call = {cls: cls.__call__ for cls in (nnx.BatchNorm, nn.BatchNorm, hk.BatchNorm)}
    with pytest.warns(UserWarning, match=f"{name}'s BatchNorm is in training mode inside the loss.*GroupNorm"):
        jaxdp.per_example_grad(lambda p, x: jnp.sum(apply(p, x, True) ** 3))(params, X).squared_norms()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jaxdp.per_example_grad(lambda p, x: jnp.sum(apply(p, x, False) ** 3))(params, X).squared_norms()
    assert all(cls.__call__ is was for cls, was in call.items())
