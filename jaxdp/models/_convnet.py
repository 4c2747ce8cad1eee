"""A small convolutional network in Flax NNX for one image at a time; a caller vmaps it."""

import dataclasses
import itertools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ._checks import check_whole
from ._layers import Dense, widen

_SIZES = ("image_size", "num_channels", "kernel_size", "hidden_size", "num_classes")
_GROUPS = 4


@dataclasses.dataclass(frozen=True)
class ConvNetConfig:
    """The shape of a small convolutional network.

    Args:
        image_size: height and width of an image, in pixels.
        num_channels: channels of an image.
        channels: channels of each convolution; each halves height and width.
        kernel_size: side of the kernels, in pixels, at least 2.
        hidden_size: width of the dense layer before the head.
        num_classes: number of classes.
        norm: ``"group"`` normalises the output of each convolution over each of 4 groups of its channels.

    Raises:
        ValueError: a size below 1, more halvings than the image has, or channels that are no multiple of the groups.

    Example:
        >>> ConvNetConfig().sides
        (28, 14, 7)
    """

    image_size: int = 28
    num_channels: int = 1
    channels: tuple[int, ...] = (16, 32)
    kernel_size: int = 5
    hidden_size: int = 32
    num_classes: int = 10
    norm: Literal["none", "group"] = "none"

    def __post_init__(self):
        for name, size in [
            *((name, getattr(self, name)) for name in _SIZES),
            *(("channels", c) for c in self.channels),
        ]:
            check_whole(name, size)
        if not self.channels or self.kernel_size < 2:
            raise ValueError(
                f"channels must name at least one convolution and kernel_size be at least 2: {self.channels}, "
                f"{self.kernel_size}."
            )
        if self.image_size % 2 ** len(self.channels):
            raise ValueError(
                f"image_size {self.image_size} must be a multiple of {2 ** len(self.channels)}, as each of the "
                f"{len(self.channels)} convolutions halves it: give fewer channels."
            )
        if self.norm not in ("none", "group"):
            raise ValueError(f'norm must be "none" or "group", not {self.norm!r}.')
        if self.norm == "group" and any(size % _GROUPS for size in self.channels):
            raise ValueError(f'channels {self.channels} must be multiples of {_GROUPS} with norm = "group".')

    @property
    def sides(self) -> tuple[int, ...]:
        """Height and width of the image and of the output of each convolution."""
        return tuple(self.image_size >> i for i in range(len(self.channels) + 1))

    def to_dict(self) -> dict[str, Any]:
        """The object that ``config.json`` holds."""
        return {"model_type": "jaxdp_convnet"} | dataclasses.asdict(self) | {"channels": list(self.channels)}


class Convolution(nnx.Module):
    """A convolution of stride 2 whose kernel is a matrix [size * size * in, out], rows of the patch first.

    Patches are gathered by strided slices and multiplied with the kernel: a matrix product has a cheaper norm of one
    example's gradient than a convolution, and is faster on CPUs.
    """

    def __init__(self, size_in: int, size_out: int, kernel_size: int, groups: int | None, *, rngs: nnx.Rngs):
        patch = kernel_size**2 * size_in
        self.dense = Dense(patch, size_out, stddev=1 / math.sqrt(patch), rngs=rngs)
        self.kernel_size = kernel_size
        self.groups = groups

    def __call__(self, x: Float[Array, "height width in"]) -> Float[Array, "lower narrower out"]:
        """The output, without its activation."""
        size, height, width = self.kernel_size, x.shape[0] // 2, x.shape[1] // 2
        before = (size - 2) // 2
        padded = jnp.pad(x, ((before, size - 2 - before), (before, size - 2 - before), (0, 0)))
        shifted = [
            padded[row : row + 2 * height - 1 : 2, column : column + 2 * width - 1 : 2]
            for row in range(size)
            for column in range(size)
        ]
        patches = jnp.reshape(jnp.concatenate(shifted, axis=-1), (height * width, -1))
        y = self.dense(patches)
        if self.groups is not None:
            y = _normalised(y, self.groups)
        return jnp.reshape(y, (height, width, -1))


class ConvNet(nnx.Module):
    r"""Convolutions of stride 2, a dense layer and a linear head: :math:`\tanh` after each but the last.

    Bounded activations lose less to clipping than rectified ones (Papernot et al. 2021). The head starts at zero, so
    that the first noisy steps do not have to unlearn a random one. Group normalisation has no parameters of its own.

    Args:
        config: the shape of the network.
        rngs: draws the initial weights.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> model = ConvNet(ConvNetConfig(image_size=8, channels=(4,), num_classes=3), rngs=nnx.Rngs(0))
        >>> jax.vmap(model)(jnp.zeros((2, 8, 8, 1))).shape
        (2, 3)

    References:
        Papernot et al., Tempered Sigmoid Activations for Deep Learning with Differential Privacy, 2021; Wu and He,
        Group Normalization, 2018.
    """

    def __init__(self, config: ConvNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        groups = _GROUPS if config.norm == "group" else None
        sizes = (config.num_channels, *config.channels)
        self.convolutions = nnx.List(
            [
                Convolution(size_in, size_out, config.kernel_size, groups, rngs=rngs)
                for size_in, size_out in itertools.pairwise(sizes)
            ]
        )
        features = config.sides[-1] ** 2 * config.channels[-1]
        self.dense = Dense(features, config.hidden_size, stddev=1 / math.sqrt(features), rngs=rngs)
        self.head = Dense(config.hidden_size, config.num_classes, stddev=0.0, rngs=rngs)

    def __call__(self, image: Float[Array, "height width channels"]) -> Float[Array, "classes"]:
        """Logits of one image.

        Args:
            image: pixels; height and width are ``config.image_size``.

        Returns:
            One number a class.

        Raises:
            ValueError: an image of another size.
        """
        config = self.config
        expected = (config.image_size, config.image_size, config.num_channels)
        if image.shape != expected:
            raise ValueError(f"the image has shape {image.shape}, but the model was made for {expected}: resize it.")
        x = image
        for convolution in self.convolutions:
            x = jnp.tanh(convolution(x))
        return self.head(jnp.tanh(self.dense(jnp.reshape(x, (-1,)))))


def _normalised(x: Float[Array, "places channels"], groups: int) -> Float[Array, "places channels"]:
    """Mean 0 and variance 1 over the places and channels of each group, in float32 or wider."""
    wide = jnp.reshape(widen(x), (x.shape[0], groups, -1))
    centred = wide - jnp.mean(wide, axis=(0, 2), keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=(0, 2), keepdims=True)
    return jnp.reshape(centred * jax.lax.rsqrt(variance + 1e-5), x.shape).astype(x.dtype)
