"""Functions with derivatives of their own see what JAX would show them: the right operands, and arrays for zeros."""

from collections.abc import Callable

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import sparse

import jaxdp
from tests.drawn import normal

DIM, BATCH = 4, 3


W, X = normal(0, DIM, DIM) / 4, normal(1, BATCH, DIM)


def check(loss: Callable, params: jax.Array, batch: jax.Array, methods: tuple[str, ...] = ("ghost", "fused")) -> None:
    grads = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(params, batch)
    norms = jnp.sum(jnp.square(grads).reshape(batch.shape[0], -1), axis=1)
    weights = lambda squared: 1 / (1 + squared)
    expected = jnp.tensordot(weights(norms), grads, axes=1)
    for method in methods:
        run = lambda p, x, m=method: jaxdp.per_example_grad(loss, method=m)(p, x).clipped_sum_and_norms(weights)
        total, found = jax.jit(run)(params, batch)
        assert jnp.allclose(found[:, 0], norms, rtol=1e-4)
        assert jnp.allclose(total, expected, rtol=1e-4, atol=1e-5 * float(jnp.max(jnp.abs(expected))))


@jax.custom_vjp
def _flagged(w: jax.Array, x: jax.Array, flag: bool | float) -> jax.Array:
    return jnp.where(flag, jnp.tanh(w @ x), w @ x)


def _flagged_back(saved: tuple, ct: jax.Array) -> tuple:
    w, x, _ = saved
    return (*jax.vjp(lambda w, x: jnp.tanh(w @ x), w, x)[1](ct), None)


_flagged.defvjp(lambda w, x, flag: (_flagged(w, x, flag), (w, x, flag)), _flagged_back)


@pytest.mark.quick
@pytest.mark.parametrize("literal", [True, 1, 2.0, 1j.imag])
def test_a_literal_beside_a_weight(literal: bool | float) -> None:
    check(lambda w, x: jnp.sum(jnp.square(_flagged(w, x, literal))), W, X, ("fused",))


