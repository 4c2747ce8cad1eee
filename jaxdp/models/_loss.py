"""The loss of one example, as a function of the trained parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxdp._shown import of_shapes

from ._classifier import SequenceClassifier
from ._layers import widen


class TextExample(NamedTuple):
    """A tokenised text and its label; in a batch every field has a leading axis.

    Attributes:
        ids: token ids, [seq].
        mask: true where `ids` holds a token, [seq].
        label: index of the class.
        key: random key of this example's dropout; None without dropout.
    """

    __repr__ = of_shapes

    ids: Any
    mask: Any
    label: Any
    key: Any = None


class HiddenExample(NamedTuple):
    """The stored input of a higher layer in place of the ids, when the layers below are frozen.

    Attributes:
        hidden: the input of layer `start`, [seq, hidden].
        mask: true where there is a token, [seq].
        label: index of the class.
        key: random key of this example's dropout; None without dropout.
        below: the means of the levels under `start`, [start, hidden], for a head that sees every layer.
    """

    __repr__ = of_shapes

    hidden: Any
    mask: Any
    label: Any
    key: Any = None
    below: Any = None


class FeatureExample(NamedTuple):
    """What the head sees in place of the ids, when only the head is trained.

    Attributes:
        features: the output of `SequenceClassifier.features`, [features].
        label: index of the class.
    """

    __repr__ = of_shapes

    features: Any
    label: Any


def cross_entropy(logits: Float[Array, "classes"], label: Int[Array, ""] | int) -> Float[Array, ""]:
    """``-log softmax(logits)[label]`` of one example, in float32 or wider.

    Args:
        logits: one number a class.
        label: index of the true class.

    Returns:
        The loss in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(cross_entropy(jnp.zeros(4), 1)), 4)
        1.3863
    """
    wide = widen(logits)
    # A one-hot product in place of a lookup: its gradient needs no scatter.
    chosen = jnp.sum(jax.nn.one_hot(label, wide.shape[0], dtype=wide.dtype) * wide)
    return jax.nn.logsumexp(wide) - chosen


def example_loss(
    graphdef: nnx.GraphDef, *frozen: Any, start: int = 0
) -> Callable[[Any, TextExample | HiddenExample | FeatureExample], Float[Array, ""]]:
    """The loss of one example as ``loss(params, example)``, from a split `SequenceClassifier`.

    Args:
        graphdef: the structure, from ``nnx.split(model, trainable_filter(spec, model), ...)``.
        frozen: the remaining states of that split. Inside ``jax.jit`` give them as traced arguments, so that
            the frozen weights do not become constants of the compiled program.
        start: the layer that a `HiddenExample` enters.

    Returns:
        A function of the trained state and one example; the type of the example tells where it enters.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxdp import models
        >>> config = models.BertConfig(50, hidden_size=8, num_attention_heads=2, intermediate_size=16,
        ...                            num_hidden_layers=2, max_position_embeddings=16)
        >>> model = models.SequenceClassifier(models.BertEncoder(config, rngs=nnx.Rngs(0)), 3)
        >>> graphdef, params, frozen = nnx.split(model, models.trainable_filter("head", model), ...)
        >>> loss = models.example_loss(graphdef, frozen)
        >>> example = models.TextExample(jnp.arange(5), jnp.ones(5, bool), jnp.array(2))
        >>> round(float(loss(params, example)), 4)
        1.0986
    """

    def loss(params: Any, example: TextExample | HiddenExample | FeatureExample) -> Float[Array, ""]:
        model: SequenceClassifier = nnx.merge(graphdef, params, *frozen)
        if isinstance(example, FeatureExample):
            logits = model.head(example.features)
        elif isinstance(example, HiddenExample):
            logits = model.from_hidden(example.hidden, example.mask, start, below=example.below, key=example.key)
        else:
            logits = model(example.ids, example.mask, key=example.key)
        return cross_entropy(logits, example.label)

    return loss
