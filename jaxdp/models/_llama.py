"""A Llama-family decoder in Flax NNX for one example at a time; a caller vmaps it."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ._layers import Dense, RMSNorm, attend, heads, widen
from ._llama_config import LlamaConfig
from ._rope import rotate
from ._stack import run_stack, stack_layers


class GroupedAttention(nnx.Module):
    """Causal attention with rotary positions, in which several query heads share one head of keys and values."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        def dense(size_in: int, size_out: int) -> Dense:
            stddev = config.initializer_range
            return Dense(size_in, size_out, stddev=stddev, rngs=rngs, bias=config.attention_bias)

        width = config.head_dim * config.num_attention_heads
        narrow = config.head_dim * config.num_key_value_heads
        self.query = dense(config.hidden_size, width)
        self.key = dense(config.hidden_size, narrow)
        self.value = dense(config.hidden_size, narrow)
        self.output = dense(width, config.hidden_size)
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.compute = config.compute

    def __call__(
        self, x: Float[Array, "seq hidden"], cosines: Float[Array, "seq half"], sines: Float[Array, "seq half"]
    ) -> Float[Array, "seq hidden"]:
        """Attend to the token itself and to those before it."""
        query = rotate(heads(self.query(x), self.num_heads), cosines, sines)
        keys = rotate(heads(self.key(x), self.num_key_value_heads), cosines, sines)
        value = heads(self.value(x), self.num_key_value_heads)
        mixed = attend(query, keys, value, causal=True, compute=self.compute)
        return self.output(jnp.reshape(mixed, (x.shape[0], -1)))


class DecoderLayer(nnx.Module):
    """One pre-norm layer: attention, then a gated feed-forward part."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        def dense(size_in: int, size_out: int) -> Dense:
            return Dense(size_in, size_out, stddev=config.initializer_range, rngs=rngs, bias=config.mlp_bias)

        self.attention_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attention = GroupedAttention(config, rngs=rngs)
        self.mlp_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.gate = dense(config.hidden_size, config.intermediate_size)
        self.up = dense(config.hidden_size, config.intermediate_size)
        self.down = dense(config.intermediate_size, config.hidden_size)

    def __call__(
        self, x: Float[Array, "seq hidden"], cosines: Float[Array, "seq half"], sines: Float[Array, "seq half"]
    ) -> Float[Array, "seq hidden"]:
        """The layer's output."""
        x = x + self.attention(self.attention_norm(x), cosines, sines)
        normed = self.mlp_norm(x)
        return x + self.down(jax.nn.silu(self.gate(normed)) * self.up(normed))


class LlamaDecoder(nnx.Module):
    """A Llama-family decoder (Touvron et al. 2023) that maps the token ids of one example to next-token logits.

    ``h_0 = embedding[ids]`` and, for each layer, ``u = h + Attention(RMSNorm(h))``,
    ``h = u + W_down (silu(W_gate n) * W_up n)`` with ``n = RMSNorm(u)``; the logits are ``RMSNorm(h) W_head``, or
    ``RMSNorm(h) embedding^T`` with a tied head.

    The layers are stacked: each parameter of ``layers`` has a leading axis, over which a scan runs, so that the
    compiled program does not grow with their number. Paths are ``embedding``, ``layers/attention/query/kernel``,
    ``norm/scale``, ``lm_head/kernel`` and so on.

    A token sees itself and what is before it. So padding belongs on the right, where it changes nothing.

    Args:
        config: the shape of the decoder.
        rngs: draws the initial weights; `load_decoder` reads them from files instead.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> config = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        ...                      num_attention_heads=4, num_key_value_heads=2)
        >>> decoder = LlamaDecoder(config, rngs=nnx.Rngs(0))
        >>> jax.vmap(decoder)(jnp.ones((3, 5), jnp.int32)).shape
        (3, 5, 50)

    References:
        Touvron et al., LLaMA: Open and Efficient Foundation Language Models, 2023; Ainslie et al., GQA: Training
        Generalized Multi-Query Transformer Models from Multi-Head Checkpoints, 2023.
    """

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        self.config = config
        table = jax.random.normal(rngs.params(), (config.vocab_size, config.hidden_size))
        self.embedding = nnx.Param(table * config.initializer_range)
        self.layers = stack_layers(lambda rngs: DecoderLayer(config, rngs=rngs), config.num_hidden_layers, rngs)
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head: Dense | None = nnx.data(
            None
            if config.tie_word_embeddings
            else Dense(config.hidden_size, config.vocab_size, stddev=config.initializer_range, rngs=rngs, bias=False)
        )

    def __call__(self, ids: Int[Array, "seq"]) -> Float[Array, "seq vocab"]:
        """Logits of the next token after each token.

        Args:
            ids: token ids of one example, padded on the right if need be.

        Returns:
            One row a token, float32 or wider; those of padded places mean nothing.

        Raises:
            ValueError: a sequence longer than ``max_position_embeddings``.
        """
        return self.logits(self.hidden_states(ids))

    def hidden_states(self, ids: Int[Array, "seq"]) -> Float[Array, "seq hidden"]:
        """The normalised output of the last layer; arguments as in `__call__`."""
        config = self.config
        if ids.shape[0] > config.max_position_embeddings:
            raise ValueError(
                f"the sequence has {ids.shape[0]} tokens, but max_position_embeddings is "
                f"{config.max_position_embeddings}: truncate the texts to that length."
            )
        hidden = config.compute.cast(jnp.take(self.embedding[...], ids, axis=0, mode="clip"))
        cosines, sines = config.rope.tables(ids.shape[0], config.head_dim)
        return self.norm(run_stack(self.layers, hidden, cosines, sines, compute=config.compute))

    def logits(self, hidden: Float[Array, "seq hidden"]) -> Float[Array, "seq vocab"]:
        """Logits from the states that `hidden_states` returns; only the rows that are needed may be given."""
        kernel = self.embedding[...].T if self.lm_head is None else self.lm_head.kernel[...]
        # Sums over the hidden state are kept in float32: 16 bits cannot tell neighbouring logits apart.
        return jnp.matmul(hidden, kernel.astype(hidden.dtype), preferred_element_type=widen(hidden).dtype)
