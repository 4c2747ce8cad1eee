"""The pieces that all transformers here are made of, each written for one example."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from ._compute import Compute


class Constant(nnx.Variable):
    """A public constant of a model: saved with it, never trained."""


def widen(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` in float32, or in its own dtype if that is wider."""
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x


class LowRank(nnx.Module):
    """The adapter ``scale * x @ a @ b`` beside a dense layer; see `add_lora`."""

    def __init__(self, a: Float[Array, "*stack in rank"], b: Float[Array, "*stack rank out"], scale: float):
        self.a = nnx.Param(a)
        self.b = nnx.Param(b)
        self.scale = scale

    def __call__(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        """What is added to the dense layer's output."""
        return self.scale * ((x @ self.a[...].astype(x.dtype)) @ self.b[...].astype(x.dtype))


class Dense(nnx.Module):
    """``x @ kernel + bias`` with the kernel laid out [in, out], computed in the dtype of `x`."""

    def __init__(self, size_in: int, size_out: int, *, stddev: float, rngs: nnx.Rngs, bias: bool = True):
        kernel = jax.random.normal(rngs.params(), (size_in, size_out)) * stddev
        self.kernel = nnx.Param(kernel)
        self.bias: nnx.Param | None = nnx.data(nnx.Param(jnp.zeros(size_out)) if bias else None)
        self.lora: LowRank | None = nnx.data(None)

    def __call__(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        """The affine map of the last axis, and the adapter's part if there is one."""
        y = x @ self.kernel[...].astype(x.dtype)
        if self.bias is not None:
            y = y + jnp.reshape(self.bias[...].astype(x.dtype), (1,) * (y.ndim - 1) + (-1,))
        return y if self.lora is None else y + self.lora(x)


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
        return normed * self.scale[...].astype(x.dtype)[None, :] + self.bias[...].astype(x.dtype)[None, :]


class RMSNorm(nnx.Module):
    """Division by the root mean square of the features, which is float32 whatever the dtype of `x`."""

    def __init__(self, size: int, *, eps: float):
        self.scale = nnx.Param(jnp.ones(size))
        self.eps = eps

    def __call__(self, x: Float[Array, "seq hidden"]) -> Float[Array, "seq hidden"]:
        """``x / sqrt(mean(x^2) + eps) * scale``."""
        wide = widen(x)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normed = (wide * jax.lax.rsqrt(mean_square + self.eps)).astype(x.dtype)
        return normed * self.scale[...].astype(x.dtype)[None, :]


def dropout(x: Float[Array, "*shape"], rate: float, key: Array | None) -> Float[Array, "*shape"]:
    """Zero a fraction `rate` of `x` and scale up the rest; no key, no dropout."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def split_key(key: Array | None, num: int) -> tuple[Array | None, ...]:
    """`num` keys from one, or as many times None."""
    return (None,) * num if key is None else tuple(jax.random.split(key, num))


def heads(x: Float[Array, "seq features"], count: int) -> Float[Array, "seq heads head"]:
    """The features of every token as `count` heads of the same size."""
    return jnp.reshape(x, (x.shape[0], count, -1))


def attend(
    query: Float[Array, "seq heads head"],
    keys: Float[Array, "places groups head"],
    value: Float[Array, "places groups head"],
    *,
    mask: Bool[Array, "places"] | None = None,
    causal: bool = False,
    compute: Compute,
) -> Float[Array, "seq heads head"]:
    """Softmax attention with float32 weights, to the places where `mask` is true; neighbouring heads share a group."""
    open_to = None if mask is None else jnp.broadcast_to(mask, (1, query.shape[0], keys.shape[0]))
    implementation: Any = compute.attention
    # JAX's own code mixes 16-bit operands with float32 weights.
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(
            query, keys, value, mask=open_to, is_causal=causal, implementation=implementation
        )


class SelfAttention(nnx.Module):
    """Multi-head attention of a sequence to itself, in both directions."""

    def __init__(
        self,
        size: int,
        num_heads: int,
        *,
        stddev: float,
        compute: Compute,
        rngs: nnx.Rngs,
        bias: bool = True,
        dropout: float = 0.0,
    ):
        self.query = Dense(size, size, stddev=stddev, rngs=rngs, bias=bias)
        self.key = Dense(size, size, stddev=stddev, rngs=rngs, bias=bias)
        self.value = Dense(size, size, stddev=stddev, rngs=rngs, bias=bias)
        self.output = Dense(size, size, stddev=stddev, rngs=rngs)
        self.num_heads = num_heads
        self.dropout = dropout
        self.compute = compute

    def __call__(
        self, x: Float[Array, "seq hidden"], mask: Bool[Array, "seq"] | None = None, key: Array | None = None
    ) -> Float[Array, "seq hidden"]:
        """Attend to the places where `mask` is true, or to all; a key drops some of the attention weights."""
        query, keys, value = (heads(dense(x), self.num_heads) for dense in (self.query, self.key, self.value))
        if key is None or self.dropout == 0.0:
            mixed = attend(query, keys, value, mask=mask, compute=self.compute)
        else:
            mixed = _dropped_attention(query, keys, value, mask, self.dropout, key)
        return self.output(jnp.reshape(mixed, x.shape))


def _dropped_attention(
    query: Array, keys: Array, value: Array, mask: Bool[Array, "seq"] | None, rate: float, key: Array
) -> Float[Array, "seq heads head"]:
    """Attention with dropout on its weights, which `jax.nn.dot_product_attention` does not have."""
    scores = jnp.einsum("qhd,khd->hqk", query, keys) / math.sqrt(query.shape[-1])
    if mask is not None:
        # Finite, so that a fully masked sequence gives a uniform softmax and not NaN.
        closed = jnp.where(mask, 0.0, jnp.finfo(query.dtype).min).astype(query.dtype)
        scores = scores + closed[None, None, :]
    weights = dropout(jax.nn.softmax(scores, axis=-1), rate, key)
    return jnp.einsum("hqk,khd->qhd", weights, value)
