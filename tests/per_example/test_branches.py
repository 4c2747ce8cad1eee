"""Branches on an example's value differentiate as `vmap(grad)` does: what is not taken leaves no trace."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxdp
from tests.per_example.model_zoo import normal

METHODS = ("ghost", "bookkeeping", "fused", "materialize")
X = jnp.array([2.0, -1.0, 0.0, 0.5])


def by_hand(grads: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Squared norms, and the sum of what is finite clipped to 1."""
    norms = sum(np.square(g).reshape(g.shape[0], -1).sum(axis=1) for g in grads)
    weights = np.where(np.isfinite(norms), 1 / np.sqrt(np.maximum(np.where(np.isfinite(norms), norms, 1), 1)), 0)
    keep = lambda g: np.where(np.isfinite(norms).reshape(-1, *(1,) * (g.ndim - 1)), g, 0)
    return norms, [np.einsum("b,b...->...", weights, keep(g)) for g in grads]


def compare(loss, params, method, x=X) -> np.ndarray:
    grads = [np.asarray(g) for g in jax.tree.leaves(jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, x))]
    norms, total = by_hand(grads)

    finite = np.isfinite(norms)
    weights = np.where(finite, np.linspace(1.0, 2.0, len(norms)), 0.0)

    @jax.jit
    def run(params, x):
        weight = lambda squared: 1 / jnp.sqrt(jnp.maximum(squared, 1.0))
        lazy = jaxdp.per_example_grad(loss, method=method)(params, x)
        return *lazy.clipped_sum_and_norms(weight), lazy.weighted_sum(jnp.asarray(weights, jnp.float32))

    found, found_norms, weighted = run(params, x)
    np.testing.assert_allclose(np.asarray(found_norms)[finite, 0], norms[finite], rtol=1e-5, atol=1e-9)
    assert not np.any(np.isfinite(np.asarray(found_norms)[~finite]))
    for a, b in zip(jax.tree.leaves(found), total, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for a, g in zip(jax.tree.leaves(weighted), grads, strict=True):
        np.testing.assert_allclose(a, np.einsum("b,b...->...", weights[finite], g[finite]), rtol=1e-5, atol=1e-5)
    return finite


@pytest.mark.quick
@pytest.mark.parametrize("method", METHODS)
def test_a_logarithm_that_is_not_taken(method: str) -> None:
    loss = lambda w, x: lax.cond(x > 0, lambda: w[0] * jnp.log(x), lambda: w[1] * x + w[0]) ** 2
    assert np.all(compare(loss, jnp.array([0.5, -1.0]), method))


W, V = normal(1, 3, 3), normal(2, 2, 3, 3)
DN = ("NHWC", "HWIO", "NHWC")


def _convolved(w: jax.Array, x: jax.Array) -> jax.Array:
    kernel = jnp.broadcast_to(w[:2, :2, None, None], (2, 2, 1, 1))
    return jnp.sum(
        jnp.tanh(
            lax.conv_general_dilated(jnp.ones((1, 3, 3, 1)) * jnp.log(x), kernel, (1, 1), "SAME", dimension_numbers=DN)
        )
    )


def _rows(w: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.sum(w[jnp.array([0, 1, 1])] * jnp.log(x))


def _scanned(w: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.sum(lax.scan(lambda h, _: (jnp.tanh(h @ w) * jnp.log(x), None), jnp.ones(3), None, length=2)[0])


ONE_SIDE = {
    "elementwise": lambda w, x: jnp.sum(w * jnp.log(x)),
    "a product": lambda w, x: jnp.sum((jnp.ones(3) * jnp.log(x)) @ w),
    "a product, then infinity": lambda w, x: jnp.sum(jnp.sqrt(jnp.tanh(jnp.ones((4, 3)) @ w) * 0.0 + x)),
    "a division by the weight": lambda w, x: jnp.sum(jnp.log(x) / w),
    "a division of the weight": lambda w, x: jnp.sum(w / jnp.sqrt(x)),
    "rows of a table": _rows,
    "a convolution": _convolved,
    "a loop": _scanned,
    "a checkpoint": lambda w, x: jax.checkpoint(lambda w: jnp.sum(jnp.log(x) * jnp.tanh(w @ w)))(w),
    "the weight itself": lambda w, x: lax.cond(x > 1, lambda: w, lambda: w * jnp.log(x))[0, 0],
    "a nested branch": lambda w, x: lax.switch(
        (2 * x).astype(jnp.int32), [lambda: w[0, 0] * jnp.sqrt(x - 1), lambda: w[0, 1] * x, lambda: w[1, 1] / (x - 0.5)]
    ),
    "numbers of the example only": lambda w, x: jnp.log(x) * w[0, 0] + jnp.log(x) ** 2,
}


@pytest.mark.parametrize("kind", ONE_SIDE)
def test_what_is_not_taken_leaves_no_trace(kind: str) -> None:
    """Of a weight that both sides use, and of one that is used nowhere else."""
    loss = lambda p, x: lax.cond(
        x > 0,
        lambda: ONE_SIDE[kind](p["both"], x) + ONE_SIDE[kind](p["one"], x),
        lambda: jnp.sum(p["both"]) * x + p["both"][0, 0],
    )
    assert np.all(compare(loss, {"both": W, "one": W + 0.1}, "fused"))


@pytest.mark.parametrize("method", ["ghost", "bookkeeping", "materialize"])
def test_a_function_of_parameters_without_a_derivative(method: str) -> None:
    """sqrt'(0) is infinite: for nobody if nobody takes the branch, and else for who takes it."""
    loss = lambda w, x: lax.cond(x > 1, lambda: jnp.sum(jnp.sqrt(w)) * x, lambda: jnp.sum(w) * x + w[0])
    params = jnp.array([0.0, 1.0])
    assert compare(loss, params, method).tolist() == [False, True, True, True]
    assert np.all(compare(loss, params, method, jnp.minimum(X, 1.0)))


@pytest.mark.parametrize("method", ["fused", "bookkeeping", "ghost"])
def test_layers_that_are_clipped_one_by_one_inside_a_branch(method: str) -> None:
    def loss(p, x):
        layer = lambda h, w: (jnp.tanh(h @ w) * jnp.log(x), None)
        return lax.cond(x > 0, lambda: jnp.sum(lax.scan(layer, jnp.ones(3), p["w"])[0]), lambda: jnp.sum(p["b"] * x))

    params = {"b": normal(4, 3), "w": V}
    grads, of_b = (np.asarray(jax.vmap(jax.grad(loss), (None, 0))(params, X)[name]) for name in ("w", "b"))
    norms = np.square(grads).sum(axis=(2, 3))
    expected = np.einsum("bl...,bl->l...", grads, np.minimum(1, 1 / np.sqrt(np.maximum(norms, 1e-9))))
    lazy = jaxdp.per_example_grad(loss, method=method)(params, X)
    assert len(lazy.groups("param")) == 3
    found = jax.jit(lambda: lazy.clipped_sum(lambda s: 1 / jnp.sqrt(jnp.maximum(s, 1.0)), "param"))()
    np.testing.assert_allclose(found["w"], expected, rtol=1e-5, atol=1e-6)
    # Whoever does not take the branch is no less in the sum for it.
    np.testing.assert_allclose(found["b"], of_b.T @ np.minimum(1, 1 / np.linalg.norm(of_b + 1e-9, axis=1)), rtol=1e-5)


@pytest.mark.parametrize("kind", ["map", "map in batches", "vmap"])
def test_branches_on_the_parts_of_an_example(kind: str) -> None:
    part = lambda w: lambda t: lax.cond(t > 0, lambda: w[0, 0] * jnp.log(t), lambda: w[0, 1] * t)
    over = {
        "map": lambda f, x: lax.map(f, x),
        "map in batches": lambda f, x: lax.map(f, x, batch_size=2),
        "vmap": lambda f, x: jax.vmap(f)(x),
    }[kind]
    assert np.all(compare(lambda w, x: jnp.sum(over(part(w), x)), W, "fused", normal(3, 4, 5)))


def test_an_unguarded_where_stays_what_it_is() -> None:
    """`where` computes both sides, and `vmap(grad)` has NaN, too: such examples are left out, not counted as zero."""
    loss = lambda w, x: jnp.sum(jnp.where(x > 0, jnp.log(x) * w[0, 0], w[0, 1] * x))
    x = jnp.abs(normal(3, 4, 5)).at[1, 2].set(-1.0).at[1, 3].set(0.0)
    assert compare(loss, W, "ghost", x).tolist() == [True, False, True, True]
