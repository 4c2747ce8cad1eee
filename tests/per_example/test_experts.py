"""Mixtures of experts by `ragged_dot`, which JAX cannot batch by itself: exact against a loop over examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxdp
from jaxdp.per_example.tracing import _ragged
from tests.drawn import normal

BATCH, SEQ, DIM, HIDDEN, EXPERTS = 5, 7, 4, 6, 3
METHODS = ("materialize", "ghost", "bookkeeping", "fused")
weigh = lambda squared: jnp.minimum(1.0, 0.5 / jnp.sqrt(squared))


PARAMS = {
    "gate": normal(0, DIM, EXPERTS),
    "up": normal(1, EXPERTS, DIM, HIDDEN) / 2,
    "down": normal(2, EXPERTS, HIDDEN, DIM) / 2,
}
BATCH_OF_TOKENS = normal(3, BATCH, SEQ, DIM)


def route(gate: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens sorted by their expert, the experts' numbers of tokens, and each token's weight."""
    weights = jax.nn.softmax(x @ gate)
    expert = jnp.argmax(weights, axis=-1)
    order = jnp.argsort(expert)
    sizes = jnp.bincount(expert, length=EXPERTS).astype(jnp.int32)
    return order, sizes, jnp.take_along_axis(weights, expert[:, None], axis=1)[order]


def layer(p: dict, x: jax.Array, dropped: int = 0) -> jax.Array:
    order, sizes, weight = route(p["gate"], x)
    # The last rows are in no group where an expert takes fewer tokens than were sent to it.
    sizes = sizes.at[-1].add(-jnp.minimum(sizes[-1], dropped))
    h = jnp.tanh(lax.ragged_dot(x[order], p["up"], sizes))
    y = weight * lax.ragged_dot(h, p["down"], sizes)
    return jnp.zeros_like(x).at[order].set(y)


def once(p: dict, x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(layer(p, x)))


def dropping(p: dict, x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(layer(p, x, dropped=1)))


def twice(p: dict, x: jax.Array) -> jax.Array:
    """The same experts at two places: cross terms count."""
    return jnp.sum(jnp.square(layer(p, x + layer(p, x))))


def in_a_scan(p: dict, x: jax.Array) -> jax.Array:
    """Layers of experts, checkpointed."""
    step = jax.checkpoint(lambda h, q: (h + layer(q, h), None))
    return jnp.sum(jnp.square(lax.scan(step, x, jax.tree.map(lambda w: jnp.stack([w, 0.5 * w]), p))[0]))


def scanned_layers(p: dict, x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(lax.scan(lambda h, q: (h + layer(q, h), None), x, p)[0]))


def in_a_transposed_product(p: dict, x: jax.Array) -> jax.Array:
    """The experts' matrices are contracted along their last axis."""
    order, sizes, weight = route(p["gate"], x)
    numbers = lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), (0,), (0,))
    y = lax.ragged_dot_general(x[order], p["down"], sizes, numbers)
    return jnp.sum(jnp.square(weight * y)) + jnp.sum(jnp.square(y @ p["up"][0].T))


STACKED = jax.tree.map(lambda w: jnp.stack([w, -0.5 * w]), PARAMS)
LOSSES = {
    "once": (once, PARAMS),
    "dropping": (dropping, PARAMS),
    "twice": (twice, PARAMS),
    "in a scan": (in_a_scan, PARAMS),
    "scanned layers": (scanned_layers, STACKED),
    "transposed": (in_a_transposed_product, PARAMS),
}


def by_loop(loss, params) -> dict[str, np.ndarray]:
    grad = jax.jit(jax.grad(loss))
    grads = [grad(params, x) for x in BATCH_OF_TOKENS]
    return {name: np.stack([np.asarray(g[name]) for g in grads]) for name in params}


