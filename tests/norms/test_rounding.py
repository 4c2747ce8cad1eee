"""The model of arithmetic that certified norms rest on, measured on the machine that runs the tests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp.norms import _rounding

# Next to it a float32 cannot hold another one: whatever is added to it directly is lost.
LARGE = np.float32(2.0**24)


def lost(sums, terms: int) -> float:
    """How many ones were added to an accumulator that held the large number."""
    return float(np.max(LARGE + (terms - 1) - np.asarray(sums, np.float64)))


@pytest.mark.parametrize(
    "sizes", [(512, 8, 8), (2048, 64, 64), (4096, 2, 8), (4096, 3, 300), (3000, 1, 64), (300, 2, 2)]
)
def test_products_lose_no_more_terms_than_the_model_says(sizes) -> None:
    t, c, p = sizes
    for at in (0, t // 2):
        a, g = np.ones((2, t, c), np.float32), np.ones((2, t, p), np.float32)
        a[:, at] = LARGE
        one = jax.jit(lambda a, g: jnp.einsum("tc,tp->cp", a, g))(a[0], g[0])
        batched = jax.jit(lambda a, g: jnp.einsum("btc,btp->bcp", a, g))(a, g)
        together = jax.jit(lambda a, g: jnp.einsum("btc,btp->cp", a, g))(a, np.concatenate([g[:1], 0 * g[:1]]))
        for found in (one, batched, together):
            assert lost(found, t) <= _rounding.product_depth(t, c, p)


@pytest.mark.parametrize("n", [64, 512, 5000, 300_000])
def test_reductions_lose_no_more_terms_than_the_model_says(n) -> None:
    x = np.ones((2, n), np.float32)
    x[:, 0] = LARGE
    assert lost(jax.jit(lambda x: jnp.sum(x, axis=-1))(x), n) <= _rounding.reduction_depth(n)
    x[:, 0] = 2.0**12
    assert lost(jax.jit(lambda x: jnp.sum(jnp.square(x), axis=-1))(x), n) <= _rounding.reduction_depth(n)


def test_inputs_are_read_as_they_are_on_a_cpu() -> None:
    assert _rounding.input_unit(jnp.float32, None) == 0 or jax.default_backend() != "cpu"
