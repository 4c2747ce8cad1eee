"""A classifier of sequences: encoder, masked mean, optional public normalisation, linear head."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ._bert import BertEncoder
from ._layers import Constant, Dense


class SequenceClassifier(nnx.Module):
    """Logits of one text: ``head(normalise(mean_{t in mask} encoder(ids)_t))``.

    The head starts at zero, so that the first noisy steps do not have to unlearn a random one. With
    `normalize`, `feature_center` and `feature_scale` the features f become ``(f / ||f|| - center) * scale``;
    center and scale are **public** constants: they must not be computed from the private examples.

    Args:
        encoder: gives the hidden states.
        num_classes: number of classes, at least 2.
        label_names: their names in the order of the logits; ``LABEL_0``, ``LABEL_1``, ... when left out.
        normalize: divide the features of each text by their Euclidean norm.
        feature_center: subtracted from the features, one number a feature.
        feature_scale: multiplies the features, one number in all or one a feature.

    Raises:
        ValueError: fewer than 2 classes, a number of names that is not `num_classes`, or constants of a wrong
            shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxdp.models import BertConfig
        >>> config = BertConfig(vocab_size=50, hidden_size=8, num_attention_heads=2, intermediate_size=16,
        ...                     num_hidden_layers=2, max_position_embeddings=16)
        >>> model = SequenceClassifier(BertEncoder(config, rngs=nnx.Rngs(0)), 3)
        >>> model(jnp.arange(5), jnp.ones(5, bool)).shape
        (3,)
    """

    def __init__(
        self,
        encoder: BertEncoder,
        num_classes: int,
        *,
        label_names: tuple[str, ...] | None = None,
        normalize: bool = False,
        feature_center: np.ndarray | Array | None = None,
        feature_scale: float | np.ndarray | Array | None = None,
    ):
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, not {num_classes}.")
        names = tuple(f"LABEL_{i}" for i in range(num_classes)) if label_names is None else tuple(label_names)
        if len(names) != num_classes or len(set(names)) != num_classes:
            raise ValueError(f"label_names must be {num_classes} different names, not {names}.")
        size = encoder.config.hidden_size
        self.encoder = encoder
        self.label_names = names
        self.normalize = normalize
        self.feature_center: Constant | None = nnx.data(_public_vector("feature_center", feature_center, size))
        self.feature_scale: Constant | None = nnx.data(_public_vector("feature_scale", feature_scale, size))
        self.head = Dense(size, num_classes, stddev=0.0, rngs=nnx.Rngs(0))

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.label_names)

    def __call__(
        self,
        ids: Int[Array, "seq"],
        attention_mask: Bool[Array, "seq"] | Int[Array, "seq"],
        *,
        key: Array | None = None,
        deterministic: bool = False,
    ) -> Float[Array, "classes"]:
        """Logits of one text; arguments as in `BertEncoder.__call__`."""
        hidden = self.encoder(ids, attention_mask, key=key, deterministic=deterministic)
        return self.classify(self.encoder.pooled(hidden, attention_mask))

    def from_hidden(
        self,
        hidden: Float[Array, "seq hidden"],
        attention_mask: Bool[Array, "seq"] | Int[Array, "seq"],
        start: int,
        *,
        key: Array | None = None,
        deterministic: bool = False,
    ) -> Float[Array, "classes"]:
        """Logits from the input of layer `start`; arguments as in `BertEncoder.layers_from`."""
        hidden = self.encoder.layers_from(hidden, attention_mask, start, key=key, deterministic=deterministic)
        return self.classify(self.encoder.pooled(hidden, attention_mask))

    def classify(self, pooled: Float[Array, "hidden"]) -> Float[Array, "classes"]:
        """Logits from the mean hidden state of one text."""
        features = pooled
        if self.normalize:
            # The floor keeps the gradient of a fully masked (all-zero) text finite.
            features = features * jax.lax.rsqrt(jnp.sum(jnp.square(features)) + 1e-12)
        if self.feature_center is not None:
            features = features - self.feature_center[...].astype(features.dtype)
        if self.feature_scale is not None:
            features = features * self.feature_scale[...].astype(features.dtype)
        return self.head(features)


def _public_vector(name: str, values: float | np.ndarray | Array | None, size: int) -> Constant | None:
    """A vector of public constants, one a feature; None stays None."""
    if values is None:
        return None
    array = np.asarray(values, np.float32)
    if array.shape not in ((), (size,)):
        raise ValueError(f"{name} must be one number or {size} of them, not an array of shape {array.shape}.")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} must hold finite numbers only.")
    return Constant(jnp.asarray(np.broadcast_to(array, (size,))))
