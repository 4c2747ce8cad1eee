"""Differential privacy as `optax.GradientTransformation`s."""

from jaxdp.transforms._adam_bias_correction import CorrectedAdamState, scale_by_corrected_adam
from jaxdp.transforms._adaptive import AdaptiveClip, AdaptiveClipState, adaptive_clip
from jaxdp.transforms._block_pruning import prune_blocks
from jaxdp.transforms._clipped_sum import ClippedSum
from jaxdp.transforms._clipping import Clip, clip
from jaxdp.transforms._denoise import RmtDenoiseState, linear_layers, rmt_denoise
from jaxdp.transforms._dpsgd import DPSGD, adaptive_dpsgd, dpsgd
from jaxdp.transforms._noise import GaussianNoiseState, add_gaussian_noise
from jaxdp.transforms._noisy_gradient import NoisyGradient
from jaxdp.transforms._spec import ClipSpec

__all__ = [
    "DPSGD",
    "AdaptiveClip",
    "AdaptiveClipState",
    "Clip",
    "ClipSpec",
    "ClippedSum",
    "CorrectedAdamState",
    "GaussianNoiseState",
    "NoisyGradient",
    "RmtDenoiseState",
    "adaptive_clip",
    "adaptive_dpsgd",
    "add_gaussian_noise",
    "clip",
    "dpsgd",
    "linear_layers",
    "prune_blocks",
    "rmt_denoise",
    "scale_by_corrected_adam",
]
