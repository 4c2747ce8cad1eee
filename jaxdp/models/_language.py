"""The loss of one record under a causal language model, as a function of the trained parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxdp._shown import of_shapes

from ._layers import widen
from ._llama import LlamaDecoder


class TokenExample(NamedTuple):
    """A tokenised record, padded on the right; in a batch every field has a leading axis.

    With a second axis it is all records of one user, filled up with empty ones: the unit that privacy protects.

    Attributes:
        ids: token ids, [seq] or [records, seq].
        mask: true where `ids` holds a token, [seq] or [records, seq].
    """

    __repr__ = of_shapes

    ids: Any
    mask: Any


class HiddenTokens(NamedTuple):
    """As `TokenExample`, with the stored output of frozen layers.

    Attributes:
        ids: token ids, which are predicted, [seq] or [records, seq].
        mask: true where `ids` holds a token.
        hidden: what `LlamaDecoder.below` returns, [seq, hidden] or [records, seq, hidden].
    """

    __repr__ = of_shapes

    ids: Any
    mask: Any
    hidden: Any


def next_token_loss(
    logits: Float[Array, "seq vocab"], ids: Int[Array, "seq"], mask: Bool[Array, "seq"]
) -> Float[Array, ""]:
    """Mean of ``-log p(token | tokens before it)`` over the tokens of one record but the first.

    The first token has nothing before it, and padded places count neither as tokens nor in the mean. A record of fewer
    than two tokens has loss 0. The mean is of this record alone, so a long record weighs as much as a short one.

    Args:
        logits: of the next token after each token.
        ids: token ids.
        mask: true where `ids` holds a token.

    Returns:
        The loss in nats per token, float32 or wider; its exponential is the record's perplexity.

    Example:
        >>> import jax.numpy as jnp
        >>> ids, mask = jnp.array([3, 1, 2, 0]), jnp.array([True, True, True, False])
        >>> round(float(next_token_loss(jnp.zeros((4, 8)), ids, mask)), 4)
        2.0794
    """
    wide, targets, counted = widen(logits[:-1]), ids[1:], mask[1:] & mask[:-1]
    # A comparison in place of a lookup: its gradient needs no scatter.
    chosen = jnp.arange(wide.shape[1], dtype=targets.dtype)[None, :] == targets[:, None]
    losses = jax.nn.logsumexp(wide, axis=1) - jnp.sum(jnp.where(chosen, wide, jnp.zeros_like(wide)), axis=1)
    # A select, not a product: what stands in a padded place must not reach the sum, not even a NaN.
    total = jnp.sum(jnp.where(counted, losses, jnp.zeros_like(losses)))
    return total / jnp.maximum(jnp.sum(counted), 1).astype(total.dtype)


def record_loss(decoder: LlamaDecoder, example: TokenExample | HiddenTokens) -> Float[Array, ""]:
    """The loss of one record, or the mean loss of one user's records, each weighing the same.

    Args:
        decoder: the model.
        example: one record or one user. Records without a token are left out of the mean.

    Returns:
        The loss in nats per token, float32 or wider.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxdp import models
        >>> config = models.LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        ...                             num_attention_heads=4)
        >>> decoder = models.LlamaDecoder(config, rngs=nnx.Rngs(0))
        >>> user = models.TokenExample(jnp.ones((2, 5), jnp.int32), jnp.array([[True] * 5, [False] * 5]))
        >>> record = models.TokenExample(user.ids[0], user.mask[0])
        >>> bool(jnp.isclose(record_loss(decoder, user), record_loss(decoder, record)))
        True
    """
    if example.ids.ndim == 2:
        losses = jax.vmap(lambda record: record_loss(decoder, record))(example)
        real = jnp.any(example.mask, axis=1)
        total = jnp.sum(jnp.where(real, losses, jnp.zeros_like(losses)))
        return total / jnp.maximum(jnp.sum(real), 1).astype(total.dtype)
    hidden = example.hidden if isinstance(example, HiddenTokens) else decoder.below(example.ids)
    return next_token_loss(decoder.logits(decoder.above(hidden)), example.ids, example.mask)


def token_loss(graphdef: nnx.GraphDef, *frozen: Any) -> Callable[[Any, TokenExample | HiddenTokens], Float[Array, ""]]:
    """The loss of one example as ``loss(params, example)``, from a split `LlamaDecoder`; see `record_loss`.

    Args:
        graphdef: the structure, from ``nnx.split(decoder, trainable_filter(spec, decoder), ...)``.
        frozen: the remaining states of that split. Inside ``jax.jit`` give them as traced arguments, so that
            the frozen weights do not become constants of the compiled program.

    Returns:
        A function of the trained state and one example.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxdp import models
        >>> config = models.LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        ...                             num_attention_heads=4)
        >>> decoder = models.add_lora(models.LlamaDecoder(config, rngs=nnx.Rngs(0)), rank=2, rngs=nnx.Rngs(1))
        >>> graphdef, params, frozen = nnx.split(decoder, models.trainable_filter("lora", decoder), ...)
        >>> loss = models.token_loss(graphdef, frozen)
        >>> loss(params, models.TokenExample(jnp.arange(5), jnp.ones(5, bool))).shape
        ()
    """

    def loss(params: Any, example: TokenExample | HiddenTokens) -> Float[Array, ""]:
        return record_loss(nnx.merge(graphdef, params, *frozen), example)

    return loss
