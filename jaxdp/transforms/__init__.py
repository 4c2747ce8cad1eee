"""Differential privacy as `optax.GradientTransformation`s."""

from jaxdp.per_example.planning._prediction import Prediction
from jaxdp.transforms._adam_bias_correction import CorrectedAdamState, scale_by_corrected_adam
from jaxdp.transforms._adaptive import AdaptiveClip, AdaptiveClipState, adaptive_clip
from jaxdp.transforms._block_pruning import prune_blocks
from jaxdp.transforms._clipped_sum import ClippedSum
from jaxdp.transforms._clipping import Clip, clip
from jaxdp.transforms._denoise import SMALLEST_DENOISED_SIDE, RmtDenoiseState, linear_layers, rmt_denoise
from jaxdp.transforms._dpsgd import DPSGD, adaptive_dpsgd, dpsgd
from jaxdp.transforms._grape import GRAPE, GrapeState, grape
from jaxdp.transforms._noise import GaussianNoiseState, add_gaussian_noise
from jaxdp.transforms._noisy_gradient import NoisyGradient
from jaxdp.transforms._spec import ClipSpec
from jaxdp.transforms._utility import predicted_cosine
from jaxdp.transforms._zeroth_order import ZerothOrderState, zeroth_order

__all__ = [
    "DPSGD",
    "GRAPE",
    "SMALLEST_DENOISED_SIDE",
    "AdaptiveClip",
    "AdaptiveClipState",
    "Clip",
    "ClipSpec",
    "ClippedSum",
    "CorrectedAdamState",
    "GaussianNoiseState",
    "GrapeState",
    "NoisyGradient",
    "Prediction",
    "RmtDenoiseState",
    "ZerothOrderState",
    "adaptive_clip",
    "adaptive_dpsgd",
    "add_gaussian_noise",
    "clip",
    "dpsgd",
    "grape",
    "linear_layers",
    "predicted_cosine",
    "prune_blocks",
    "rmt_denoise",
    "scale_by_corrected_adam",
    "zeroth_order",
]
