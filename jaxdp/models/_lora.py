"""Low-rank adapters: added beside dense layers, trained alone, merged into them."""

import fnmatch
import math
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from ._layers import Dense, LowRank
from ._selection import path_string

Model = TypeVar("Model", bound=nnx.Module)


def add_lora(
    model: Model,
    *,
    rank: int,
    rngs: nnx.Rngs,
    alpha: float | None = None,
    targets: Sequence[str] = ("*/query", "*/value"),
) -> Model:
    """A copy of a model with a low-rank adapter beside each dense layer that is named (Hu et al. 2022).

    ``y = x W + b + (alpha / rank) x A B`` with A [in, rank] drawn from N(0, 1/in) and B [rank, out] zero, so that the
    model computes at first what it computed before. ``trainable_filter("lora", model)`` selects A and B (and the head):
    W and b are closed over then, so that they are neither clipped nor noised, and cost no memory but their own.

    Args:
        model: any model of this package, or an NNX module made of its dense layers. Stacked layers get stacked
            adapters.
        rank: of the adapters.
        rngs: draws A.
        alpha: numerator of the scale; as large as `rank` when left out.
        targets: patterns of the dense layers' paths, as by `fnmatch.fnmatchcase`; ``*`` also matches ``/``.

    Returns:
        The copy; `merge_lora` undoes it.

    Raises:
        ValueError: a rank below 1, a scale that is not finite and positive, a pattern that matches no dense layer, or a
            layer that has an adapter already.

    Example:
        >>> from flax import nnx
        >>> from jaxdp import models
        >>> config = models.LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        ...                             num_attention_heads=4)
        >>> model = add_lora(models.LlamaDecoder(config, rngs=nnx.Rngs(0)), rank=2, rngs=nnx.Rngs(1))
        >>> models.trainable_paths("lora", model)[:2]
        ('layers/attention/query/lora/a', 'layers/attention/query/lora/b')

    References:
        Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2022.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, not {rank}.")
    scale = (rank if alpha is None else alpha) / rank
    if not 0 < scale < math.inf:
        raise ValueError(f"alpha must be finite and positive, not {alpha!r}.")
    copy = nnx.clone(model)
    layers = _dense_layers(copy)
    for pattern in targets:
        if not any(fnmatch.fnmatchcase(path, pattern) for path in layers):
            raise ValueError(
                f"target {pattern!r} matches no dense layer: paths look like {', '.join(sorted(layers)[:4])}."
            )
    for path, layer in layers.items():
        if not any(fnmatch.fnmatchcase(path, pattern) for pattern in targets):
            continue
        if layer.lora is not None:
            raise ValueError(f"{path} has an adapter already: merge it first, with merge_lora.")
        *stack, size_in, size_out = layer.kernel.shape
        dtype = layer.kernel[...].dtype
        a = jax.random.normal(rngs.params(), (*stack, size_in, rank), dtype) / math.sqrt(size_in)
        layer.lora = LowRank(a, jnp.zeros((*stack, rank, size_out), dtype), scale)
    return copy


def merge_lora(model: Model) -> Model:
    """A copy of a model without adapters whose kernels are ``W + scale A B``.

    Args:
        model: with adapters, or without.

    Returns:
        The copy. It computes what `model` computes, up to the rounding of the sum to the kernel's dtype.

    Example:
        ``merged = merge_lora(model)``; `save_pretrained` does so by itself.
    """
    copy = nnx.clone(model)
    for layer in _dense_layers(copy).values():
        if layer.lora is not None:
            kernel = layer.kernel[...]
            wide = jnp.promote_types(kernel.dtype, jnp.float32)
            a, b = layer.lora.a[...].astype(wide), layer.lora.b[...].astype(wide)
            product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
            layer.kernel = nnx.Param((kernel.astype(wide) + layer.lora.scale * product).astype(kernel.dtype))
            layer.lora = nnx.data(None)
    return copy


def has_lora(model: nnx.Module) -> bool:
    """Whether a model has adapters."""
    return any(layer.lora is not None for layer in _dense_layers(model).values())


def _dense_layers(model: nnx.Module) -> dict[str, Dense]:
    """The dense layers of a model by their paths."""
    return {path_string(path): node for path, node in nnx.iter_modules(model) if isinstance(node, Dense)}
