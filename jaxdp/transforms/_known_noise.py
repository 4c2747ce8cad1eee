"""Where post-processing learns the std of the noise: from the mechanism, or from the caller's explicit word."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxdp._numbers import is_number
from jaxdp._shown import setting
from jaxdp.numerics._wide import real_dtype, wide_dtype
from jaxdp.per_example import PerExampleGrads
from jaxdp.transforms._clipped_sum import ClippedSum, describe
from jaxdp.transforms._noisy_gradient import NoisyGradient

PyTree = Any


def check_stddev(noise_stddev: Any) -> None:
    """Refuse a number that is no std; arrays and pytrees are checked against the gradient."""
    if isinstance(noise_stddev, bool | str):
        raise TypeError(f"noise_stddev is {setting(noise_stddev)}: give a number, a pytree like the gradient, or None.")
    if is_number(noise_stddev) and not (math.isfinite(noise_stddev) and noise_stddev >= 0):
        raise ValueError(f"noise_stddev is {noise_stddev}: it must be finite and not negative.")


def known_noise(name: str, updates: Any, noise_stddev: Any) -> NoisyGradient:
    """The gradient with the std of its noise; an error with a sentence where that is not known."""
    if isinstance(updates, NoisyGradient):
        if noise_stddev is not None:
            raise ValueError(
                f"{name} was given noise_stddev, and a gradient that carries the std of its noise already: leave "
                "noise_stddev out."
            )
        return updates
    if isinstance(updates, ClippedSum | PerExampleGrads):
        raise TypeError(
            f"{name} was given {describe(updates)}, which is private: put it behind "
            "jaxdp.transforms.add_gaussian_noise."
        )
    if noise_stddev is None:
        raise TypeError(
            f"{name} was given {describe(updates)}, whose noise is unknown: make it with dpsgd, adaptive_dpsgd or "
            f"add_gaussian_noise with with_stddev=True, and put {name} directly behind (optax.scale may stand in "
            "between). Behind rmt_denoise, prune_blocks, momentum or an optimiser the noise has another law, so only "
            "one of rmt_denoise and scale_by_corrected_adam fits in a chain."
        )
    return NoisyGradient(updates, _spread(noise_stddev, updates))


def _spread(noise_stddev: Any, tree: PyTree) -> PyTree:
    """A std for each leaf, from one for all or a pytree of them."""
    leaves, treedef = jax.tree.flatten(tree)
    if is_number(noise_stddev) or (hasattr(noise_stddev, "shape") and noise_stddev.shape == ()):
        given = [noise_stddev] * len(leaves)
    elif jax.tree.structure(noise_stddev) == treedef:
        given = jax.tree.leaves(noise_stddev)
    else:
        raise TypeError("noise_stddev is neither a number nor a pytree like the gradient: give one of these, or None.")
    stddevs = [jnp.asarray(s, wide_dtype(real_dtype(leaf.dtype))) for s, leaf in zip(given, leaves, strict=True)]
    for s, leaf in zip(stddevs, leaves, strict=True):
        try:
            fits = jnp.broadcast_shapes(s.shape, leaf.shape) == leaf.shape and s.ndim in (0, leaf.ndim)
        except ValueError:
            fits = False
        if not fits:
            raise TypeError(
                f"noise_stddev has an array of shape {s.shape} for a gradient of shape {leaf.shape}: give a scalar, or "
                "one with as many axes, each of length 1 or the gradient's."
            )
    return treedef.unflatten(stddevs)
