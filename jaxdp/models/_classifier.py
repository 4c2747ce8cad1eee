"""A classifier of sequences: encoder, masked means, optional public normalisation, linear head."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ._bert import BertEncoder
from ._layers import Constant, Dense, split_key


class SequenceClassifier(nnx.Module):
    """Logits of one text: ``head(normalise(mean_{t in mask} encoder(ids)_t))``.

    With ``pooling="every_layer"`` the head sees the means of the embeddings and of every layer's output side by side:
    lower layers keep what a general-purpose last layer has dropped.

    The head starts at zero, so that the first noisy steps do not have to unlearn a random one. With `normalize`,
    `feature_center` and `feature_scale` the features f become ``(f / ||f|| - center) * scale``; center and scale are
    **public** constants: they must not be computed from the private examples. With several levels each mean is divided
    by its own norm and by the square root of their number, so that the features have norm 1.

    Args:
        encoder: gives the hidden states.
        num_classes: number of classes, at least 2.
        pooling: what the head sees, ``"last"`` or ``"every_layer"``.
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
        pooling: Literal["last", "every_layer"] = "last",
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
        if pooling not in ("last", "every_layer"):
            raise ValueError(f'pooling is {pooling!r}: use "last" or "every_layer".')
        self.pooling = pooling
        self.encoder = encoder
        size = encoder.config.hidden_size * self.num_levels
        self.label_names = names
        self.normalize = normalize
        self.feature_center: Constant | None = nnx.data(public_vector("feature_center", feature_center, size))
        self.feature_scale: Constant | None = nnx.data(public_vector("feature_scale", feature_scale, size))
        self.head = Dense(size, num_classes, stddev=0.0, rngs=nnx.Rngs(0))

    @property
    def num_levels(self) -> int:
        """How many masked means the head sees."""
        return 1 if self.pooling == "last" else self.encoder.config.num_hidden_layers + 1

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
        below, above = split_key(key, 2)
        hidden = self.encoder.embed(ids, attention_mask, key=below, deterministic=deterministic)
        return self.from_hidden(hidden, attention_mask, 0, key=above, deterministic=deterministic)

    def from_hidden(
        self,
        hidden: Float[Array, "seq hidden"],
        attention_mask: Bool[Array, "seq"] | Int[Array, "seq"],
        start: int,
        *,
        below: Float[Array, "start hidden"] | None = None,
        key: Array | None = None,
        deterministic: bool = False,
    ) -> Float[Array, "classes"]:
        """Logits from the input of layer `start`; arguments as in `BertEncoder.layers_from`.

        With ``pooling="every_layer"``, `below` holds the means of the levels under `start`.
        """
        means = self.encoder.means_from(hidden, attention_mask, start, key=key, deterministic=deterministic)
        if self.pooling == "every_layer" and start > 0:
            if below is None:
                raise ValueError('pooling is "every_layer": give the means of the levels below, below=...')
            means = jnp.concatenate([below.astype(means.dtype), means])
        return self.head(self.features(means))

    def features(self, means: Float[Array, "levels hidden"]) -> Float[Array, "features"]:
        """What the head sees, from the masked means of all levels (of which it may use the last one only)."""
        means = means[-self.num_levels :]
        if self.normalize:
            # The floor keeps the gradient of a fully masked (all-zero) text finite.
            squares = jnp.sum(jnp.square(means), axis=1, keepdims=True)
            means = means * jax.lax.rsqrt(self.num_levels * (squares + 1e-12))
        features = means.reshape(-1)
        if self.feature_center is not None:
            features = features - self.feature_center[...].astype(features.dtype)
        if self.feature_scale is not None:
            features = features * self.feature_scale[...].astype(features.dtype)
        return features


def public_vector(name: str, values: float | np.ndarray | Array | None, size: int) -> Constant | None:
    """A vector of public constants, one a feature; None stays None."""
    if values is None:
        return None
    array = np.asarray(values, np.float32)
    if array.shape not in ((), (size,)):
        raise ValueError(f"{name} must be one number or {size} of them, not an array of shape {array.shape}.")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} must hold finite numbers only.")
    return Constant(jnp.asarray(np.broadcast_to(array, (size,))))
