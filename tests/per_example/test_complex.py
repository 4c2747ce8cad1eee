"""Complex values: the norm of real and imaginary parts, the sum as `jax.grad` has it, and no cotangent dropped.

The models of the zoo go through every method and grouping; here is what they leave open.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxdp
from tests.certified import assert_certified
from tests.per_example.model_zoo import complex_normal, normal, promoting

METHODS = ("ghost", "bookkeeping", "fused", "materialize")


def compare(loss, params, batch, method, rtol=1e-5):
    """Norms and a weighted sum against `vmap(grad)`."""
    grads = [np.asarray(g) for g in jax.tree.leaves(jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, batch))]
    size = grads[0].shape[0]
    weights = np.linspace(-1.0, 2.0, size)

    @jax.jit
    def run(params, batch):
        lazy = jaxdp.per_example_grad(loss, method=method)(params, batch)
        return lazy.squared_norms(), lazy.weighted_sum(jnp.asarray(weights, jnp.float32))

    norms, total = run(params, batch)
    expected = sum(np.square(np.abs(g)).reshape(size, -1).sum(axis=1) for g in grads)
    assert_certified(norms, expected)
    for found, g, leaf in zip(jax.tree.leaves(total), grads, jax.tree.leaves(params), strict=True):
        by_hand = np.einsum("b,b...->...", weights, g)
        assert found.dtype == leaf.dtype
        assert np.max(np.abs(found - by_hand)) <= rtol * np.max(np.abs(by_hand))


WEIGHT, INPUTS = normal(1, 5, 4), normal(2, 3, 5)
OF_A_REAL_WEIGHT = {
    "a transform and a real use": lambda w, x: (
        jnp.sum(jnp.abs(jnp.fft.fft(w, axis=0).T @ x) ** 2) + 0.1 * jnp.sum(x @ w)
    ),
    "both parts of a complex number, and a penalty": lambda w, x: (
        jnp.sum(jnp.abs(lax.complex(w, w[::-1]).T @ x) ** 2) + 1e-3 * jnp.sum(w * x[:, None])
    ),
    "a conversion": lambda w, x: jnp.sum(jnp.abs(x.astype(jnp.complex64) @ w.astype(jnp.complex64)) ** 2),
    "complex data": lambda w, x: jnp.sum(jnp.abs(jnp.fft.fft(x) @ w) ** 2),
    "a phase": lambda w, x: jnp.sum((x @ (w * jnp.exp(1j * w))).imag),
    "a transform that is real again": lambda w, x: jnp.sum(
        jnp.fft.irfft(jnp.fft.rfft(w, axis=0) * jnp.fft.rfft(x)[:, None], n=5, axis=0) ** 3
    ),
}


@pytest.mark.quick
@pytest.mark.parametrize("kind", OF_A_REAL_WEIGHT)
def test_no_cotangent_of_a_real_weight_is_lost_among_complex_values(kind: str) -> None:
    compare(promoting(OF_A_REAL_WEIGHT[kind]), WEIGHT, INPUTS, "ghost")


OF_A_COMPLEX_WEIGHT = {
    "a table": lambda p, e: jnp.sum(jnp.abs(p[e["ids"]] * e["x"]) ** 2),
    "arithmetic": lambda p, e: jnp.abs(
        jnp.sum(e["x"] / p[:3] + p[1:4] ** 2 + jnp.sqrt(p[2:5]) + jnp.log(p[3:6]) * e["x"])
    ),
    "steps that share it": lambda p, e: jnp.sum(
        jnp.abs(lax.scan(lambda h, x: (jnp.tanh(h * p[0] + x) + p[1], None), p[2], e["x"])[0])
    ),
    "a checkpoint": lambda p, e: jax.checkpoint(lambda p: jnp.sum(jnp.abs(jnp.fft.fft(e["x"]) @ p.T)))(p),
    "both parts by themselves": lambda p, e: jnp.sum(e["x"].real @ p.real.T) + jnp.sum(p.imag[:3] * e["x"].imag),
}


@pytest.mark.parametrize("kind", OF_A_COMPLEX_WEIGHT)
def test_complex_parameters(kind: str) -> None:
    batch = {"ids": jnp.array([[0, 1, 1], [2, 4, -1], [6, 9, 0]]), "x": complex_normal(3, 3, 3, 3)}
    for method in ("fused", "materialize"):
        compare(promoting(OF_A_COMPLEX_WEIGHT[kind]), complex_normal(4, 7, 3), batch, method)


@pytest.mark.parametrize("method", METHODS)
def test_complex_parameters_of_double_precision(method: str) -> None:
    loss = promoting(lambda p, x: jnp.sum(jnp.abs(jnp.fft.fft(x) @ p["z"] + p["b"])) + jnp.sum(p["r"] * x))
    with jax.enable_x64(True):
        params = {
            "z": jnp.asarray(np.asarray(complex_normal(1, 3, 3)), jnp.complex128),
            "b": complex_normal(2, 3),
            "r": jnp.asarray(np.asarray(normal(3, 3)), jnp.float64),
        }
        compare(loss, params, jnp.asarray(np.asarray(normal(4, 3, 3)), jnp.float64), method, rtol=1e-6)


def test_the_gradients_themselves_are_those_of_jax() -> None:
    loss = promoting(lambda p, x: jnp.sum(jnp.abs(jnp.fft.fft(x) * p - 1) ** 3))
    params, batch = complex_normal(1, 5), normal(2, 3, 5)
    expected = jax.vmap(jax.grad(loss), (None, 0))(params, batch)
    np.testing.assert_allclose(jaxdp.per_example_grad(loss)(params, batch).materialize(), expected, rtol=1e-5)


def test_a_complex_matrix_is_not_projected() -> None:
    loss = promoting(lambda p, x: jnp.sum(jnp.abs(x @ p["z"])) + jnp.sum(jnp.abs(jnp.fft.fft(x) @ p["w"])))
    params = {"z": complex_normal(1, 4, 4), "w": normal(2, 4, 4)}
    grads = jaxdp.per_example_grad(loss)(params, normal(3, 2, 4))
    assert grads.matrices() == {"z": None, "w": None}
    projection = jaxdp.per_example.Projection(jnp.ones((4, 2)), axes=(1,))
    with pytest.raises(ValueError, match=r"params\['z'\] cannot be projected, because it is complex"):
        grads.project({"z": projection, "w": None})
    with pytest.raises(
        ValueError, match=r"params\['w'\] cannot be projected, because its use in 'dot_general' is complex"
    ):
        grads.project({"z": None, "w": projection})


def test_a_complex_loss_is_refused() -> None:
    with pytest.raises(TypeError, match="the loss has dtype complex64: it must be a real floating-point number"):
        jaxdp.per_example_grad(lambda p, x: p * x)(
            jnp.ones((), jnp.complex64), jnp.ones(2, jnp.complex64)
        ).squared_norms()
