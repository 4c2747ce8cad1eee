"""The loss of one record under a causal language model, as a function of the trained parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ._layers import widen
from ._llama import LlamaDecoder


class TokenExample(NamedTuple):
    """A tokenised record, padded on the right; in a batch every field has a leading axis.

    Attributes:
        ids: token ids, [seq].
        mask: true where `ids` holds a token, [seq].
    """

    ids: Any
    mask: Any


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


def token_loss(graphdef: nnx.GraphDef, *frozen: Any) -> Callable[[Any, TokenExample], Float[Array, ""]]:
    """The loss of one record as ``loss(params, example)``, from a split `LlamaDecoder`; see `next_token_loss`.

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

    def loss(params: Any, example: TokenExample) -> Float[Array, ""]:
        decoder: LlamaDecoder = nnx.merge(graphdef, params, *frozen)
        return next_token_loss(decoder(example.ids), example.ids, example.mask)

    return loss