@pytest.mark.parametrize("name", LOSSES)
def test_every_method_equals_a_loop_over_examples(name: str) -> None:
    loss, params = LOSSES[name]
    grads = by_loop(loss, params)
    squares = {k: np.square(g).reshape(BATCH, -1).sum(axis=1) for k, g in grads.items()}
    total = sum(squares.values())
    # A scan compiles long, and has nothing that depends on how its steps' uses are reported but in these.
    for method in METHODS if name in ("once", "dropping") else ("ghost", "fused"):
        spec = "param" if method == "bookkeeping" else "all"
        options = {"microbatch_size": 2} if method == "ghost" else {}
        run = lambda p, x, m=method, s=spec, o=options: jaxdp.per_example_grad(loss, method=m)(
            p, x, **o
        ).clipped_sum_and_norms(weigh, s)
        found, norms = jax.jit(run)(params, BATCH_OF_TOKENS)
        np.testing.assert_allclose(np.sum(norms, axis=1), total, rtol=1e-4)
        for k, g in grads.items():
            weights = weigh(squares[k] if spec == "param" else total)
            np.testing.assert_allclose(found[k], np.tensordot(weights, g, axes=1), rtol=1e-4, atol=1e-5)


def test_losses_have_their_values() -> None:
    values = jaxdp.per_example_grad(once)(PARAMS, BATCH_OF_TOKENS).values
    np.testing.assert_allclose(values, [once(PARAMS, x) for x in BATCH_OF_TOKENS], rtol=1e-5)


def test_one_product_for_each_example_and_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    """What accelerators do where results differ between examples, which would be slow on a CPU."""
    monkeypatch.setattr(_ragged, "_loops", lambda: False)
    for loss in (dropping, in_a_transposed_product):
        grads = by_loop(loss, PARAMS)
        found = jax.vmap(jax.grad(loss), in_axes=(None, 0))(PARAMS, BATCH_OF_TOKENS)
        copies = jax.tree.map(lambda w: jnp.stack([w] * BATCH), PARAMS)
        own = jax.vmap(jax.grad(loss))(copies, BATCH_OF_TOKENS)
        for k, g in grads.items():
            np.testing.assert_allclose(found[k], g, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(own[k], g, rtol=1e-4, atol=1e-5)


def test_experts_need_no_gradients_of_their_size_per_example() -> None:
    """Norms come from the rows of each expert, and the sum is one product: compiled, never run."""
    experts, width = 8, 96
    shapes = {"gate": (width, experts), "up": (experts, width, width), "down": (experts, width, width)}
    params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}

    def loss(p: dict, x: jax.Array) -> jax.Array:
        expert = jnp.argmax(x @ p["gate"], axis=-1)
        order, sizes = jnp.argsort(expert), jnp.bincount(expert, length=experts).astype(jnp.int32)
        h = jnp.tanh(lax.ragged_dot(x[order], p["up"], sizes))
        return jnp.sum(jnp.square(lax.ragged_dot(h, p["down"], sizes))) + jnp.sum(jax.nn.softmax(x @ p["gate"])[:, 0])

    size = 32
    batch = jax.ShapeDtypeStruct((size, 4, width), jnp.float32)
    run = lambda p, x: jaxdp.per_example_grad(loss)(p, x).clipped_sum(weigh)
    temporary = jax.jit(run).lower(params, batch).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 0.35 * 4 * size * 2 * experts * width**2
    assert "own gradient" not in str(jaxdp.explain(loss, params, batch))


def test_capacity_and_one_hot_dispatch_keep_working() -> None:
    """Experts of a fixed capacity by products with one-hot matrices; a token beyond it is dropped."""
    capacity = 2

    def loss(p: dict, x: jax.Array) -> jax.Array:
        weights = jax.nn.softmax(x @ p["gate"])
        chosen = jax.nn.one_hot(jnp.argmax(weights, axis=-1), EXPERTS)
        place = jnp.cumsum(chosen, axis=0) * chosen - 1
        dispatch = jax.nn.one_hot(place.astype(jnp.int32), capacity) * chosen[..., None]
        h = jnp.tanh(jnp.einsum("tec,td,edf->ecf", dispatch, x, p["up"]))
        return jnp.sum(jnp.square(jnp.einsum("tec,te,ecf,efd->td", dispatch, weights, h, p["down"])))

    grads = by_loop(loss, PARAMS)
    total = sum(np.square(g).reshape(BATCH, -1).sum(axis=1) for g in grads.values())
    for method in METHODS:
        found = jax.jit(lambda p, x, m=method: jaxdp.per_example_grad(loss, method=m)(p, x).squared_norms())
        np.testing.assert_allclose(found(PARAMS, BATCH_OF_TOKENS), total, rtol=1e-4)
