"""Norms of 16-bit factors: multiplied as they are, and as exact as in float32."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp.norms import certified_norm, clipped_outer_sum, outer_certificate
from jaxdp.per_example.tracing._compat import dead_code_eliminated
from tests.drawn import normal

DTYPES = [jnp.bfloat16, jnp.float16]


def factors(dtype, t: int = 40, c: int = 24, p: int = 16, k: int = 2):
    a, g = normal(1, k, t, c), normal(2, k, t, p)
    return a.astype(dtype), g.astype(dtype)


def products(fn, *args) -> list[str]:
    """The dtypes that matrix products take of which the result needs something."""
    found = []

    def walk(jaxpr) -> None:
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                found.extend(str(v.aval.dtype) for v in eqn.invars)
            for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    walk(inner)

    walk(dead_code_eliminated(jax.make_jaxpr(fn)(*args))[0].jaxpr)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", ["gram", "materialize"])
@pytest.mark.parametrize("sizes", [{}, {"t": 1}, {"k": 1}])
def test_they_equal_those_of_float64(dtype, rule, sizes) -> None:
    a, g = factors(dtype, **sizes)
    exact = np.einsum("ktc,ktp->kcp", np.asarray(a, np.float64), np.asarray(g, np.float64))
    found = jax.jit(lambda a, g: outer_certificate(a, g, rule)[0])(a, g)
    assert found.dtype == jnp.float32
    assert abs(float(found) / np.sum(exact**2) - 1) < 2e-6
    assert set(products(lambda a, g: outer_certificate(a, g, rule)[0], a, g)) <= {jnp.dtype(dtype).name}


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_made_once_for_norm_and_sum_are_exact(dtype) -> None:
    a, g = factors(dtype)
    weigh = lambda found, rest: rest / (1 + found[:, 0])
    total, norms = clipped_outer_sum(a[:, None], g[:, None], weigh, jnp.ones(2), None)
    exact = np.einsum("ktc,ktp->kcp", np.asarray(a, np.float64), np.asarray(g, np.float64))
    expected = np.sum(exact**2, axis=(1, 2))
    np.testing.assert_allclose(norms[:, 0], expected, rtol=2e-6)
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total[0], np.einsum("k,kcp->cp", 1 / (1 + expected), exact), atol=2e-6)


def test_factors_of_two_dtypes_are_widened() -> None:
    a, _ = factors(jnp.bfloat16)
    _, g = factors(jnp.float16)
    exact = np.einsum("ktc,ktp->kcp", np.asarray(a, np.float64), np.asarray(g, np.float64))
    assert abs(float(outer_certificate(a, g)[0]) / np.sum(exact**2) - 1) < 2e-6


def test_what_cancels_is_not_underestimated() -> None:
    x, c = factors(jnp.bfloat16, k=1)
    a, g = jnp.concatenate([x, x], axis=1), jnp.concatenate([c, -c], axis=1)
    bound = np.sum(np.asarray(a, np.float64) ** 2) * np.sum(np.asarray(g, np.float64) ** 2)
    assert 0 < float(certified_norm(outer_certificate(a, g, "gram"), math.inf)) ** 2 < 1e-4 * bound


@pytest.mark.quick
@pytest.mark.parametrize("method", ["ghost", "bookkeeping", "fused"])
def test_a_bfloat16_layer_has_no_wide_norm(method: str) -> None:
    w, x = jnp.ones((24, 16), jnp.bfloat16), jnp.ones((3, 40, 24), jnp.bfloat16)
    loss = lambda w, x: jnp.sum(jnp.tanh(x @ w)).astype(jnp.float32)
    norms = lambda w, x: jaxdp.per_example_grad(loss, method=method)(w, x).squared_norms()  # pyright: ignore
    assert set(products(norms, w, x)) == {"bfloat16"}
