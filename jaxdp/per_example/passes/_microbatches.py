"""A padded batch worked through in microbatches, stopping after the last real example."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxdp.lowering._shards import apart, together
from jaxdp.lowering._target import batch_sharded
from jaxdp.per_example.passes._placement import Placement
from jaxdp.per_example.planning._slack import is_compensated

PyTree = Any


def reduce_microbatches(
    fn: Callable[..., tuple[PyTree, PyTree]],
    batch: PyTree,
    mask: Bool[Array, " batch"],
    microbatch_size: int | None,
    *per_example: Array,
    placement: Placement | None = None,
) -> tuple[PyTree, PyTree]:
    """Apply `fn(batch, mask, *per_example) -> (stacked, summed)`: rows concatenate, sums add up.

    On a mesh a microbatch takes the same number of rows from each shard, so that all devices work on each of them and
    no row moves. The loop stops when the shard with the most real examples is done.
    """
    with batch_sharded(None if placement is None else placement.batch):
        if microbatch_size is None:
            return fn(batch, mask, *per_example)
        return _loop(fn, batch, mask, microbatch_size, per_example, 1 if placement is None else placement.shards)


def _add_compensated(total: tuple[PyTree, PyTree], terms: PyTree) -> tuple[PyTree, PyTree]:
    """Sums, and what rounding took from them (Knuth's exact error of an addition)."""

    def add(high: Array, low: Array, term: Array) -> tuple[Array, Array]:
        new = high + term
        part = new - high
        return new, low + ((high - (new - part)) + (term - part))

    leaves, treedef = jax.tree.flatten(terms)
    found = [add(*each) for each in zip(*map(treedef.flatten_up_to, total), leaves, strict=True)]
    return treedef.unflatten([x for x, _ in found]), treedef.unflatten([x for _, x in found])


def _loop(
    fn: Callable[..., tuple[PyTree, PyTree]],
    batch: PyTree,
    mask: Bool[Array, " batch"],
    microbatch_size: int,
    per_example: tuple[Array, ...],
    shards: int,
) -> tuple[PyTree, PyTree]:
    # Everything is `[shards, rows of a shard, ...]`; on one device the first axis is left out.
    each, own = mask.shape[0] // shards, microbatch_size // shards
    axis = 0 if shards == 1 else 1
    cut = lambda x: x if shards == 1 else apart(x, shards)
    batch, mask, per_example = jax.tree.map(cut, (batch, mask, per_example))
    count = -(-each // own)
    padded = count * own
    if padded != each:
        # Repeated rows are masked out; unlike zeros they exist for every dtype (PRNG keys included).
        rows = jnp.arange(padded) % each
        pick = lambda x: x[rows] if shards == 1 else x[:, rows]
        batch, mask, per_example = jax.tree.map(pick, (batch, mask, per_example))
        real = jnp.arange(padded) < each
        mask = mask & (real if shards == 1 else real[None])
    grouped = lambda x: x.reshape((*x.shape[:axis], count, own, *x.shape[axis + 1 :]))
    inputs = jax.tree.map(grouped, (batch, mask, per_example))

    compensated = is_compensated(count, mask.size)
    add = _add_compensated if compensated else lambda total, terms: jax.tree.map(jnp.add, total, terms)
    zeros = lambda structs: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), structs)

    def microbatch(i: Array) -> tuple[PyTree, PyTree]:
        part = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, axis, keepdims=False), inputs)
        part, part_mask, rest = part if shards == 1 else jax.tree.map(together, part)
        return fn(part, part_mask, *rest)

    def body(i: Array, carry: tuple[PyTree, Any]) -> tuple[PyTree, Any]:
        stacked, summed = carry
        rows, terms = microbatch(i)
        rows = rows if shards == 1 else jax.tree.map(lambda x: apart(x, shards), rows)
        stacked = jax.tree.map(lambda buf, x: jax.lax.dynamic_update_index_in_dim(buf, x, i, axis), stacked, rows)
        return stacked, add(summed, terms)

    rows, terms = jax.eval_shape(microbatch, jnp.int32(0))
    head = (count,) if shards == 1 else (shards, count)
    start = (
        jax.tree.map(lambda s: jnp.zeros((*head, own, *s.shape[1:]), s.dtype), rows),
        (zeros(terms), zeros(terms)) if compensated else zeros(terms),
    )
    # The trip count is data: an unrolled or padded loop would cost the worst case at every step.
    places = jnp.arange(1, padded + 1)
    last = jnp.max(jnp.where(mask, places if shards == 1 else places[None], 0))
    trips = (last + own - 1) // own
    stacked, summed = jax.lax.fori_loop(0, trips, body, start)
    summed = jax.tree.map(jnp.add, *summed) if compensated else summed
    if shards == 1:
        return jax.tree.map(lambda x: x.reshape((padded, *x.shape[2:]))[:each], stacked), summed
    in_order = lambda x: together(x.reshape((shards, padded, *x.shape[3:]))[:, :each])
    return jax.tree.map(in_order, stacked), summed
