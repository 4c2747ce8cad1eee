"""A batch in which nobody is left: all masked out, or none with a finite gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp


@pytest.mark.quick
@pytest.mark.parametrize("method", ["ghost", "fused", "materialize"])
def test_a_batch_of_nobody_has_a_sum_of_zero_whatever_its_padding_holds(method):
    """Zero weights would not do: zero times NaN is NaN."""
    grad = jaxdp.per_example_grad(lambda w, x: jnp.sum(jnp.tanh(x @ w)), method=method)
    run = jax.jit(lambda x, mask: grad(jnp.ones((3, 2)), x, mask=mask).clipped_sum(lambda s: 1 / (1 + s)))
    for batch in (jnp.full((4, 5, 3), jnp.nan), jnp.full((4, 5, 3), jnp.inf)):
        for mask in (jnp.zeros(4, bool), jnp.ones(4, bool)):
            np.testing.assert_array_equal(run(batch, mask), np.zeros((3, 2)))
    np.testing.assert_array_equal(run(jnp.ones((4, 5, 3)), jnp.zeros(4, bool)), np.zeros((3, 2)))
