"""The pieces of a BERT encoder, each written for one example."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ._config import BertConfig


class Constant(nnx.Variable):
    """A public constant of a model: saved with it, never trained."""


def widen(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` in float32, or in its own dtype if that is wider."""
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x


class Dense(nnx.Module):
    """``x @ kernel + bias`` with the kernel laid out [in, out]."""

    def __init__(self, size_in: int, size_out: int, *, stddev: float, rngs: nnx.Rngs):
        kernel = jax.random.normal(rngs.params(), (size_in, size_out)) * stddev
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(jnp.zeros(size_out))

    def __call__(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        """The affine map of the last axis."""
        y = x @ self.kernel[...]
        return y + jnp.reshape(self.bias[...], (1,) * (y.ndim - 1) + (-1,))


class LayerNorm(nnx.Module):
    """Normalisation over the features; the statistics are float32 whatever the dtype of `x`."""

    def __init__(self, size: int, *, eps: float):
        self.scale = nnx.Param(jnp.ones(size))
        self.bias = nnx.Param(jnp.zeros(size))
        self.eps = eps

    def __call__(self, x: Float[Array, "seq hidden"]) -> Float[Array, "seq hidden"]:
        """``(x - mean) / sqrt(variance + eps) * scale + bias``."""
        wide = widen(x)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        normed = (centred * jax.lax.rsqrt(variance + self.eps)).astype(x.dtype)
        return normed * self.scale[...][None, :] + self.bias[...][None, :]


def dropout(x: Float[Array, "*shape"], rate: float, key: Array | None) -> Float[Array, "*shape"]:
    """Zero a fraction `rate` of `x` and scale up the rest; no key, no dropout."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def split_key(key: Array | None, num: int) -> tuple[Array | None, ...]:
    """`num` keys from one, or as many times None."""
    return (None,) * num if key is None else tuple(jax.random.split(key, num))


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

    def __call__(
        self, ids: Int[Array, "seq"], token_types: Int[Array, "seq"] | None, key: Array | None
    ) -> Float[Array, "seq hidden"]:
        """The input of the first layer."""
        words = jnp.take(self.word[...], ids, axis=0, mode="clip")
        # Every example has the same positions: a slice has a far cheaper gradient than a gather.
        positions = self.position[: ids.shape[0]]
        if token_types is None:
            types = self.token_type[:1]
        else:
            types = jnp.take(self.token_type[...], token_types, axis=0, mode="clip")
        return dropout(self.norm(words + positions + types), self.dropout, key)


class SelfAttention(nnx.Module):
    """Multi-head attention of a sequence to itself."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        size, stddev = config.hidden_size, config.initializer_range
        self.query = Dense(size, size, stddev=stddev, rngs=rngs)
        self.key = Dense(size, size, stddev=stddev, rngs=rngs)
        self.value = Dense(size, size, stddev=stddev, rngs=rngs)
        self.output = Dense(size, size, stddev=stddev, rngs=rngs)
        self.num_heads = config.num_attention_heads
        self.dropout = config.dropout

    def __call__(
        self, x: Float[Array, "seq hidden"], mask: Bool[Array, "seq"], key: Array | None
    ) -> Float[Array, "seq hidden"]:
        """Attend to the places where `mask` is true."""
        heads = (x.shape[0], self.num_heads, -1)
        query = jnp.reshape(self.query(x), heads)
        keys = jnp.reshape(self.key(x), heads)
        value = jnp.reshape(self.value(x), heads)
        scores = jnp.einsum("qhd,khd->hqk", query, keys) / math.sqrt(query.shape[-1])
        # Finite, so that a fully masked sequence gives a uniform softmax and not NaN.
        closed = jnp.where(mask, 0.0, jnp.finfo(x.dtype).min).astype(x.dtype)
        weights = jax.nn.softmax(scores + closed[None, None, :], axis=-1)
        weights = dropout(weights, self.dropout, key)
        mixed = jnp.einsum("hqk,khd->qhd", weights, value)
        return self.output(jnp.reshape(mixed, x.shape))


class Layer(nnx.Module):
    """One post-LayerNorm transformer layer."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        stddev, eps = config.initializer_range, config.layer_norm_eps
        self.attention = SelfAttention(config, rngs=rngs)
        self.attention_norm = LayerNorm(config.hidden_size, eps=eps)
        self.up = Dense(config.hidden_size, config.intermediate_size, stddev=stddev, rngs=rngs)
        self.down = Dense(config.intermediate_size, config.hidden_size, stddev=stddev, rngs=rngs)
        self.output_norm = LayerNorm(config.hidden_size, eps=eps)
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
