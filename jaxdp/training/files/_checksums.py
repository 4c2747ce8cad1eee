"""Checksums of arrays that do not depend on how they are cut over devices."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

PyTree = Any

_ELEMENTS = 1 << 16
_GOLDEN, _FIRST, _SECOND = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def checksums(arrays: Sequence[jax.Array]) -> list[str]:
    r"""A checksum of every array's type, shape and bits.

    It is $\sum_i h(x_i, i) \bmod 2^{64}$ over all entries with the finaliser h of splitmix64, so that every device and
    every process adds up what it holds.
    """
    own = [_own_part(x) for x in arrays]
    if jax.process_count() > 1:
        # As bytes: without 64-bit mode JAX would cut them.
        parts = multihost_utils.process_allgather(np.array(own, np.uint64).view(np.uint8))
        each = np.asarray(parts).view(np.uint64).reshape(-1, len(arrays))
        own = [sum(map(int, column)) % 2**64 for column in each.T]
    return [f"{x.dtype}{list(x.shape)}:{total:016x}" for x, total in zip(arrays, own, strict=True)]


def digest(sums: Sequence[str]) -> str:
    """One line for the checksums of a whole state."""
    return hashlib.sha256(json.dumps(list(sums)).encode()).hexdigest()


def digest_of_data(tree: PyTree) -> str:
    """SHA-256 of NumPy arrays."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        x = np.asarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {x.dtype} {x.shape}".encode())
        found.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _own_part(x: jax.Array) -> int:
    """The sum over what this process holds, each entry once."""
    total = 0
    for shard in x.addressable_shards:
        if shard.replica_id == 0:
            begins = [piece.start or 0 for piece in shard.index]
            total += _sum(np.asarray(shard.data), begins, x.shape)
    return total % 2**64


def _sum(part: np.ndarray, begins: Sequence[int], shape: Sequence[int]) -> int:
    """The sum over a block of an array that begins at these indices."""
    if part.size == 0:
        return 0
    bits = _as_integers(part.reshape(part.shape or (1,)))
    begins, shape = list(begins) or [0], list(shape) or [1]
    strides = [int(np.prod(shape[axis + 1 :], dtype=np.uint64)) for axis in range(len(shape))]
    inner = np.zeros(1, np.uint64)
    for axis in range(1, len(shape)):
        steps = (begins[axis] + np.arange(part.shape[axis], dtype=np.uint64)) * np.uint64(strides[axis])
        inner = (inner[:, None] + steps).reshape(-1)
    rows, total = max(1, _ELEMENTS // len(inner)), 0
    for begin in range(0, len(bits), rows):
        block = bits[begin : begin + rows]
        outer = (begins[0] + begin + np.arange(len(block), dtype=np.uint64)) * np.uint64(strides[0])
        place = outer[:, None] + inner
        total += int(np.sum(_mixed(block.reshape(len(block), len(inner), -1), place[:, :, None]), dtype=np.uint64))
    return total


def _as_integers(x: np.ndarray) -> np.ndarray:
    """The bits of every entry, in one or two words on a last axis."""
    x = np.ascontiguousarray(x)
    size = min(x.dtype.itemsize, 8)
    return x.view(np.dtype(f"u{size}")).reshape(len(x), -1)


def _mixed(bits: np.ndarray, place: np.ndarray) -> np.ndarray:
    words = np.arange(bits.shape[-1], dtype=np.uint64) << np.uint64(56)
    z = bits.astype(np.uint64) + (place + words + np.uint64(1)) * _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))
