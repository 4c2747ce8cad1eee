"""The embeddings and the layer of a BERT or RoBERTa encoder."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ._config import BertConfig
from ._layers import Dense, LayerNorm, SelfAttention, dropout, split_key


class Embeddings(nnx.Module):
    """Sum of word, position and token-type embeddings, normalised."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        def table(rows: int) -> nnx.Param:
            draw = jax.random.normal(rngs.params(), (rows, config.hidden_size))
            return nnx.Param(draw * config.initializer_range)

        self.word = table(config.vocab_size)
        self.position = table(config.max_position_embeddings)
        self.token_type = table(config.type_vocab_size)
        self.norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = config.dropout
        self.first_position = config.first_position
        self.compute = config.compute

    def __call__(
        self, ids: Int[Array, "seq"], token_types: Int[Array, "seq"] | None, key: Array | None
    ) -> Float[Array, "seq hidden"]:
        """The input of the first layer."""
        words = jnp.take(self.word[...], ids, axis=0, mode="clip")
        # Every example has the same positions: a slice has a far cheaper gradient than a gather.
        positions = self.position[self.first_position : self.first_position + ids.shape[0]]
        if token_types is None:
            types = self.token_type[:1]
        else:
            types = jnp.take(self.token_type[...], token_types, axis=0, mode="clip")
        return dropout(self.norm(self.compute.cast(words + positions + types)), self.dropout, key)


class Layer(nnx.Module):
    """One post-LayerNorm transformer layer."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        size, stddev, eps = config.hidden_size, config.initializer_range, config.layer_norm_eps
        self.attention = SelfAttention(
            size,
            config.num_attention_heads,
            stddev=stddev,
            compute=config.compute,
            rngs=rngs,
            dropout=config.dropout,
        )
        self.attention_norm = LayerNorm(size, eps=eps)
        self.up = Dense(size, config.intermediate_size, stddev=stddev, rngs=rngs)
        self.down = Dense(config.intermediate_size, size, stddev=stddev, rngs=rngs)
        self.output_norm = LayerNorm(size, eps=eps)
        self.dropout = config.dropout

    def __call__(
        self, x: Float[Array, "seq hidden"], mask: Bool[Array, "seq"], key: Array | None
    ) -> Float[Array, "seq hidden"]:
        """Attention, then the feed-forward part, each added to its input and normalised."""
        weights_key, attention_key, output_key = split_key(key, 3)
        attended = dropout(self.attention(x, mask, weights_key), self.dropout, attention_key)
        x = self.attention_norm(x + attended)
        inner = jax.nn.gelu(self.up(x), approximate=False)
        return self.output_norm(x + dropout(self.down(inner), self.dropout, output_key))
