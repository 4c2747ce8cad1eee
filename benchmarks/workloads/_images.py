"""Two classifiers of small images: a vision transformer and a residual convolutional net with group norms."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from benchmarks.workloads._layers import (
    Params,
    block,
    class_loss,
    dense,
    init_block,
    init_dense,
    init_norm,
    layer_norm,
)
from benchmarks.workloads._workload import Workload

CLASSES, CHANNELS = 10, 3


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    size: int = 32
    patch: int = 4
    width: int = 192
    layers: int = 6
    heads: int = 3

    @property
    def seq(self) -> int:
        return (self.size // self.patch) ** 2


@dataclasses.dataclass(frozen=True)
class ConvConfig:
    size: int = 32
    widths: tuple[int, ...] = (32, 64, 128)
    blocks: int = 2
    groups: int = 8


def init_conv(key: Array, size: int, channels: int, features: int) -> Params:
    kernel = jax.random.normal(key, (size, size, channels, features))
    return {"kernel": kernel * (size * size * channels / 2) ** -0.5}


def conv(p: Params, x: Array, stride: int = 1, padding: str = "SAME") -> Array:
    y = lax.conv_general_dilated(
        x[None], p["kernel"].astype(x.dtype), (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0]
    return y + p["bias"].astype(x.dtype)[None, None, :] if "bias" in p else y


def group_norm(p: Params, x: Array, groups: int) -> Array:
    height, width, channels = x.shape
    wide = x.astype(jnp.float32).reshape(height, width, groups, channels // groups)
    centred = wide - jnp.mean(wide, axis=(0, 1, 3), keepdims=True)
    unit = centred * lax.rsqrt(jnp.mean(jnp.square(centred), axis=(0, 1, 3), keepdims=True) + 1e-5)
    return (unit.reshape(x.shape) * p["scale"][None, None, :] + p["bias"][None, None, :]).astype(x.dtype)


def init_vit(key: Array, config: ViTConfig) -> Params:
    patch, position, head, *layers = jax.random.split(key, 3 + config.layers)
    embedding = init_conv(patch, config.patch, CHANNELS, config.width)
    return {
        "patch": {**embedding, "bias": jnp.zeros(config.width)},
        "position": {"embedding": 0.02 * jax.random.normal(position, (config.seq, config.width))},
        "layers": [init_block(k, config.width) for k in layers],
        "norm": init_norm(config.width),
        "head": init_dense(head, config.width, CLASSES),
    }


def vit_loss(params: Params, example: dict[str, Array], *, config: ViTConfig, dtype: Any) -> Array:
    patches = conv(params["patch"], example["image"].astype(dtype), config.patch, "VALID")
    hidden = patches.reshape(config.seq, config.width) + params["position"]["embedding"].astype(dtype)
    for p in params["layers"]:
        hidden = block(p, hidden, config.heads, causal=False)
    pooled = jnp.mean(layer_norm(params["norm"], hidden), axis=0, keepdims=True)
    return class_loss(dense(params["head"], pooled)[0], example["label"])


def init_conv_net(key: Array, config: ConvConfig) -> Params:
    stem, head, *rest = jax.random.split(key, 2 + 3 * len(config.widths) * config.blocks)
    keys = iter(rest)
    channels, stages = config.widths[0], []
    for width in config.widths:
        blocks = []
        for _ in range(config.blocks):
            p = {
                "first": init_conv(next(keys), 3, channels, width),
                "first_norm": init_norm(width),
                "second": init_conv(next(keys), 3, width, width),
                "second_norm": init_norm(width),
            }
            shortcut = next(keys)
            if channels != width:
                p["shortcut"] = init_conv(shortcut, 1, channels, width)
            blocks.append(p)
            channels = width
        stages.append(blocks)
    return {
        "stem": init_conv(stem, 3, CHANNELS, config.widths[0]),
        "stem_norm": init_norm(config.widths[0]),
        "stages": stages,
        "head": init_dense(head, config.widths[-1], CLASSES),
    }


def conv_net_loss(params: Params, example: dict[str, Array], *, config: ConvConfig, dtype: Any) -> Array:
    x = conv(params["stem"], example["image"].astype(dtype))
    x = jax.nn.relu(group_norm(params["stem_norm"], x, config.groups))
    for blocks in params["stages"]:
        for p in blocks:
            # A stage that widens also halves the image.
            stride = 2 if "shortcut" in p else 1
            y = jax.nn.relu(group_norm(p["first_norm"], conv(p["first"], x, stride), config.groups))
            y = group_norm(p["second_norm"], conv(p["second"], y), config.groups)
            x = jax.nn.relu(y + (conv(p["shortcut"], x, stride) if "shortcut" in p else x))
    pooled = jnp.mean(x, axis=(0, 1))[None, :]
    return class_loss(dense(params["head"], pooled)[0], example["label"])


def vit(name: str, title: str, config: ViTConfig, batch_size: int, dtype: Any) -> Workload:
    facts = {**dataclasses.asdict(config), "seq": config.seq}
    return _images(name, title, init_vit, vit_loss, config, batch_size, dtype, facts)


def conv_net(name: str, title: str, config: ConvConfig, batch_size: int, dtype: Any) -> Workload:
    return _images(name, title, init_conv_net, conv_net_loss, config, batch_size, dtype, dataclasses.asdict(config))


def _images(
    name: str, title: str, init: Any, loss: Any, config: Any, batch_size: int, dtype: Any, facts: dict[str, Any]
) -> Workload:
    def make_batch() -> dict[str, Array]:
        image = jax.random.normal(jax.random.key(1), (batch_size, config.size, config.size, CHANNELS))
        return {"image": image, "label": jax.random.randint(jax.random.key(2), (batch_size,), 0, CLASSES)}

    jitted = jax.jit(functools.partial(init, config=config))
    one = functools.partial(loss, config=config, dtype=dtype)
    return Workload(name, title, one, lambda: jitted(jax.random.key(0)), make_batch, batch_size, facts)
