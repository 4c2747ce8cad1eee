"""How a model is computed, which is no part of its weights: dtype, what is recomputed, which attention kernel."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a model is computed; the parameters and the files they are saved in do not depend on it.

    Args:
        dtype: dtype of the activations, such as ``"bfloat16"``; that of the parameters when None. Parameters are cast
            where they are used and stay as they are; norms, softmax and losses are float32 or wider.
        remat: what the backward pass computes anew: ``"none"`` keeps every layer's intermediate results, ``"dots"``
            keeps the results of matrix products with weights, ``"full"`` keeps the input of each layer only.
        attention: the `implementation` of ``jax.nn.dot_product_attention``: ``"cudnn"`` is the fused kernel of NVIDIA
            GPUs and needs a 16-bit `dtype`; None leaves the choice to JAX.

    Raises:
        ValueError: a dtype that is not a floating one, or an unknown word.

    Example:
        >>> Compute(dtype="bfloat16").remat
        'full'
    """

    dtype: str | None = None
    remat: str = "full"
    attention: str | None = None

    def __post_init__(self):
        if self.dtype is not None and self.dtype not in ("bfloat16", "float16", "float32", "float64"):
            raise ValueError(
                f'compute.dtype must be "bfloat16", "float16", "float32", "float64" or None: {self.dtype!r}.'
            )
        if self.remat not in ("none", "dots", "full"):
            raise ValueError(f'compute.remat must be "none", "dots" or "full", not {self.remat!r}.')
        if self.attention not in ("xla", "cudnn", None):
            raise ValueError(f'compute.attention must be "xla", "cudnn" or None, not {self.attention!r}.')
        if self.attention == "cudnn" and self.dtype not in ("bfloat16", "float16"):
            raise ValueError('compute.attention = "cudnn" needs 16-bit activations: set compute.dtype = "bfloat16".')

    def cast(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """`x` in the dtype of the activations."""
        return x if self.dtype is None else x.astype(jnp.dtype(self.dtype))

    def checkpoint(self, function: Callable[..., Any], *, in_scan: bool) -> Callable[..., Any]:
        """`function` with what `remat` says recomputed in the backward pass."""
        if self.remat == "none":
            return function
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if self.remat == "dots" else None
        # Inside a scan the loop itself keeps XLA from undoing the recomputation.
        return jax.checkpoint(function, policy=policy, prevent_cse=not in_scan)
