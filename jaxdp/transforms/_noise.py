"""Gaussian noise whose scale comes from the sum it is added to."""

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from jaxdp._numbers import is_number, takes_numbers
from jaxdp._shown import of_shapes, setting
from jaxdp.lowering import _target
from jaxdp.lowering._shards import check_generator
from jaxdp.numerics._normals import derived_words, has_own_numbers, normals_from
from jaxdp.numerics._wide import as_like, as_real, is_complex, wide
from jaxdp.transforms._clipped_sum import ClippedSum, check_key, describe, refuse_masked
from jaxdp.transforms._noise_blocks import TOGETHER, add_in_blocks, block_length, chunks_of
from jaxdp.transforms._noise_grid import Grid, add_noise
from jaxdp.transforms._noisy_gradient import NoisyGradient
from jaxdp.transforms._told_slack import tell_slack

PyTree = Any

# Folded into the caller's key, so that the same key given to a sampler yields other bits.
_NOISE_TAG = zlib.crc32(b"jaxdp.transforms.add_gaussian_noise")
# Likewise, for leaves whose numbers JAX makes.
_OTHER_TAG = zlib.crc32(b"jaxdp.transforms.add_gaussian_noise, jax.random.normal")

# Larger leaves have their numbers from JAX.
_MOST = 1 << 30


class GaussianNoiseState(NamedTuple):
    """The stream's key and the number of releases so far: restoring both never repeats a draw."""

    __repr__ = of_shapes

    key: PRNGKeyArray
    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]


@takes_numbers
def add_gaussian_noise(
    noise_multiplier: float | int, key: PRNGKeyArray, *, with_stddev: bool = False, grid: float | int | None = None
) -> optax.GradientTransformation:
    r"""Add $\mathcal N(0, (\sigma S)^2 I)$ to a clipped sum, S being the sensitivity the sum carries.

    With shaped noise (see `clip`), the std on group m is $\sigma S \gamma_m$. Where more than the sum is released about
    the same examples (see `adaptive_clip`), $\sigma$ is the noise multiplier of all of it, and the sum's own is the
    larger one that leaves it so. In every case the release is a Gaussian one of noise multiplier $\sigma$.

    Every release draws from a key of its own (the stream's key folded with the number of releases so far), every
    parameter from places of its own in that key's stream. The noise is drawn in float32 or better. A complex parameter
    is a real vector of twice the length: its real and its imaginary part have noise of that std each. On a mesh
    (`jaxdp.parallel`) every device draws its own part of it, and the values are those of one device.

    With a grid, the sum and the noise are both rounded to multiples of a public power of two, so that no bit of a
    release depends on a sum's lowest bits, as it may where floats of noise are added to floats (Mironov 2012). The
    spacing is the largest power of two g with $g \sqrt d \le$ `grid` $\cdot S$ for d parameters; rounding may enlarge
    the sensitivity by no more than that share, and the noise is for $(1 + $ `grid` $)\,S$.

    Args:
      noise_multiplier: $\sigma \ge 0$, the noise's std as a multiple of the sensitivity; 0 gives no privacy.
      key: a typed PRNG key, as from `jaxdp.sampling.key_from_entropy()`. Whoever knows it can remove the noise.
      with_stddev: return a `NoisyGradient`, which carries the std of the noise to what follows and needs it, such as
        `rmt_denoise`; a scalar product (`optax.scale`) keeps it right, and anything else is refused.
      grid: the share of the sensitivity that rounding to a grid may add, in (0, 1], such as 0.01; None for no grid.

    Returns:
      An `optax.GradientTransformation` whose `update` takes a `ClippedSum` and returns a plain pytree (or a
      `NoisyGradient`), from which anything may be computed freely (post-processing).

    Raises:
      TypeError: the key is no typed key, or the grid no number; at update, the input is not a `ClippedSum`.
      ValueError: the noise multiplier is negative or not finite, or the grid not in (0, 1]; at update, what else is
        released about the same examples leaves nothing for the sum, or gradients are cut over devices and the key is no
        threefry key.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxdp
      >>> grads = jaxdp.per_example_grad(lambda w, x: w @ x)(jnp.ones(2), jnp.array([[3.0, 4.0], [0.0, 0.5]]))
      >>> key = jax.random.key(0)  # in earnest: jaxdp.sampling.key_from_entropy()
      >>> tx = optax.chain(jaxdp.transforms.clip(1.0), jaxdp.transforms.add_gaussian_noise(0.8, key))
      >>> noisy, state = tx.update(grads, tx.init(jnp.ones(2)))

    References:
      Abadi et al., Deep Learning with Differential Privacy, arXiv 1607.00133.
      Mironov, On significance of the least significant bits for differential privacy, CCS 2012.
    """
    if not is_number(noise_multiplier):
        raise TypeError(
            f"noise_multiplier is {setting(noise_multiplier)}: give a Python number, as calibration returns."
        )
    if not (math.isfinite(noise_multiplier) and noise_multiplier >= 0):
        raise ValueError(f"noise_multiplier is {noise_multiplier}: it must be finite and not negative.")
    check_grid(grid)
    check_key(key)

    def init(params: PyTree) -> GaussianNoiseState:
        refuse_masked(params, "add_gaussian_noise")
        # A copy, so that a training loop may donate its state without destroying the caller's key.
        return GaussianNoiseState(jax.random.clone(key), jnp.zeros((), jnp.int32))

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        del params
        if not isinstance(updates, ClippedSum):
            raise TypeError(
                f"add_gaussian_noise was given {describe(updates)}, whose sensitivity is unknown: "
                "put jaxdp.transforms.clip directly before it in the chain."
            )
        own_multiplier = updates.noise_multiplier(noise_multiplier)
        tell_slack(updates.slack)
        leaves, treedef = jax.tree.flatten(updates.tree)
        # Half-precision noise has few distinct values and no tails.
        full = [wide(leaf) for leaf in leaves]
        parts = [as_real(leaf) for leaf in full]
        scales = [updates.sensitivity] * len(leaves)
        if updates.noise_scales is not None:
            scales = treedef.flatten_up_to(updates.noise_scales)
        shardings = [None] * len(leaves)
        if updates.shardings is not None:
            check_generator(state.key)
            shardings = treedef.flatten_up_to(updates.shardings)
        scales = [jnp.asarray(scale, x.dtype) for x, scale in zip(parts, scales, strict=True)]
        spacings = None
        if grid is not None and leaves:
            every = Grid(float(grid), sum(x.size for x in parts))
            spacings = [_for_parts(every.spacing(scale), x) for scale, x in zip(scales, full, strict=True)]
            more = every.enlargement(scales)
            scales = [scale * more.astype(scale.dtype) for scale in scales]
        stddevs = [own_multiplier * scale for scale in scales]
        spread = [_for_parts(stddev, x) for stddev, x in zip(stddevs, full, strict=True)]
        noisy = _with_noise(parts, spread, spacings, state.key, state.count, shardings)
        gradient = treedef.unflatten([as_like(x, leaf) for x, leaf in zip(noisy, full, strict=True)])
        if with_stddev:
            gradient = NoisyGradient(gradient, treedef.unflatten(stddevs))
        return gradient, GaussianNoiseState(state.key, state.count + 1)

    return optax.GradientTransformation(init, update)


