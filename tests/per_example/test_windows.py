"""Windows of a table, cut out where the example says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from tests.per_example.model_zoo import normal

ROWS, LENGTH = 300, 4
# An older XLA puts the derivative of a longer table's window into other rows where the start is of eight bits.
NARROW_ROWS = 100


def loss(table, example):
    window = jax.lax.dynamic_slice(table, (example["start"], jnp.zeros_like(example["start"])), (LENGTH, 2))
    return jnp.sum(jnp.square(window) * example["scale"])


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int32, jnp.uint32])
def test_a_start_is_moved_as_the_equation_moves_it(dtype):
    """Also where a signed dtype of the same width would turn it around."""
    largest = jnp.iinfo(dtype).max
    rows = ROWS if largest > ROWS else NARROW_ROWS
    starts = [0, 1, rows - LENGTH, rows, largest]
    starts += [-1, jnp.iinfo(dtype).min] if jnp.issubdtype(dtype, jnp.signedinteger) else [2, 3]
    table, batch = normal(1, rows, 2), {"start": jnp.array(starts, dtype), "scale": normal(2, len(starts), LENGTH, 2)}
    grads = jaxdp.per_example_grad(loss, method="fused")(table, batch)
    reference = jax.vmap(jax.grad(loss), in_axes=(None, 0))(table, batch)
    np.testing.assert_allclose(grads.squared_norms(), jnp.sum(jnp.square(reference), axis=(1, 2)), rtol=1e-5)
    weights = jnp.arange(1.0, 1.0 + len(starts))
    np.testing.assert_allclose(
        grads.weighted_sum(weights), jnp.einsum("b,b...->...", weights, reference), rtol=1e-5, atol=1e-6
    )


def test_no_gradient_of_the_table_is_made_for_each_example():
    batch = {"start": jnp.arange(3), "scale": normal(2, 3, LENGTH, 2)}
    (row,) = jaxdp.explain(loss, normal(1, ROWS, 2), batch, method="bookkeeping").rows
    assert (row.primitive, row.rule, row.held_bytes) == ("dynamic_slice", "rows", 3 * 4 * LENGTH * 2)


def test_windows_of_columns_are_exact_by_the_general_rule():
    across = lambda w, start: jnp.sum(jnp.square(jax.lax.dynamic_slice_in_dim(w, start, 2, axis=1)))
    w, starts = normal(1, 3, 6), jnp.array([0, 1, 9])
    reference = jax.vmap(jax.grad(across), in_axes=(None, 0))(w, starts)
    found = jaxdp.per_example_grad(across)(w, starts).squared_norms()
    np.testing.assert_allclose(found, jnp.sum(jnp.square(reference), axis=(1, 2)), rtol=1e-5)
