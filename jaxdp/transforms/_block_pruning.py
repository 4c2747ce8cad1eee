"""Pruning of a noisy gradient by blocks: post-processing, free of privacy cost."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from jaxdp._numbers import is_number, is_whole
from jaxdp._shown import setting
from jaxdp.numerics._wide import is_complex
from jaxdp.per_example import PerExampleGrads
from jaxdp.transforms._clipped_sum import ClippedSum, describe
from jaxdp.transforms._noisy_gradient import NoisyGradient

PyTree = Any


def prune_blocks(keep: float | int, *, block: int | tuple[int, int] | None = None) -> optax.GradientTransformation:
    r"""Keep the blocks of a noisy gradient that are largest, and set the others to zero.

    A block b of $d_b$ entries has the score $\|g_b\|^2 / (s_b^2 d_b)$, where s is the std of the noise: about 1 where
    there is nothing but noise. The share `keep` of all blocks, over all leaves, with the highest scores is kept.
    Without a known s the score is $\|g_b\|^2 / d_b$. What is kept is chosen for being large, so its noise is no longer
    the mechanism's: `rmt_denoise` and `scale_by_corrected_adam` refuse it; put `prune_blocks` behind `rmt_denoise`.

    Args:
      keep: the share of the blocks that is kept, in (0, 1].
      block: None for one block per leaf; k for runs of k entries of the last axis; (r, c) for tiles of the last two
        axes (of a leaf with one axis, runs of c). At the ends of an axis blocks are smaller.

    Returns:
      An `optax.GradientTransformation` from a `NoisyGradient` or a plain (noisy!) pytree to a plain pytree.

    Raises:
      ValueError: an impossible argument, named.
      TypeError: an argument of another kind; at update, private values.

    Example:
      >>> import jax.numpy as jnp, jaxdp
      >>> tx = jaxdp.transforms.prune_blocks(0.5, block=2)
      >>> noisy = jnp.array([0.1, 0.2, 3.0, 0.1])
      >>> tx.update(noisy, tx.init(noisy))[0]
      Array([0. , 0. , 3. , 0.1], dtype=float32)

    References:
      Dual-Priv Pruning, arXiv 2506.07077 (its pruning of updates by the size of noisy gradients).
    """
    if not is_number(keep):
        raise TypeError(f"keep is {setting(keep)}: give the share of blocks to keep as a Python number.")
    if not 0 < keep <= 1:
        raise ValueError(f"keep is {keep}: give a share above 0 and up to 1.")
    rows, columns = _block_shape(block)

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        del params
        if isinstance(updates, ClippedSum | PerExampleGrads):
            raise TypeError(
                f"prune_blocks was given {describe(updates)}, which is private: put it behind "
                "jaxdp.transforms.add_gaussian_noise."
            )
        tree, stddevs = (updates, None)
        if isinstance(updates, NoisyGradient):
            tree, stddevs = updates.tree, jax.tree.leaves(updates.noise_stddev)
        leaves, treedef = jax.tree.flatten(tree)
        tilings = [_Tiling.of(leaf.shape, rows, columns) for leaf in leaves]
        scores = [
            _scores(leaf, None if stddevs is None else stddevs[i], tilings[i]).ravel() for i, leaf in enumerate(leaves)
        ]
        if not scores:
            return tree, state
        flat = jnp.concatenate(scores)
        # By rank and not by a threshold: equal scores must not change how many are kept.
        _, best = jax.lax.top_k(flat, math.ceil(keep * flat.size))
        kept = jnp.zeros(flat.size, bool).at[best].set(True)
        pruned, at = [], 0
        for leaf, tiling in zip(leaves, tilings, strict=True):
            count = math.prod(tiling.grid)
            pruned.append(jnp.where(tiling.spread(kept[at : at + count], leaf.shape), leaf, jnp.zeros_like(leaf)))
            at += count
        return treedef.unflatten(pruned), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


class _Tiling(NamedTuple):
    """A leaf seen as a stack of matrices, cut into tiles."""

    matrix: tuple[int, int, int]
    tile: tuple[int, int]

    @staticmethod
    def of(shape: tuple[int, ...], rows: int | None, columns: int | None) -> "_Tiling":
        if columns is None:
            return _Tiling((1, 1, math.prod(shape)), (1, max(1, math.prod(shape))))
        padded = (1, 1, *shape)
        matrix = (math.prod(padded[:-2]), padded[-2], padded[-1])
        return _Tiling(matrix, (min(rows or 1, max(1, matrix[1])), min(columns, max(1, matrix[2]))))

    @property
    def grid(self) -> tuple[int, int, int]:
        """How many tiles: by matrix, down, across."""
        (stack, m, n), (rows, columns) = self.matrix, self.tile
        return stack, -(-m // rows), -(-n // columns)

    def sums(self, values: Array) -> Array:
        """The sum over each tile."""
        (_, m, n), (rows, columns), (stack, down, across) = self.matrix, self.tile, self.grid
        padding = ((0, 0), (0, down * rows - m), (0, across * columns - n))
        padded = jnp.pad(values.reshape(self.matrix), padding)
        return jnp.sum(padded.reshape(stack, down, rows, across, columns), axis=(2, 4))

    def spread(self, by_tile: Array, shape: tuple[int, ...]) -> Bool[Array, "..."]:
        """Each tile's value for all its entries."""
        _, m, n = self.matrix
        full = jnp.repeat(jnp.repeat(by_tile.reshape(self.grid), self.tile[0], axis=1), self.tile[1], axis=2)
        return full[:, :m, :n].reshape(shape)


def _scores(leaf: Array, stddev: Array | None, tiling: _Tiling) -> Float[Array, "stack down across"]:
    """The mean square of each tile, over that of its noise where it is known."""
    if is_complex(leaf):
        # Two real numbers with noise of that std each.
        parts = (_scores(part, stddev, tiling) for part in (leaf.real, leaf.imag))
        return sum(parts, start=jnp.zeros(tiling.grid, jnp.float32)) / 2
    wide = leaf.astype(jnp.float32)
    if stddev is not None:
        # Where there is no noise nothing is lost by keeping.
        shown = jnp.where(stddev > 0, stddev, 1.0).astype(jnp.float32)
        wide = jnp.where(stddev > 0, wide / shown, jnp.inf)
    ones = jnp.ones(leaf.shape, jnp.float32)
    return tiling.sums(jnp.square(wide)) / tiling.sums(ones)


def _block_shape(block: Any) -> tuple[int | None, int | None]:
    if block is None:
        return None, None
    sizes = block if isinstance(block, tuple) else (1, block)
    if len(sizes) != 2 or not all(map(is_whole, sizes)):
        raise TypeError(f"block is {block!r}: give None, a whole number, or two of them.")
    if min(sizes) < 1:
        raise ValueError(f"block is {block!r}: its sizes must be at least 1.")
    return sizes[0], sizes[1]
