"""Gaussian noise whose scale comes from the sum it is added to."""

import functools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from jaxdp._late import zero_after
from jaxdp._normals import standard_normal
from jaxdp._shards import check_generator
from jaxdp.transforms._clipped_sum import ClippedSum, check_key, describe, refuse_masked
from jaxdp.transforms._noisy_gradient import NoisyGradient

PyTree = Any

# Folded into the caller's key, so that the same key given to a sampler yields other bits.
_NOISE_TAG = zlib.crc32(b"jaxdp.transforms.add_gaussian_noise")

# Entries that leaves of one size may always be drawn together (16 MB of float32).
_SMALLEST_DRAW = 1 << 22

# Leaves of up to so many entries have as many numbers drawn as the largest of them, by one loop instead of several.
_FEW = 1 << 12


class GaussianNoiseState(NamedTuple):
    """The stream's key and the number of releases so far: restoring both never repeats a draw."""

    key: PRNGKeyArray
    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]


def add_gaussian_noise(
    noise_multiplier: float | int, key: PRNGKeyArray, *, with_stddev: bool = False
) -> optax.GradientTransformation:
    r"""Add $\mathcal N(0, (\sigma S)^2 I)$ to a clipped sum, S being the sensitivity the sum carries.

    With shaped noise (see `clip`), the std on group m is $\sigma S \gamma_m$. Where more than the sum is released about
    the same examples (see `adaptive_clip`), $\sigma$ is the noise multiplier of all of it, and the sum's own is the
    larger one that leaves it so. In every case the release is a Gaussian one of noise multiplier $\sigma$.

    Every release draws from a key of its own (the stream's key folded with the number of releases so far), every
    parameter from a key of its own. The noise is drawn in float32 or better. On a mesh (`jaxdp.parallel`) every device
    draws its own part of it, and the values are those of one device.

    Args:
      noise_multiplier: $\sigma \ge 0$, the noise's std as a multiple of the sensitivity; 0 gives no privacy.
      key: a typed PRNG key, as from `jaxdp.sampling.key_from_entropy()`. Whoever knows it can remove the noise.
      with_stddev: return a `NoisyGradient`, which carries the std of the noise to what follows and needs it, such as
        `rmt_denoise`; a scalar product (`optax.scale`) keeps it right, and anything else is refused.

    Returns:
      An `optax.GradientTransformation` whose `update` takes a `ClippedSum` and returns a plain pytree (or a
      `NoisyGradient`), from which anything may be computed freely (post-processing).

    Raises:
      TypeError: the key is no typed key; at update, the input is not a `ClippedSum`.
      ValueError: the noise multiplier is negative or not finite; at update, what else is released about the same
        examples leaves nothing for the sum, or gradients are cut over devices and the key is no threefry key.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxdp
      >>> grads = jaxdp.per_example_grad(lambda w, x: w @ x)(jnp.ones(2), jnp.array([[3.0, 4.0], [0.0, 0.5]]))
      >>> key = jax.random.key(0)  # in earnest: jaxdp.sampling.key_from_entropy()
      >>> tx = optax.chain(jaxdp.transforms.clip(1.0), jaxdp.transforms.add_gaussian_noise(0.8, key))
      >>> noisy, state = tx.update(grads, tx.init(jnp.ones(2)))

    References:
      Abadi et al., Deep Learning with Differential Privacy, arXiv 1607.00133.
    """
    if isinstance(noise_multiplier, bool) or not isinstance(noise_multiplier, int | float):
        raise TypeError(f"noise_multiplier is {noise_multiplier!r}: give a Python number, as calibration returns.")
    if not (math.isfinite(noise_multiplier) and noise_multiplier >= 0):
        raise ValueError(f"noise_multiplier is {noise_multiplier}: it must be finite and not negative.")
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
        release_key = jax.random.fold_in(jax.random.fold_in(state.key, _NOISE_TAG), state.count)
        leaves, treedef = jax.tree.flatten(updates.tree)
        # Half-precision noise has few distinct values and no tails.
        wide = [leaf.astype(leaf.dtype if jnp.finfo(leaf.dtype).bits >= 32 else jnp.float32) for leaf in leaves]
        scales = [updates.sensitivity] * len(leaves)
        if updates.noise_scales is not None:
            scales = treedef.flatten_up_to(updates.noise_scales)
        shardings = [None] * len(leaves)
        if updates.shardings is not None:
            check_generator(state.key)
            shardings = treedef.flatten_up_to(updates.shardings)
        stddevs = [jnp.asarray(own_multiplier * scale, leaf.dtype) for leaf, scale in zip(wide, scales, strict=True)]
        noisy = _with_noise(wide, stddevs, jax.random.split(release_key, len(leaves)), shardings)
        gradient = treedef.unflatten(noisy)
        if with_stddev:
            gradient = NoisyGradient(gradient, treedef.unflatten(stddevs))
        return gradient, GaussianNoiseState(state.key, state.count + 1)

    return optax.GradientTransformation(init, update)


