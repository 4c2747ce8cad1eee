"""Zeroth-order training: one clipped number per example and direction, and nothing of the parameters' size for each."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp import transforms
from tests.transforms.test_grape import KEY, NOISE, flat, normal, private, watching

PARAMS = {"w": normal(1, 6, 5), "b": normal(2, 5)}


def loss(params: Any, example: Any) -> jax.Array:
    """Quadratic in the parameters, so that a central difference is the derivative."""
    return example["factor"] * jnp.sum(jnp.square(example["x"] @ params["w"] + params["b"]))


def batch_of(factor: Any) -> dict[str, jax.Array]:
    return {"x": normal(3, len(factor), 6), "factor": jnp.asarray(factor, jnp.float32)}


BATCH = batch_of([0.1, 1.0, -2.0, 4.0])


def lazy(batch: Any = BATCH, **options: Any) -> jaxdp.PerExampleGrads:
    return jaxdp.per_example_grad(loss)(PARAMS, batch, **options)


def slopes() -> np.ndarray:
    """What the chain inside is given, `[batch, directions]`."""
    inner, seen = watching(private())
    tx = transforms.zeroth_order(inner, key=KEY, directions=2, scale=1e-1)

    def run():
        tx.update(lazy(), tx.init(PARAMS))
        return seen[0].materialize()[..., 0]

    return np.asarray(jax.jit(run)())


def test_an_update_is_the_clipped_slopes_along_the_directions() -> None:
    """Along each direction the update is what the clipped derivatives there say."""
    tx = transforms.zeroth_order(private(0.0, 5.0), key=KEY, directions=2, scale=1e-1)
    found = jax.jit(lambda s: tx.update(lazy(microbatch_size=2), s)[0])(tx.init(PARAMS))
    # One direction by itself: an unclipped sum of one example brings the direction out, up to its length.
    each = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(PARAMS, BATCH)
    rows = np.concatenate([np.asarray(each[n], np.float64).reshape(4, -1) for n in ("b", "w")], axis=1)
    d = slopes()
    weights = np.minimum(1.0, 5.0 / np.linalg.norm(d, axis=1))
    expected = np.sum(weights[:, None] * d, axis=0)
    # found = sum_j c_j z_j / 2, and rows @ z_j = d_j: the derivatives along the update follow from both.
    z = directions_of()
    np.testing.assert_allclose(rows @ z.T, d, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(flat(found), expected @ z / 2, rtol=1e-4, atol=1e-4)


@functools.cache
def directions_of(step: int = 0, directions: int = 2) -> np.ndarray:
    """The directions themselves: what a chain that returns a unit vector brings back."""

    @jax.jit
    def run(unit, count):
        inner = optax.GradientTransformation(lambda p: optax.EmptyState(), lambda u, s, p=None: (unit, s))
        tx = transforms.zeroth_order(inner, key=KEY, directions=directions)
        return tx.update(lazy(), tx.init(PARAMS)._replace(count=count))[0]

    units = directions * np.eye(directions, dtype=np.float32)[..., None]
    return np.stack([flat(run(unit, jnp.int32(step))) for unit in units])


@pytest.mark.quick
def test_directions_are_new_at_every_step_and_standard_normal() -> None:
    first, again, later = directions_of(), directions_of(), directions_of(1)
    assert np.array_equal(first, again)
    assert len(np.unique(np.concatenate([first, later]))) == 4 * 35
    assert 0.7 < np.std(np.concatenate([first, later])) < 1.3


def test_one_example_moves_the_clipped_slopes_by_no_more_than_the_clipping_norm() -> None:
    tx = transforms.zeroth_order(private(0.0, 0.5), key=KEY, directions=3)
    batch = batch_of([1e-3, 1e4, -1e6, float("nan")])
    z = directions_of(directions=3)

    @jax.jit
    def run(mask):
        return tx.update(lazy(batch, mask=mask), tx.init(PARAMS))[0]

    coordinates = lambda mask: np.linalg.lstsq(z.T, 3 * flat(run(mask)), rcond=None)[0]
    everyone = coordinates(jnp.ones(4, bool))
    moved = [np.linalg.norm(everyone - coordinates(jnp.arange(4) != i)) for i in range(4)]
    assert max(moved) <= 0.5 * (1 + 1e-4)
    np.testing.assert_allclose(moved[1:], [0.5, 0.5, 0.0], rtol=1e-3, atol=1e-6)


def test_nothing_of_the_parameters_size_is_made_for_each_example() -> None:
    size, m, n = 6, 48, 80
    tx = transforms.zeroth_order(private(1.0), key=KEY, directions=2)
    params, x = jnp.zeros((m, n)), jnp.zeros((size, m))
    grads = jaxdp.per_example_grad(lambda w, x: jnp.sum(jnp.square(x @ w)))
    step = lambda w, x: tx.update(grads(w, x), tx.init(w))
    hlo = jax.jit(step).lower(params, x).compile().as_text() or ""
    buffers = [[int(k) for k in dims.split(",")] for dims in re.findall(r"f32\[([\d,]+)\]", hlo)]
    assert any(m in b and n in b for b in buffers)
    assert not any(np.prod(b) > m * n for b in buffers)


def test_a_training_loop_compiles_once_and_descends() -> None:
    tx = optax.chain(transforms.zeroth_order(private(0.1, 20.0), key=KEY, directions=4), optax.sgd(2e-3, momentum=0.5))
    batch = batch_of([1.0, 1.0, 1.0, 1.0])
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(1)
        updates, state = tx.update(jaxdp.per_example_grad(loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    value = lambda p: float(jnp.sum(jax.vmap(loss, (None, 0))(p, batch)))
    for _ in range(60):
        params, state = step(params, state)
    assert len(traces) == 1
    assert value(params) < 0.3 * value(PARAMS)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda z: optax.chain(transforms.clip(1.0), z(private())), "needs the loss itself: put it first"),
        (lambda z: z(transforms.clip(1.0)), "inside zeroth_order returned a sum .* private data"),
        (lambda z: z(optax.identity()), "inside zeroth_order returned per-example gradients"),
        (lambda z: z(NOISE), "sensitivity is unknown"),
        (lambda z: z(optax.chain(private(), optax.trace(0.9))), "keeps moments of coordinates"),
        (lambda z: z(optax.chain(private(), optax.add_decayed_weights(0.1))), "reads the parameters"),
        (lambda z: optax.masked(z(private()), {"w": True, "b": False}), "zeroth_order sees only a part"),
    ],
)
def test_a_chain_that_would_make_the_statement_false_is_refused(make: Any, sentence: str) -> None:
    tx = make(lambda inner: transforms.zeroth_order(inner, key=KEY))
    with pytest.raises((TypeError, ValueError), match=sentence):
        jax.eval_shape(lambda: tx.update(lazy(), tx.init(PARAMS), PARAMS)[0])


@pytest.mark.quick
def test_arguments_that_do_not_fit_are_named(without_type_checks: None) -> None:
    for given, sentence in (
        ({"directions": 0}, "directions is 0"),
        ({"scale": 0.0}, "scale is 0"),
        ({"scale": "a"}, "scale is 'a'"),
    ):
        with pytest.raises((ValueError, TypeError), match=sentence):
            transforms.zeroth_order(private(), key=KEY, **given)
    assert transforms.zeroth_order(private(1.5), key=KEY).dp_event() == private(1.5).dp_event()
