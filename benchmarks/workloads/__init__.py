"""The models whose training step is measured, by name."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

from benchmarks.workloads._decoder import DecoderConfig, decoder
from benchmarks.workloads._images import ConvConfig, ViTConfig, conv_net, vit
from benchmarks.workloads._text import minilm
from benchmarks.workloads._workload import Scale, Workload

DEFAULT = ("w1", "w2", "w3", "w4-vit", "w4-conv")
# The preset for an accelerator takes part only when it is named.
NAMES = (*DEFAULT, "gpu")
_FAMILIES = {"w4": ("w4-vit", "w4-conv"), "all": DEFAULT}

_TINY_DECODER = {"width": 16, "layers": 2, "heads": 2, "vocab": 32, "seq": 8}

__all__ = ["DEFAULT", "NAMES", "DecoderConfig", "Scale", "Workload", "build", "decoder", "expand"]


def expand(names: Iterable[str]) -> tuple[str, ...]:
    """Names of workloads, with `w4` and `all` written out and without repetitions."""
    found = dict.fromkeys(each for name in names for each in _FAMILIES.get(name, (name,)))
    for name in found:
        if name not in NAMES:
            raise ValueError(f"workloads has {name!r}: use {', '.join((*NAMES, *_FAMILIES))}.")
    return tuple(found)


def build(
    name: str, scale: Scale = "full", *, dtype: Any = jnp.float32, batch_size: int | None = None, seq: int | None = None
) -> Workload:
    """A workload by name.

    Args:
      name: one of `NAMES`.
      scale: `"tiny"` keeps the structure and shrinks every size, to try the benchmark out.
      dtype: of activations and products; parameters and optimiser stay in float32.
      batch_size: another number of examples than the workload's own.
      seq: another sequence length (decoders only).
    """
    tiny = scale == "tiny"
    if name == "w1":
        length = 8 if tiny else 64
        size = batch_size or (4 if tiny else 64)
        return minilm(name, f"MiniLM classifier, T={length}, B={size}", scale, length, size, dtype)
    if name in ("w2", "w3", "gpu"):
        config, size = _decoder_config(name, tiny, seq)
        size = batch_size or size
        form = "scanned and checkpointed" if config.scanned else "unrolled"
        title = f"decoder d={config.width}, {config.layers} layers {form}, T={config.seq}, B={size}"
        return decoder(name, title, config, size, dtype)
    size = batch_size or (4 if tiny else 64)
    if name == "w4-vit":
        vit_config = ViTConfig(size=8, width=16, layers=2, heads=2) if tiny else ViTConfig()
        title = f"ViT d={vit_config.width}, {vit_config.layers} layers, {vit_config.seq} patches, B={size}"
        return vit(name, title, vit_config, size, dtype)
    if name == "w4-conv":
        conv_config = ConvConfig(size=8, widths=(8, 16), blocks=1, groups=4) if tiny else ConvConfig()
        pixels = f"{conv_config.size}x{conv_config.size}"
        return conv_net(name, f"residual conv net with GroupNorm, {pixels}, B={size}", conv_config, size, dtype)
    raise ValueError(f"workload is {name!r}: use {', '.join(NAMES)}.")


def _decoder_config(name: str, tiny: bool, seq: int | None) -> tuple[DecoderConfig, int]:
    scanned = name != "w2"
    if tiny:
        sizes, size = _TINY_DECODER, 4
    elif name == "gpu":
        sizes, size = {"width": 1024, "layers": 24, "heads": 16, "vocab": 32768, "seq": 1024}, 16
    else:
        sizes, size = {"seq": 32 if name == "w2" else 1024}, 64 if name == "w2" else 4
    return DecoderConfig(**{**sizes, **({} if seq is None else {"seq": seq})}, scanned=scanned), size
