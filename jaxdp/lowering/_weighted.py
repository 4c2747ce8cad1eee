"""Weighted sums of rows, in the form that is quick to compile and to run for their number and size."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdp.lowering._shards import shards_of

# So many rows are added up in one pass, without a matrix product.
_FEW_ROWS = 16
# Rows of up to so many elements are small enough that only the time to compile their sum matters.
_SMALL_ROW = 1 << 12

# More rows than this are added up in blocks of as many, and the blocks' sums by a tree: rounding then grows with the
# block, and what one row changes is the path from its block to the root.
BLOCK_ROWS = 128


def weighted_total(weights: Float[Array, " rows"], rows: Float[Array, "rows ..."]) -> Float[Array, "..."]:
    r"""$\sum_i w_i r_i$.

    XLA's CPU compiler compiles every product of a vector with a matrix by itself, equal elementwise kernels and
    reductions once, and fuses them with what is added to the sum. (Its reductions of many large rows are slow.)
    """
    count, each = rows.shape[0], math.prod(rows.shape[1:])
    weights = weights.astype(rows.dtype)
    if in_blocks(count):
        blocks = _weighted(cut_in_blocks(weights), cut_in_blocks(rows.reshape(count, each)))
        return tree_sum(blocks).reshape(rows.shape[1:])
    if 0 < count <= _FEW_ROWS and shards_of(count) == 1:
        return sum((weights[i] * rows[i] for i in range(1, count)), start=weights[0] * rows[0])
    if each <= _SMALL_ROW:
        flat = rows.reshape(count, each)
        return jnp.sum(weights[:, None] * flat, axis=0).reshape(rows.shape[1:])
    return jnp.einsum("b,b...->...", weights, rows, precision="highest")


def in_blocks(count: int) -> bool:
    """Whether so many rows are added up in blocks."""
    return count > BLOCK_ROWS and shards_of(count) == 1


def cut_in_blocks(x: Float[Array, "rows *any"], size: int = BLOCK_ROWS) -> Float[Array, "blocks size *any"]:
    """Rows in blocks, filled up with zeros."""
    blocks = math.ceil(x.shape[0] / size)
    missing = blocks * size - x.shape[0]
    full = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) if missing else x
    return full.reshape(blocks, size, *x.shape[1:])


def tree_sum(x: Float[Array, "rows *any"]) -> Float[Array, "*any"]:
    """Sum over the first axis, of halves of halves."""
    while x.shape[0] > 1:
        half = x.shape[0] // 2
        paired = x[:half] + x[half : 2 * half]
        x = jnp.concatenate([paired, x[2 * half :]]) if x.shape[0] % 2 else paired
    return x[0]


def _weighted(weights: Float[Array, "blocks rows"], rows: Float[Array, "blocks rows n"]) -> Float[Array, "blocks n"]:
    if rows.shape[-1] <= _SMALL_ROW:
        return jnp.sum(weights[..., None] * rows, axis=1)
    return jnp.einsum("br,brn->bn", weights, rows, precision="highest")