def _with_noise(
    leaves: Sequence[Array],
    stddevs: Sequence[Float[Array, "..."]],
    keys: Key[Array, " leaves"],
    shardings: Sequence[NamedSharding | None],
) -> list[Array]:
    """Every leaf with Gaussian noise of its std from its own key.

    What has the same number of entries is compiled once and drawn together, up to the size of the largest leaf (or 16
    MB), and after what was drawn before it was added. A leaf that is cut over devices is drawn as it is cut, by every
    device its own part: an entry's bits are a function of the key and of the entry's place in the whole leaf.
    """
    few = max((leaf.size for leaf in leaves if leaf.size <= _FEW), default=0)
    together: dict[tuple, list[int]] = {}
    for i, (leaf, sharding) in enumerate(zip(leaves, shardings, strict=True)):
        shape = (max(few, leaf.size),) if sharding is None else leaf.shape
        together.setdefault((shape, leaf.dtype, sharding), []).append(i)
    most = max([_SMALLEST_DRAW, *(leaf.size for leaf in leaves)])
    noisy = list(leaves)
    last = 0
    for (shape, dtype, sharding), members in together.items():
        draw = functools.partial(_draw, shape=shape, dtype=dtype, sharding=sharding)
        count = max(1, most // max(1, math.prod(shape)))
        for start in range(0, len(members), count):
            chunk = members[start : start + count]
            # On a mesh reading an entry would send it to every device.
            zero = zero_after(noisy[last]) if sharding is None else jnp.zeros((), jnp.int32)
            empty = jnp.broadcast_to(zero.astype(dtype), (len(chunk), *shape))
            rows = _rows(draw, keys[np.asarray(chunk)], empty, zero)
            for row, i in zip(_row_numbers(keys, len(chunk)), chunk, strict=True):
                normals = jax.lax.dynamic_index_in_dim(rows, row, keepdims=False)
                noisy[i] = leaves[i] + stddevs[i] * normals.ravel()[: leaves[i].size].reshape(leaves[i].shape)
            last = chunk[-1]
    return noisy


def _rows(
    draw: Callable[[PRNGKeyArray], Array],
    keys: Key[Array, " rows"],
    empty: Float[Array, "rows ..."],
    zero: Int[Array, ""],
) -> Float[Array, "rows ..."]:
    """One draw for each key, by a loop: XLA would fuse (and compile) the generator into all that reads a leaf.

    The loop starts from an array of a `zero` that is none to the compiler: one that it knows would be made before the
    gradients and lie in memory beside them.
    """
    count, more = len(keys), 0
    if count == 1:
        # XLA takes a loop of one trip apart, and what does not change out of a loop. Where that costs, trips and keys
        # are therefore unknown.
        more = jax.lax.platform_dependent(zero, cpu=lambda x: x, default=jnp.zeros_like)
        keys = jnp.concatenate([keys, keys])
    step = lambda i, rows: jax.lax.dynamic_update_index_in_dim(rows, draw(keys[i]), i, 0)
    return jax.lax.fori_loop(0, count + more, step, empty)


def _row_numbers(keys: Key[Array, " leaves"], count: int) -> list[Int[Array, ""]]:
    """The numbers of `count` rows, each once: 0, 1, ..., count - 1, but the compiler does not know it.

    XLA's CPU compiler compiles equal kernels once. With a known row, the kernel that updates a parameter would be
    another one for each parameter of a shape, and half of the compile time of the noise goes into these.
    """
    forwards = lambda: [jnp.int32(row) for row in range(count)]
    backwards = lambda: [jnp.int32(count - 1 - row) for row in range(count)]  # all rows, only in another order
    unknown = lambda word: jax.lax.cond(word != np.uint32(0xFFFFFFFF), forwards, backwards)
    word = jax.random.key_data(keys).ravel()[0]
    return jax.lax.platform_dependent(word, cpu=unknown, default=lambda _: forwards())


def _draw(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any, sharding: NamedSharding | None) -> Array:
    normals = standard_normal(key, shape, dtype)
    return normals if sharding is None else jax.lax.with_sharding_constraint(normals, sharding)
