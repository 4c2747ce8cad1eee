"""Differential privacy as `optax.GradientTransformation`s."""

from jaxdp.transforms._adaptive import AdaptiveClip, AdaptiveClipState, adaptive_clip
from jaxdp.transforms._clipped_sum import ClippedSum
from jaxdp.transforms._clipping import Clip, clip
from jaxdp.transforms._dpsgd import DPSGD, adaptive_dpsgd, dpsgd
from jaxdp.transforms._noise import GaussianNoiseState, add_gaussian_noise
from jaxdp.transforms._spec import ClipSpec

__all__ = [
    "DPSGD",
    "AdaptiveClip",
    "AdaptiveClipState",
    "Clip",
    "ClipSpec",
    "ClippedSum",
    "GaussianNoiseState",
    "adaptive_clip",
    "adaptive_dpsgd",
    "add_gaussian_noise",
    "clip",
    "dpsgd",
]
