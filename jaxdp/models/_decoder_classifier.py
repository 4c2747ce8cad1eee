"""A classifier of sequences on a decoder: hidden states, their mean or last one, linear head."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ._bert import masked_mean
from ._classifier import public_vector
from ._layers import Constant, Dense, widen
from ._llama import LlamaDecoder


class DecoderClassifier(nnx.Module):
    """Logits of one text from a causal decoder: ``head((f / ||f|| - center) * scale)``.

    The features f are the mean of the normalised hidden states over the text (``"mean"``), or that of its last token
    (``"last"``), which has seen all others. The head starts at zero. Center and scale are **public** constants, as in
    `SequenceClassifier`.

    Args:
        decoder: gives the hidden states; its output head plays no part.
        num_classes: number of classes, at least 2.
        pooling: what the head sees.
        label_names: their names in the order of the logits; ``LABEL_0``, ``LABEL_1``, ... when left out.
        normalize: divide the features of each text by their Euclidean norm.
        feature_center: subtracted from the features, one number a feature.
        feature_scale: multiplies the features, one number in all or one a feature.

    Raises:
        ValueError: fewer than 2 classes, a number of names that is not `num_classes`, or constants of a wrong shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxdp import models
        >>> config = models.LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        ...                             num_attention_heads=4)
        >>> model = models.DecoderClassifier(models.LlamaDecoder(config, rngs=nnx.Rngs(0)), 3)
        >>> model(jnp.arange(5), jnp.ones(5, bool)).shape
        (3,)
    """

    def __init__(
        self,
        decoder: LlamaDecoder,
        num_classes: int,
        *,
        pooling: Literal["mean", "last"] = "mean",
        label_names: tuple[str, ...] | None = None,
        normalize: bool = True,
        feature_center: np.ndarray | Array | None = None,
        feature_scale: float | np.ndarray | Array | None = None,
    ):
        names = tuple(f"LABEL_{i}" for i in range(num_classes)) if label_names is None else tuple(label_names)
        if num_classes < 2 or len(names) != num_classes or len(set(names)) != num_classes:
            raise ValueError(f"label_names must be {num_classes} different names, at least 2, not {names}.")
        if pooling not in ("mean", "last"):
            raise ValueError(f'pooling is {pooling!r}: use "mean" or "last".')
        size = decoder.config.hidden_size
        self.decoder = decoder
        self.pooling = pooling
        self.label_names = names
        self.normalize = normalize
        self.feature_center: Constant | None = nnx.data(public_vector("feature_center", feature_center, size))
        self.feature_scale: Constant | None = nnx.data(public_vector("feature_scale", feature_scale, size))
        self.head = Dense(size, num_classes, stddev=0.0, rngs=nnx.Rngs(0))

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.label_names)

    def __call__(self, ids: Int[Array, "seq"], mask: Bool[Array, "seq"]) -> Float[Array, "classes"]:
        """Logits of one text, padded on the right where `mask` is false."""
        return self.from_hidden(self.decoder.below(ids), mask)

    def from_hidden(self, hidden: Float[Array, "seq hidden"], mask: Bool[Array, "seq"]) -> Float[Array, "classes"]:
        """Logits from what `LlamaDecoder.below` returns."""
        return self.head(self.features(hidden, mask))

    def features(self, hidden: Float[Array, "seq hidden"], mask: Bool[Array, "seq"]) -> Float[Array, "hidden"]:
        """What the head sees, from what `LlamaDecoder.below` returns."""
        states = self.decoder.above(hidden)
        if self.pooling == "mean":
            pooled = masked_mean(states, mask)
        else:
            pooled = jnp.take(states, jnp.maximum(jnp.sum(mask) - 1, 0), axis=0, mode="clip")
        features = widen(pooled)
        if self.normalize:
            features = features * jax.lax.rsqrt(jnp.sum(jnp.square(features)) + 1e-12)
        if self.feature_center is not None:
            features = features - self.feature_center[...].astype(features.dtype)
        if self.feature_scale is not None:
            features = features * self.feature_scale[...].astype(features.dtype)
        return features