@jax.custom_vjp
def _strict(w: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.tanh(w @ x) * t


def _strict_forward(w, x, t):
    if x.perturbed or t.perturbed:
        raise AssertionError("a derivative by data or by a constant is asked for")
    return _strict(w.value, x.value, t.value), (w.value, x.value, t.value)


def _strict_back(saved, ct):
    w, x, t = saved
    return jax.vjp(lambda w: jnp.tanh(w @ x) * t, w)[1](ct)[0], jnp.zeros_like(x), jnp.zeros_like(t)


_strict.defvjp(_strict_forward, _strict_back, symbolic_zeros=True)


def _in_a_scan(w: jax.Array, x: jax.Array) -> jax.Array:
    """The time is carried, and so are a hidden state that depends on the parameter and data that do not."""

    def step(carry: tuple, _: None) -> tuple:
        hidden, (time, data) = carry
        return (hidden + _strict(w, data, time), jax.jit(lambda t, y: (t + 0.5, 0.5 * y))(time, data)), None

    (hidden, _), _ = lax.scan(step, (jnp.zeros(DIM), (jnp.float32(1), x)), None, length=3)
    return jnp.sum(jnp.square(hidden))


def _in_a_scan_over_weights(w: jax.Array, x: jax.Array) -> jax.Array:
    """Clipped in the loop's own backward pass, if each layer is."""
    step = lambda h, layer: (h + _strict(layer, x, jnp.float32(2)), None)
    return jnp.sum(jnp.square(lax.scan(step, jnp.zeros(DIM), w)[0]))


def _in_a_checkpoint(w: jax.Array, x: jax.Array) -> jax.Array:
    inner = jax.checkpoint(lambda w, x: (_strict(w, x, jnp.float32(2)), jnp.tanh(x)))
    y, data = inner(w, x)
    return jnp.sum(jnp.square(y + _strict(w, data, jnp.float32(1))))


def _in_a_branch(w: jax.Array, x: jax.Array) -> jax.Array:
    branch = lambda: (_strict(w, x, jnp.float32(2)), 2 * x)
    y, data = lax.cond(jnp.float32(1) > 0, branch, branch)
    return jnp.sum(jnp.square(y + _strict(w, data, jnp.float32(1))))


@pytest.mark.parametrize(
    "loss",
    [lambda w, x: jnp.sum(_strict(w, x, jnp.float32(2)) ** 2), _in_a_scan, _in_a_checkpoint, _in_a_branch],
    ids=["plain", "scan", "checkpoint", "branch"],
)
def test_nothing_is_differentiated_by_data_or_constants(loss: Callable) -> None:
    check(loss, W, X)


def test_nor_in_a_loop_that_clips_each_layer() -> None:
    layers = normal(2, 3, DIM, DIM) / 2
    grads = jax.vmap(jax.grad(_in_a_scan_over_weights), in_axes=(None, 0))(layers, X)
    norms = jnp.sum(jnp.square(grads), axis=(2, 3))
    found = jax.jit(
        lambda p, x: jaxdp.per_example_grad(_in_a_scan_over_weights)(p, x).clipped_sum_and_norms(
            lambda squared: 1 / (1 + squared), "layer"
        )
    )(layers, X)
    assert jnp.allclose(found[1], norms, rtol=1e-4)
    assert jnp.allclose(found[0], jnp.einsum("bl,blij->lij", 1 / (1 + norms), grads), rtol=1e-4, atol=1e-6)


def test_what_depends_on_a_parameter_is_differentiated_by() -> None:
    """The function's own check sees it, as it would in JAX."""
    loss = lambda w, x: jnp.sum(_strict(w, jnp.tanh(w @ x), jnp.float32(1)))
    with pytest.raises(AssertionError, match="a derivative by data"):
        jaxdp.per_example_grad(loss)(W, X).squared_norms()


def _positive(w: jax.Array) -> Callable:
    return lambda v: (w @ w.T + jnp.eye(DIM)) @ v


def _root(w: jax.Array, x: jax.Array) -> jax.Array:
    newton = lambda f, z: lax.fori_loop(0, 12, lambda i, z: z - f(z) / (3 * z**2 + 1), z)
    solve = lambda g, y: jnp.linalg.solve(jax.jacobian(g)(y), y)
    return jnp.sum(lax.custom_root(lambda z: z**3 + z - x * w[0], jnp.zeros(DIM), newton, solve))


def _pytree_solve(w: jax.Array, x: jax.Array) -> jax.Array:
    matvec = lambda v: {"a": _positive(w)(v["a"]), "b": 2 * v["b"] + v["a"]}
    solved = lax.custom_linear_solve(
        matvec, {"a": x, "b": w[0]}, lambda mv, b: _direct(w, b), transpose_solve=lambda mv, b: _direct_transposed(w, b)
    )
    return jnp.sum(jnp.square(solved["b"]))


def _direct(w: jax.Array, b: dict) -> dict:
    a = jnp.linalg.solve(w @ w.T + jnp.eye(DIM), b["a"])
    return {"a": a, "b": (b["b"] - a) / 2}


def _direct_transposed(w: jax.Array, b: dict) -> dict:
    right = b["b"] / 2
    return {"a": jnp.linalg.solve(w @ w.T + jnp.eye(DIM), b["a"] - right), "b": right}


SOLVES = {
    "cg": lambda w, x: jnp.sum(jax.scipy.sparse.linalg.cg(_positive(w), x)[0] ** 2),
    "cg of constants": lambda w, x: jnp.sum(jax.scipy.sparse.linalg.cg(_positive(w), jnp.ones(DIM))[0] * x),
    "cg of both": lambda w, x: jnp.sum(jax.scipy.sparse.linalg.cg(_positive(w), x + w[0])[0] ** 2),
    "gmres": lambda w, x: jnp.sum(jax.scipy.sparse.linalg.gmres(_positive(w), x, maxiter=3)[0] ** 2),
    "root": _root,
    "pytree": _pytree_solve,
    "dense": lambda w, x: jnp.sum(jnp.linalg.solve(w + 2 * jnp.eye(DIM), x) ** 2),
}


@pytest.mark.parametrize("name", SOLVES)
def test_linear_solves(name: str) -> None:
    check(SOLVES[name], W, X)


PATTERN = jnp.array([[0, 1], [0, 3], [2, 0], [3, 3], [5, 7], [5, 2], [4, 4]])


def matrix(p: jax.Array) -> sparse.BCOO:
    return sparse.BCOO((p, PATTERN), shape=(6, 8))


SPARSE = {
    "product": lambda p, x: jnp.sum(jnp.tanh(matrix(p) @ x) ** 2),
    "transposed, of constants": lambda p, x: jnp.sum((matrix(p).T @ jnp.ones(6)) * x),
    "transposed": lambda p, x: jnp.sum(jnp.square(matrix(p).T @ (matrix(p) @ x))),
    "todense": lambda p, x: jnp.sum(jnp.square(matrix(p).todense() @ x)),
    "sum": lambda p, x: jnp.sum(matrix(p).sum(axis=0).todense() * x),
    "reshaped": lambda p, x: jnp.sum(jnp.square(matrix(p).reshape(3, 16)[:, :8].todense() @ x)),
}


@pytest.mark.parametrize("name", SPARSE)
def test_sparse_matrices(name: str) -> None:
    check(SPARSE[name], normal(3, len(PATTERN)), normal(4, BATCH, 8))


@pytest.mark.parametrize("kind", ["checkpointed", "bounded"])
def test_loops_of_equinox(kind: str) -> None:
    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        step = lambda carry: (jnp.tanh(w @ carry[0]), carry[1] + 1)
        h, _ = eqxi.while_loop(lambda carry: carry[1] < 5, step, (x, jnp.int32(0)), max_steps=16, kind=kind)
        return jnp.sum(jnp.square(h))

    check(loss, W, X)
