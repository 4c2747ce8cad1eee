"""Where the noise of each parameter lies in the stream of a release, and how a CPU draws it.

XLA's CPU compiler compiles equal kernels once, and every other one, however small, takes it ten milliseconds. So the
stream is drawn by the same program into arrays of one shape, from which a parameter's part is cut at a place that the
compiler does not know.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int, UInt32

from jaxdp.lowering._late import zero_after
from jaxdp.numerics._normals import BLOCK, block_of_pairs
from jaxdp.transforms._noise_grid import add_noise

# Numbers that may always be drawn together (16 MB of float32); more only for a parameter that is larger.
TOGETHER = 1 << 22


class Chunk(NamedTuple):
    """Leaves that lie side by side in the stream, and are drawn together.

    Attributes:
      leaves: which leaves.
      offsets: where each of them begins, from the chunk's first place on.
      blocks: how many blocks they take.
      start: the chunk's first place: the number of a stream of 2^32 places, and that of a block in it.
    """

    leaves: tuple[int, ...]
    offsets: tuple[int, ...]
    blocks: int
    start: tuple[int, int]


def block_length(sizes: Sequence[int]) -> int:
    """Length of the blocks in which the noise of leaves of these sizes is drawn: of few numbers, a short one."""
    return min(BLOCK, max(2, 1 << (sum(sizes) - 1).bit_length()))


def chunks_of(sizes: Sequence[int]) -> list[Chunk]:
    """The places of leaves of these sizes: no two share one. They depend on the sizes only, not on devices."""
    length_of_block = block_length(sizes)
    most = max([TOGETHER, *sizes])
    chunks: list[Chunk] = []
    leaves: list[int] = []
    offsets: list[int] = []
    length, stream, block = 0, 0, 0

    def close() -> None:
        nonlocal length, stream, block
        blocks = -(-length // length_of_block)
        if block + blocks > 2**32 // length_of_block:
            stream, block = stream + 1, 0
        chunks.append(Chunk(tuple(leaves), tuple(offsets), blocks, (stream, block)))
        block += blocks
        leaves.clear()
        offsets.clear()
        length = 0

    for i, size in enumerate(sizes):
        if leaves and length + size > most:
            close()
        leaves.append(i)
        offsets.append(length)
        length += size
    if leaves:
        close()
    return chunks


def add_in_blocks(
    leaves: Sequence[Float[Array, "..."]],
    stddevs: Sequence[Float[Array, "..."]],
    spacings: Sequence[Float[Array, "..."]] | None,
    words: UInt32[Array, "2"],
    chunks: Sequence[Chunk],
    anything: UInt32[Array, ""],
) -> list[Array]:
    """Every leaf with noise of its std, on a grid if there is one. No more than one chunk or two lie in memory.

    `anything` is a value that the compiler does not know.
    """
    starts = iter(_unknown([offset for chunk in chunks for offset in chunk.offsets], anything))
    shape = max(1, *(chunk.blocks for chunk in chunks)), block_length([leaf.size for leaf in leaves])
    noisy, before = list(leaves), leaves[0]
    for chunk in chunks:
        # An array of zeros that the compiler knows would be made before the gradients and lie in memory beside them.
        empty = jnp.broadcast_to(zero_after(before).astype(jnp.float32), shape)
        drawn = _draw(empty, words, chunk)
        for i in chunk.leaves:
            normals = jax.lax.dynamic_slice(drawn.ravel(), (next(starts),), (leaves[i].size,))
            spacing = None if spacings is None else spacings[i]
            noisy[i] = add_noise(leaves[i], stddevs[i], normals.reshape(leaves[i].shape), spacing)
        before = drawn
    return noisy


def _draw(empty: Float[Array, "rows block"], words: UInt32[Array, "2"], chunk: Chunk) -> Float[Array, "rows block"]:
    """The chunk's numbers in the array's first rows, made one row after the other."""
    stream, first = (jnp.asarray(x, jnp.uint32) for x in chunk.start)
    length = empty.shape[1]

    def step(
        i: Int[Array, ""], state: tuple[Float[Array, "rows block"], Complex[Array, " half"], UInt32[Array, ""]]
    ) -> tuple[Float[Array, "rows block"], Complex[Array, " half"], UInt32[Array, ""]]:
        # What was made in the last trip is written in this one: in one trip XLA would make it twice, for either half.
        rows, pairs, number = state
        row = jnp.concatenate([pairs.real, pairs.imag])
        rows = jax.lax.dynamic_update_index_in_dim(rows, row, jnp.maximum(i - 1, 0), 0)
        return rows, block_of_pairs(words, stream, number, length), number + np.uint32(1)

    nothing = jnp.zeros(length // 2, jnp.complex64)
    return jax.lax.fori_loop(0, chunk.blocks + 1, step, (empty, nothing, first))[0]


def _unknown(numbers: Sequence[int], word: UInt32[Array, ""]) -> list[Int[Array, ""]]:
    """The numbers, which the compiler does not know: it may not tell that they are the same in either case."""
    known = lambda: [jnp.int32(n) for n in numbers]
    zero = ((word >> np.uint32(31)) >> np.uint32(1)).astype(jnp.int32)
    same = lambda: [jnp.int32(numbers[0]) + zero, *known()[1:]]
    return jax.lax.cond(word != np.uint32(0xFFFFFFFF), known, same)
