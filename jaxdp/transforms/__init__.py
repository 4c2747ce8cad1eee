"""Differential privacy as `optax.GradientTransformation`s."""

from jaxdp.transforms._clipped_sum import ClippedSum
from jaxdp.transforms._clipping import Clip, ClipSpec, clip
from jaxdp.transforms._dpsgd import DPSGD, dpsgd
from jaxdp.transforms._noise import GaussianNoiseState, add_gaussian_noise

__all__ = [
    "DPSGD",
    "Clip",
    "ClipSpec",
    "ClippedSum",
    "GaussianNoiseState",
    "add_gaussian_noise",
    "clip",
    "dpsgd",
]
