"""A padded batch worked through in microbatches, stopping after the last real example."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

PyTree = Any


def reduce_microbatches(
    fn: Callable[..., tuple[PyTree, PyTree]],
    batch: PyTree,
    mask: Bool[Array, " batch"],
    microbatch_size: int | None,
    *per_example: Array,
) -> tuple[PyTree, PyTree]:
    """Apply `fn(batch, mask, *per_example) -> (stacked, summed)`: rows concatenate, sums add up."""
    if microbatch_size is None:
        return fn(batch, mask, *per_example)
    size = mask.shape[0]
    count = -(-size // microbatch_size)
    padded = count * microbatch_size
    if padded != size:
        # Repeated rows are masked out; unlike zeros they exist for every dtype (PRNG keys included).
        rows = jnp.arange(padded) % size
        batch, per_example = jax.tree.map(lambda x: x[rows], (batch, per_example))
        mask = mask[rows] & (jnp.arange(padded) < size)
    inputs = jax.tree.map(lambda x: x.reshape((count, microbatch_size, *x.shape[1:])), (batch, mask, per_example))

    def microbatch(i: Array) -> tuple[PyTree, PyTree]:
        part, part_mask, rest = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), inputs)
        return fn(part, part_mask, *rest)

    def body(i: Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        stacked, summed = carry
        rows, terms = microbatch(i)
        stacked = jax.tree.map(lambda buf, x: jax.lax.dynamic_update_index_in_dim(buf, x, i, 0), stacked, rows)
        return stacked, jax.tree.map(jnp.add, summed, terms)

    rows, terms = jax.eval_shape(microbatch, jnp.int32(0))
    start = (
        jax.tree.map(lambda s: jnp.zeros((count, *s.shape), s.dtype), rows),
        jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), terms),
    )
    # The trip count is data: an unrolled or padded loop would cost the worst case at every step.
    last = jnp.max(jnp.where(mask, jnp.arange(1, padded + 1), 0))
    trips = (last + microbatch_size - 1) // microbatch_size
    stacked, summed = jax.lax.fori_loop(0, trips, body, start)
    return jax.tree.map(lambda x: x.reshape((padded, *x.shape[2:]))[:size], stacked), summed
