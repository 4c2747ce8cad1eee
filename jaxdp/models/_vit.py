"""A vision transformer in Flax NNX for one image at a time; a caller vmaps it."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ._layers import Dense, LayerNorm, SelfAttention
from ._stack import run_stack, stack_layers
from ._vit_config import ViTConfig


class VisionLayer(nnx.Module):
    """One pre-LayerNorm transformer layer."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        size, stddev, eps = config.hidden_size, config.initializer_range, config.layer_norm_eps
        self.attention_norm = LayerNorm(size, eps=eps)
        self.attention = SelfAttention(
            size,
            config.num_attention_heads,
            stddev=stddev,
            compute=config.compute,
            rngs=rngs,
            bias=config.qkv_bias,
        )
        self.mlp_norm = LayerNorm(size, eps=eps)
        self.up = Dense(size, config.intermediate_size, stddev=stddev, rngs=rngs)
        self.down = Dense(config.intermediate_size, size, stddev=stddev, rngs=rngs)

    def __call__(self, x: Float[Array, "seq hidden"]) -> Float[Array, "seq hidden"]:
        """Attention, then the feed-forward part, each of the normalised input and added to it."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.down(jax.nn.gelu(self.up(self.mlp_norm(x)), approximate=False))


class VisionTransformer(nnx.Module):
    """A vision transformer (Dosovitskiy et al. 2021) that maps one image to the logits of its classes.

    The image is cut into square patches, each mapped linearly to a token; a learned class token is put before them,
    learned positions are added, pre-LayerNorm transformer layers follow, and the head sees the normalised class token.

    The layers are stacked: each parameter of ``layers`` has a leading axis, over which a scan runs. The head starts at
    zero, so that the first noisy steps do not have to unlearn a random one.

    Args:
        config: the shape of the transformer.
        rngs: draws the initial weights; `load_vision` reads them from files instead.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> config = ViTConfig(image_size=8, patch_size=4, num_channels=1, hidden_size=16, num_hidden_layers=2,
        ...                    num_attention_heads=2, intermediate_size=24, num_classes=10)
        >>> model = VisionTransformer(config, rngs=nnx.Rngs(0))
        >>> jax.vmap(model)(jnp.zeros((3, 8, 8, 1))).shape
        (3, 10)

    References:
        Dosovitskiy et al., An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale, 2021.
    """

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        def draw(*shape: int) -> nnx.Param:
            return nnx.Param(jax.random.normal(rngs.params(), shape) * config.initializer_range)

        size = config.hidden_size
        self.config = config
        self.patch = Dense(config.num_channels * config.patch_size**2, size, stddev=config.initializer_range, rngs=rngs)
        self.class_token = draw(size)
        self.position = draw(config.num_patches + 1, size)
        self.layers = stack_layers(lambda rngs: VisionLayer(config, rngs=rngs), config.num_hidden_layers, rngs)
        self.norm = LayerNorm(size, eps=config.layer_norm_eps)
        self.head = Dense(size, config.num_classes, stddev=0.0, rngs=rngs)

    def __call__(self, image: Float[Array, "height width channels"]) -> Float[Array, "classes"]:
        """Logits of one image.

        Args:
            image: pixels, scaled as the weights expect them; height and width are ``config.image_size``.

        Returns:
            One number a class.

        Raises:
            ValueError: an image of another size.
        """
        return self.head(self.hidden_states(image)[0])

    def hidden_states(self, image: Float[Array, "height width channels"]) -> Float[Array, "tokens hidden"]:
        """The normalised output of the last layer: the class token, then one row a patch, row by row."""
        config = self.config
        expected = (config.image_size, config.image_size, config.num_channels)
        if image.shape != expected:
            raise ValueError(f"the image has shape {image.shape}, but the model was made for {expected}: resize it.")
        tokens = self.patch(config.compute.cast(_patches(image, config.patch_size)))
        class_token = self.class_token[...].astype(tokens.dtype)[None, :]
        x = jnp.concatenate([class_token, tokens]) + self.position[...].astype(tokens.dtype)
        return self.norm(run_stack(self.layers, x, compute=config.compute))


def _patches(image: Float[Array, "height width channels"], size: int) -> Float[Array, "patches features"]:
    """Square patches, row by row, each with its channels first as in a convolution's kernel."""
    rows, columns, channels = image.shape[0] // size, image.shape[1] // size, image.shape[2]
    blocks = jnp.reshape(image, (rows, size, columns, size, channels))
    return jnp.reshape(jnp.transpose(blocks, (0, 2, 4, 1, 3)), (rows * columns, -1))
