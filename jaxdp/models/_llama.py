"""A Llama-family decoder in Flax NNX for one example at a time; a caller vmaps it."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxdp._shown import of_shapes

from ._layers import Dense, RMSNorm, attend, heads, widen
from ._llama_config import LlamaConfig
from ._rope import rotate
from ._stack import run_stack, stack_layers, step_stack


class Cache(NamedTuple):
    """Keys and values of the tokens so far; zeros after them. With a leading axis, those of all layers."""

    __repr__ = of_shapes

    keys: Float[Array, "*layers seq groups head"]
    values: Float[Array, "*layers seq groups head"]


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

    def step(
        self,
        x: Float[Array, "1 hidden"],
        cosines: Float[Array, "1 half"],
        sines: Float[Array, "1 half"],
        cache: Cache,
        place: Int[Array, ""],
    ) -> tuple[Float[Array, "1 hidden"], Cache]:
        """As `__call__` for the token at `place` alone, with the keys and values of those before it at hand."""
        query = rotate(heads(self.query(x), self.num_heads), cosines, sines)
        key = rotate(heads(self.key(x), self.num_key_value_heads), cosines, sines)
        value = heads(self.value(x), self.num_key_value_heads)
        keys = jax.lax.dynamic_update_slice_in_dim(cache.keys, key.astype(cache.keys.dtype), place, 0)
        values = jax.lax.dynamic_update_slice_in_dim(cache.values, value.astype(cache.values.dtype), place, 0)
        seen = jnp.arange(keys.shape[0], dtype=place.dtype) <= place
        mixed = attend(query, keys.astype(query.dtype), values.astype(query.dtype), mask=seen, compute=self.compute)
        return self.output(jnp.reshape(mixed, (1, -1))), Cache(keys, values)


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
        return self._feed_forward(x + self.attention(self.attention_norm(x), cosines, sines))

    def step(
        self,
        x: Float[Array, "1 hidden"],
        cosines: Float[Array, "1 half"],
        sines: Float[Array, "1 half"],
        cache: Cache,
        place: Int[Array, ""],
    ) -> tuple[Float[Array, "1 hidden"], Cache]:
        """As `__call__` for one token; see `GroupedAttention.step`."""
        mixed, cache = self.attention.step(self.attention_norm(x), cosines, sines, cache, place)
        return self._feed_forward(x + mixed), cache

    def _feed_forward(self, x: Float[Array, "seq hidden"]) -> Float[Array, "seq hidden"]:
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
        self.top: DecoderLayer | None = nnx.data(None)
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
        return self.above(self.below(ids))

    def below(self, ids: Int[Array, "seq"]) -> Float[Array, "seq hidden"]:
        """The output of ``layers``, which is the input of ``top`` if `split_top` divided the layers.

        Arguments and errors as in `__call__`.
        """
        config = self.config
        if ids.shape[0] > config.max_position_embeddings:
            raise ValueError(
                f"the sequence has {ids.shape[0]} tokens, but max_position_embeddings is "
                f"{config.max_position_embeddings}: truncate the texts to that length."
            )
        hidden = config.compute.cast(jnp.take(self.embedding[...], ids, axis=0, mode="clip"))
        return run_stack(self.layers, hidden, *self._tables(ids.shape[0]), compute=config.compute)

    def above(self, hidden: Float[Array, "seq hidden"]) -> Float[Array, "seq hidden"]:
        """The normalised output of the last layer from what `below` returns: ``above(below(ids))`` is all of it."""
        # What was stored may be of another dtype than what was computed.
        hidden = self.config.compute.cast(hidden.astype(self.embedding[...].dtype))
        if self.top is not None:
            hidden = run_stack(self.top, hidden, *self._tables(hidden.shape[0]), compute=self.config.compute)
        return self.norm(hidden)

    def step(self, token: Int[Array, ""], cache: Cache, place: Int[Array, ""]) -> tuple[Float[Array, "vocab"], Cache]:
        """Logits of the token after the one at `place`, and the cache with that one in it.

        Args:
            token: the id at `place`.
            cache: of the tokens before it, from `empty_cache` or the last call.
            place: its position, from 0; at most the length of the cache less 1.

        Returns:
            The logits, float32 or wider, and the cache. They are those of `__call__` on all tokens so far.
        """
        config = self.config
        cosines, sines = self._tables(cache.keys.shape[1])
        here = (jax.lax.dynamic_slice_in_dim(table, place, 1) for table in (cosines, sines))
        x = config.compute.cast(jnp.take(self.embedding[...], token[None], axis=0, mode="clip"))
        x, cache = step_stack([self.layers, self.top], x, *here, cache=cache, place=place)
        return self.logits(self.norm(x))[0], cache

    def empty_cache(self, length: int) -> Cache:
        """Room for the keys and values of `length` tokens, for `step`."""
        config = self.config
        shape = (config.num_hidden_layers, length, config.num_key_value_heads, config.head_dim)
        zeros = config.compute.cast(jnp.zeros(shape, self.embedding[...].dtype))
        return Cache(zeros, zeros)

    def logits(self, hidden: Float[Array, "seq hidden"]) -> Float[Array, "seq vocab"]:
        """Logits from the states that `hidden_states` returns; only the rows that are needed may be given."""
        kernel = self.embedding[...].T if self.lm_head is None else self.lm_head.kernel[...]
        # Sums over the hidden state are kept in float32: 16 bits cannot tell neighbouring logits apart.
        return jnp.matmul(hidden, kernel.astype(hidden.dtype), preferred_element_type=widen(hidden).dtype)

    def _tables(self, length: int) -> tuple[Float[Array, "seq half"], Float[Array, "seq half"]]:
        return self.config.rope.tables(length, self.config.head_dim)


def split_top(decoder: LlamaDecoder, count: int) -> LlamaDecoder:
    """A copy of a decoder whose highest layers are a stack of their own, ``top``, beside ``layers``.

    It computes what `decoder` computes. Adapters can then be put into, and selected from, the top layers alone
    (``top/attention/query/lora/a``), and what is `LlamaDecoder.below` them be computed once and kept.

    Args:
        decoder: not divided yet.
        count: layers of ``top``; from 1 to all but one.

    Returns:
        The copy; `join_top` undoes it.

    Raises:
        ValueError: a count out of range, or a decoder that is divided already.

    Example:
        >>> from flax import nnx
        >>> from jaxdp import models
        >>> config = models.LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        ...                             num_attention_heads=4)
        >>> decoder = models.split_top(models.LlamaDecoder(config, rngs=nnx.Rngs(0)), 1)
        >>> decoder.layers.up.kernel.shape[0], decoder.top.up.kernel.shape[0]
        (2, 1)
    """
    total = decoder.config.num_hidden_layers
    if decoder.top is not None:
        raise ValueError("the decoder's layers are divided already: join them first, with join_top.")
    if not 1 <= count < total:
        raise ValueError(f"top layers must be from 1 to {total - 1}, one less than the decoder has, not {count}.")
    copy = nnx.clone(decoder)
    graphdef, state = nnx.split(copy.layers)
    copy.layers = nnx.merge(graphdef, jax.tree.map(lambda x: x[: total - count], state))
    copy.top = nnx.data(nnx.merge(graphdef, jax.tree.map(lambda x: x[total - count :], state)))
    return copy


def join_top(decoder: LlamaDecoder) -> LlamaDecoder:
    """A copy of a decoder with all layers in one stack.

    Args:
        decoder: divided by `split_top` or not, without adapters in one part alone (`merge_lora` first).

    Returns:
        The copy.

    Example:
        ``join_top(merge_lora(decoder))``; `save_pretrained` does so by itself.
    """
    copy = nnx.clone(decoder)
    if copy.top is not None:
        graphdef, state = nnx.split(copy.layers)
        above = nnx.state(copy.top)
        copy.layers = nnx.merge(graphdef, jax.tree.map(lambda *x: jnp.concatenate(x), state, above))
        copy.top = nnx.data(None)
    return copy


def lowest_layers(decoder: LlamaDecoder, count: int) -> LlamaDecoder:
    """A decoder of the lowest layers of another one: a cheaper, weaker model.

    Args:
        decoder: not divided by `split_top`.
        count: layers kept, from 1 to all.

    Returns:
        The new decoder; its config says how many layers it has.

    Raises:
        ValueError: a count out of range, or a divided decoder.

    Example:
        ``features = lowest_layers(load_decoder(directory), 8)``
    """
    if decoder.top is not None or not 1 <= count <= decoder.config.num_hidden_layers:
        raise ValueError(
            f"layers must be from 1 to {decoder.config.num_hidden_layers}, of a decoder that is not divided, not "
            f"{count}."
        )
    copy = nnx.clone(decoder)
    copy.config = dataclasses.replace(decoder.config, num_hidden_layers=count)
    graphdef, state = nnx.split(copy.layers)
    copy.layers = nnx.merge(graphdef, jax.tree.map(lambda x: x[:count], state))
    return copy