def check_grid(grid: Any) -> None:
    """Refuse what is no share of the sensitivity."""
    if grid is None:
        return
    if not is_number(grid):
        raise TypeError(f"grid is {setting(grid)}: give the share of the sensitivity that rounding may add, or None.")
    if not 0 < grid <= 1:
        raise ValueError(
            f"grid is {grid}: give the share of the sensitivity that rounding may add, above 0 and up to 1, such as "
            "0.01; None for no grid."
        )


def _for_parts(scale: Float[Array, "..."], x: Array) -> Float[Array, "..."]:
    """What is the same for the real and the imaginary part of each entry."""
    return scale[..., None] if scale.ndim and is_complex(x) else scale


def _with_noise(
    leaves: Sequence[Array],
    stddevs: Sequence[Float[Array, "..."]],
    spacings: Sequence[Float[Array, "..."]] | None,
    key: PRNGKeyArray,
    count: Int[Array, ""],
    shardings: Sequence[NamedSharding | None],
) -> list[Array]:
    """Every leaf with Gaussian noise of its std, from places of its own in the stream of this release.

    A leaf that is cut over devices is drawn as it is cut, by every device its own part: a number is a function of the
    key and of its place.
    """
    if not leaves:
        return []
    own = [has_own_numbers(key, leaf.dtype) and leaf.size < _MOST for leaf in leaves]
    sizes = [leaf.size if mine else 0 for leaf, mine in zip(leaves, own, strict=True)]
    chunks, block = chunks_of(sizes), block_length(sizes)
    uncut = all(sharding is None for sharding in shardings)
    if all(own) and uncut and _target.forms().noise_in_blocks:
        words = jax.random.key_data(key)
        return add_in_blocks(leaves, stddevs, spacings, derived_words(words, _NOISE_TAG, count), chunks, words[0])
    place = {i: (c.start[0], c.start[1] * block + o) for c in chunks for i, o in zip(c.leaves, c.offsets, strict=True)}
    noisy = list(leaves)
    for (shape, dtype, sharding, mine), members in _alike(leaves, shardings, own):
        tagged = jax.random.fold_in(jax.random.fold_in(key, _NOISE_TAG if mine else _OTHER_TAG), count)
        draw = _from_places(tagged, shape, block) if mine else _from_jax(tagged, shape, dtype)
        which = jnp.asarray([place[i] for i in members] if mine else members, jnp.uint32)
        rows = _rows(draw, which, sharding)
        for row, i in enumerate(members):
            noisy[i] = add_noise(leaves[i], stddevs[i], rows[row], None if spacings is None else spacings[i])
    return noisy


def _from_places(key: PRNGKeyArray, shape: tuple[int, ...], block: int) -> Callable[[Array], Array]:
    words = jax.random.key_data(key)
    return lambda place: normals_from(words, place, shape, block)


def _from_jax(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Callable[[Array], Array]:
    return lambda leaf: jax.random.normal(jax.random.fold_in(key, leaf), shape, dtype)


def _rows(
    draw: Callable[[Array], Array], which: UInt32[Array, "rows *place"], sharding: NamedSharding | None
) -> Float[Array, "rows ..."]:
    """What is drawn for each, by a loop: XLA would fuse (and compile) the generator into all that reads a leaf."""
    cut = lambda x: x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)
    return jax.lax.map(lambda one: cut(draw(one)), which)


def _alike(
    leaves: Sequence[Array], shardings: Sequence[NamedSharding | None], own: Sequence[bool]
) -> list[tuple[tuple, list[int]]]:
    """Leaves of one shape that are drawn by one loop, up to the size of the largest leaf (or 16 MB)."""
    most = max([TOGETHER, *(leaf.size for leaf in leaves)])
    found: dict[tuple, list[int]] = {}
    for i, (leaf, sharding, mine) in enumerate(zip(leaves, shardings, own, strict=True)):
        found.setdefault((leaf.shape, leaf.dtype, sharding, mine), []).append(i)
    several = lambda shape: max(1, most // max(1, math.prod(shape)))
    return [
        (kind, members[at : at + several(kind[0])])
        for kind, members in found.items()
        for at in range(0, len(members), several(kind[0]))
    ]
