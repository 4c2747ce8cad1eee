"""Weighted sums of rows, in the form that is quick to compile and to run for their number and size."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdp._shards import shards_of

# So many rows are added up in one pass, without a matrix product.
_FEW_ROWS = 16
# Rows of up to so many elements are small enough that only the time to compile their sum matters.
_SMALL_ROW = 1 << 12


def weighted_total(weights: Float[Array, " rows"], rows: Float[Array, "rows ..."]) -> Float[Array, "..."]:
    r"""$\sum_i w_i r_i$.

    XLA's CPU compiler compiles every product of a vector with a matrix by itself, equal elementwise kernels and
    reductions once, and fuses them with what is added to the sum. (Its reductions of many large rows are slow.)
    """
    count, each = rows.shape[0], math.prod(rows.shape[1:])
    weights = weights.astype(rows.dtype)
    if 0 < count <= _FEW_ROWS and shards_of(count) == 1:
        return sum((weights[i] * rows[i] for i in range(1, count)), start=weights[0] * rows[0])
    if each <= _SMALL_ROW:
        flat = rows.reshape(count, each)
        return jnp.sum(weights[:, None] * flat, axis=0).reshape(rows.shape[1:])
    return jnp.einsum("b,b...->...", weights, rows, precision="highest")
