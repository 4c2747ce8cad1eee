"""Examples on several hosts: each reads, holds and draws its own."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Int, Key

from jaxdp.sampling import Batch, ShardedFullBatch, ShardedPoissonSampling

PyTree = Any
Sampler = ShardedPoissonSampling | ShardedFullBatch
Read = Callable[[np.ndarray], PyTree]


def process_rows(sampler: Sampler) -> np.ndarray:
    """The rows of the data set that this process holds, all it ever has to read.

    Args:
      sampler: how batches are drawn.

    Returns:
      Row numbers below `sampler.num_examples`, rising.
    """
    parts = _parts(sampler.sharding, sampler.padded_num_examples)
    rows = np.concatenate([np.arange(*part) for part in parts])
    return rows[rows < sampler.num_examples]


def shard_examples(read: Read, sampler: Sampler) -> PyTree:
    """The data set as arrays on the mesh, from rows that each process reads by itself.

    Args:
      read: `read(rows)` gives a pytree of NumPy arrays, one entry for each row number; called with rows of
        `process_rows` only.
      sampler: how batches are drawn.

    Returns:
      Arrays with a leading axis of `sampler.padded_num_examples`, for `sampler.take`.
    """
    rows = [np.arange(*part) for part in _parts(sampler.sharding, sampler.padded_num_examples)]
    # Rows that fill up the last shards are never drawn; they are copies of one that this process holds anyway.
    own = process_rows(sampler)
    if not len(own):
        raise ValueError(f"{sampler.num_examples} examples leave this process without any: use fewer devices.")
    filled = np.concatenate(rows)
    filled = np.where(filled < sampler.num_examples, filled, own[0])
    return _assembled(read(filled), sampler.sharding, sampler.padded_num_examples)


def form_batch(sampler: Sampler, key: Key[Array, ""], step: int | Int[Array, ""], read: Read) -> tuple[PyTree, Array]:
    """The batch of one step from data that are not on the devices: each process reads its own part of it.

    Every process throws the coins of its own examples, from the common key; nobody sees another's rows or which of them
    were drawn.

    Args:
      sampler: how batches are drawn.
      key: the sampling stream of the run, the same on every process.
      step: number of the step.
      read: as in `shard_examples`.

    Returns:
      The batch, `[padded_batch_size, ...]` cut by `sampler.sharding`, and its mask.

    Example:
      >>> import jax, numpy as np, jaxdp
      >>> sharding = jaxdp.parallel.batch_sharding(jaxdp.parallel.make_mesh(data=1))
      >>> sampler = jaxdp.sampling.ShardedPoissonSampling(100, 0.1, sharding)
      >>> table = np.arange(100.0)
      >>> batch, mask = form_batch(sampler, jax.random.key(0), 5, lambda rows: {"x": table[rows]})
      >>> batch["x"].shape == mask.shape == (sampler.padded_batch_size,)
      True
    """
    drawn = _compiled(sampler)(key, step)
    pieces = {shard.index[0].start or 0: shard.data for shard in drawn.indices.addressable_shards}
    rows = np.concatenate([np.asarray(pieces[start]) for start in sorted(pieces)])
    rows = np.where(rows < sampler.num_examples, rows, process_rows(sampler)[0])
    return _assembled(read(rows), sampler.sharding, sampler.padded_batch_size), drawn.mask


@functools.lru_cache(maxsize=8)
def _compiled(sampler: Sampler) -> Callable[..., Batch]:
    return jax.jit(sampler.sample, out_shardings=sampler.sharding)


def _parts(sharding: NamedSharding, size: int) -> Sequence[tuple[int, int]]:
    """The parts of an axis of this length that this process holds, from begin to end, rising."""
    indices = sharding.addressable_devices_indices_map((size,)).values()
    found = {(index[0].start or 0, size if index[0].stop is None else index[0].stop) for index in indices if index}
    return sorted(found)


def _assembled(local: PyTree, sharding: NamedSharding, size: int) -> PyTree:
    def one(x: Any) -> jax.Array:
        values = np.asarray(x)
        return jax.make_array_from_process_local_data(sharding, values, (size, *values.shape[1:]))

    return jax.tree.map(one, local)
