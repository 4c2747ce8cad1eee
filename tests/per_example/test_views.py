"""Views of parameters: what only moves entries keeps norms, without a gradient of the parameter per example."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jaxdp
from tests.drawn import normal

BATCH, SEQ = 4, 3
METHODS = ("ghost", "bookkeeping", "fused")
weigh = lambda squared: jnp.minimum(1.0, 1.0 / jnp.sqrt(squared))


def apply(x: jax.Array, w: jax.Array) -> jax.Array:
    """One of several products: their number of columns differs."""
    return jnp.sum(jnp.tanh(x[:, : w.shape[0]] @ w) ** 2)


def split_columns(p: dict, x: jax.Array, d: int) -> jax.Array:
    return sum((i + 1) * apply(x, w) for i, w in enumerate(jnp.split(p["w"], 3, axis=1)))


def split_rows(p: dict, x: jax.Array, d: int) -> jax.Array:
    return sum((i + 1) * apply(x, w) for i, w in enumerate(jnp.split(p["w"], [d // 4, d // 2])))


def split_twice(p: dict, x: jax.Array, d: int) -> jax.Array:
    first, second = jnp.split(p["w"].T, 2)
    return apply(x, first.T) + sum(2 * apply(x, w) for w in jnp.split(second, 2, axis=1))


def slices_with_steps(p: dict, x: jax.Array, d: int) -> jax.Array:
    return apply(x, p["w"][: d // 2 : 2]) + 2 * apply(x, p["w"][d // 2 :])


def reversed_and_rolled(p: dict, x: jax.Array, d: int) -> jax.Array:
    return apply(x, jnp.roll(p["w"], d // 4, axis=0)[::-1])


def dynamic_slices(p: dict, x: jax.Array, d: int) -> jax.Array:
    starts = jnp.array([0, d // 4, 2 * d])
    first, second = (lax.dynamic_slice_in_dim(p["w"], starts[i], d // 4) for i in (0, 1))
    last = lax.dynamic_index_in_dim(p["w"], -1, keepdims=True)
    clamped = lax.dynamic_slice(p["w"], (d // 2, starts[2]), (d // 4, 8))
    return apply(x, first) + 2 * apply(x, second) + 3 * apply(x, last) + 4 * apply(x, clamped)


def public_rows(p: dict, x: jax.Array, d: int) -> jax.Array:
    """Permuted, picked, along either axis, by constants and by what is computed of them."""
    order = (jnp.arange(d // 2) * 3) % (d // 2)
    return apply(x, p["w"][order]) + 2 * apply(x, jnp.take(p["w"], jnp.arange(d // 2, d)[::-1], axis=0))


def public_columns(p: dict, x: jax.Array, d: int) -> jax.Array:
    return apply(x, jnp.take(p["w"], jnp.array([2, 0, 5, 3]), axis=1))


def padded(p: dict, x: jax.Array, d: int) -> jax.Array:
    return apply(x, jnp.pad(p["w"][: d // 2], ((d // 4, d // 4), (0, 2)), constant_values=0.5))


def cropped(p: dict, x: jax.Array, d: int) -> jax.Array:
    return apply(x, lax.pad(p["w"], jnp.float32(0), ((-2, -1, 0), (1, -3, 0))))


def joined_columns(p: dict, x: jax.Array, d: int) -> jax.Array:
    return apply(x, jnp.concatenate([p["w"], 2 * jnp.ones((d, 2)), p["v"]], axis=1))


def joined_rows(p: dict, x: jax.Array, d: int) -> jax.Array:
    both = jnp.concatenate([p["w"][: d // 2], p["v"][: d // 2]]).astype(jnp.float32)
    return jnp.sum(jnp.tanh(jnp.einsum("td,dk->kt", x, both)) ** 2)


def joined_and_transposed(p: dict, x: jax.Array, d: int) -> jax.Array:
    return jnp.sum(jnp.tanh(jnp.concatenate([p["w"], p["v"]], axis=1).T @ x.T) ** 2)


def stacked(p: dict, x: jax.Array, d: int) -> jax.Array:
    """As a batch dimension, and as a free one."""
    both = jnp.stack([p["w"], p["v"]])
    return jnp.sum(jnp.tanh(jnp.einsum("ktd,kde->te", jnp.stack([x, 2 * x]), both)) ** 2)


def stacked_outputs(p: dict, x: jax.Array, d: int) -> jax.Array:
    return jnp.sum(jnp.tanh(jnp.einsum("td,kde->tke", x, jnp.stack([p["w"], p["v"]]))) ** 2)


VIEWS: dict[str, Callable] = {
    f.__name__: f
    for f in (
        split_columns,
        split_rows,
        split_twice,
        slices_with_steps,
        reversed_and_rolled,
        dynamic_slices,
        public_rows,
        public_columns,
        padded,
        cropped,
        joined_columns,
        joined_rows,
        joined_and_transposed,
        stacked,
        stacked_outputs,
    )
}


def loss_of(view: Callable, d: int) -> Callable:
    # Every parameter reaches the loss, also those that a view leaves out.
    return lambda p, x: view(p, x, d) + 1e-3 * jnp.sum(x @ p["u"])


def params_of(view: Callable, d: int, columns: int) -> dict:
    params = {"w": normal(0, d, columns) / d**0.5, "u": normal(1, d)}
    return params | (
        {"v": normal(2, d, columns) / d**0.5} if "joined" in view.__name__ or "stack" in view.__name__ else {}
    )


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_has_the_exact_norm_and_sum(name: str) -> None:
    view, d = VIEWS[name], 16
    loss, params, batch = loss_of(view, d), params_of(view, d, 12), normal(3, BATCH, SEQ, d)
    grads = jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, batch)
    norms = {k: jnp.sum(jnp.square(g).reshape(BATCH, -1), axis=1) for k, g in grads.items()}
    for groups, squared in (("all", dict.fromkeys(grads, sum(norms.values()))), ("param", norms)):
        expected = {k: jnp.tensordot(weigh(squared[k]), g, axes=1) for k, g in grads.items()}
        for method in METHODS if groups == "all" else ("fused",):
            run = lambda p, x, m=method, s=groups: jaxdp.per_example_grad(loss, method=m)(p, x).clipped_sum(weigh, s)
            found = jax.jit(run)(params, batch)
            for k in grads:
                assert jnp.allclose(found[k], expected[k], rtol=1e-4, atol=1e-6), (groups, method, k)


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_needs_no_gradient_of_its_size_per_example(name: str) -> None:
    """Compiled, never run: the factors of a few places are far smaller than a matrix."""
    view, d, columns, size = VIEWS[name], 128, 192, 32
    loss, params = loss_of(view, d), jax.eval_shape(lambda: params_of(view, d, columns))
    batch = jax.ShapeDtypeStruct((size, SEQ, d), jnp.float32)
    run = lambda p, x: jaxdp.per_example_grad(loss)(p, x).clipped_sum(weigh)
    temporary = jax.jit(run).lower(params, batch).compile().memory_analysis().temp_size_in_bytes
    # All gradients together would take this; a matrix and its sum take a thirty-second part each.
    all_gradients = size * d * columns * 4
    assert temporary < 0.35 * all_gradients
    assert "own gradient" not in str(jaxdp.explain(loss, params, batch))


def test_rows_that_are_repeated_or_outside_stay_a_lookup() -> None:
    """Adding up what they repeat is not the transpose of a view that keeps norms."""
    table, batch = normal(0, 6, 4), normal(1, BATCH, SEQ)
    for places in ([0, 1, 1], [5, 2, 9], [-1, 5, 0]):
        loss = lambda p, x, at=places: jnp.sum(jnp.tanh(x @ p[jnp.array(at)]) ** 2)
        grads = jax.vmap(jax.grad(loss), in_axes=(None, 0))(table, batch)
        for method in METHODS:
            found = jaxdp.per_example_grad(loss, method=method)(table, batch).squared_norms()
            assert jnp.allclose(found, jnp.sum(jnp.square(grads), axis=(1, 2)), rtol=1e-5), (places, method)


def test_public_rows_of_a_table_that_examples_look_up_are_lookups_too() -> None:
    """Their rows have a norm together without a gradient of the table's size."""
    table, ids = normal(0, 9, 4), jax.random.randint(jax.random.key(1), (BATCH, SEQ), 0, 9)
    loss = lambda p, i: jnp.sum(jnp.tanh(jnp.concatenate([p[jnp.array([1, 4])], p[i]])) ** 2)
    assert "rows, joint" in str(jaxdp.explain(loss, table, ids))
    grads = jax.vmap(jax.grad(loss), in_axes=(None, 0))(table, ids)
    for method in METHODS:
        found = jaxdp.per_example_grad(loss, method=method)(table, ids).squared_norms()
        assert jnp.allclose(found, jnp.sum(jnp.square(grads), axis=(1, 2)), rtol=1e-5)
