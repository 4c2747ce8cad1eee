"""The loss of one image, as a function of the trained parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import nnx
from jaxtyping import Array, Float

from jaxdp._shown import of_shapes

from ._loss import cross_entropy
from ._vit import VisionTransformer


class ImageExample(NamedTuple):
    """An image and its label; in a batch every field has a leading axis.

    Attributes:
        image: pixels, [height, width, channels].
        label: index of the class.
    """

    __repr__ = of_shapes

    image: Any
    label: Any


def image_loss(graphdef: nnx.GraphDef, *frozen: Any) -> Callable[[Any, ImageExample], Float[Array, ""]]:
    """The cross-entropy of one image as ``loss(params, example)``, from a split `VisionTransformer`.

    Args:
        graphdef: the structure, from ``nnx.split(model, trainable_filter(spec, model), ...)``.
        frozen: the remaining states of that split; see `example_loss`.

    Returns:
        A function of the trained state and one example.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxdp import models
        >>> config = models.ViTConfig(image_size=8, patch_size=4, num_channels=1, hidden_size=16, num_hidden_layers=2,
        ...                           num_attention_heads=2, intermediate_size=24, num_classes=4)
        >>> graphdef, params = nnx.split(models.VisionTransformer(config, rngs=nnx.Rngs(0)))
        >>> example = models.ImageExample(jnp.zeros((8, 8, 1)), jnp.array(2))
        >>> round(float(models.image_loss(graphdef)(params, example)), 4)
        1.3863
    """

    def loss(params: Any, example: ImageExample) -> Float[Array, ""]:
        model: VisionTransformer = nnx.merge(graphdef, params, *frozen)
        return cross_entropy(model(example.image), example.label)

    return loss
