"""Layers of the benchmark's models: plain functions of a dict of parameters and one example's activations."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

Params = dict[str, Any]


def init_dense(key: Array, fan_in: int, fan_out: int, *, bias: bool = True) -> Params:
    kernel = jax.random.normal(key, (fan_in, fan_out)) * fan_in**-0.5
    return {"kernel": kernel, "bias": jnp.zeros(fan_out)} if bias else {"kernel": kernel}


def dense(p: Params, x: Array) -> Array:
    y = x @ p["kernel"].astype(x.dtype)
    return y + p["bias"].astype(x.dtype)[None, :] if "bias" in p else y


def init_norm(width: int) -> Params:
    return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}


def layer_norm(p: Params, x: Array) -> Array:
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    unit = centred * lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-5)
    return (unit * p["scale"][None, :] + p["bias"][None, :]).astype(x.dtype)


def init_block(key: Array, width: int) -> Params:
    names = {"query": (1, 1), "key": (1, 1), "value": (1, 1), "output": (1, 1), "up": (1, 4), "down": (4, 1)}
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    layers = {name: init_dense(keys[name], width * a, width * b) for name, (a, b) in names.items()}
    return {**layers, "attention_norm": init_norm(width), "mlp_norm": init_norm(width)}


def attention(p: Params, x: Array, heads: int, causal: bool) -> Array:
    seq, width = x.shape
    q, k, v = (dense(p[name], x).reshape(seq, heads, width // heads) for name in ("query", "key", "value"))
    scores = jnp.einsum("qhd,khd->hqk", q, k).astype(jnp.float32) * (width // heads) ** -0.5
    if causal:
        allowed = jnp.tril(jnp.ones((seq, seq), bool))[None]
        scores = jnp.where(allowed, scores, -1e30)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
    mixed = jnp.einsum("hqk,khd->qhd", probabilities, v).reshape(seq, width)
    return dense(p["output"], mixed)


def block(p: Params, x: Array, heads: int, causal: bool) -> Array:
    """One pre-norm transformer layer."""
    x = x + attention(p, layer_norm(p["attention_norm"], x), heads, causal)
    return x + dense(p["down"], jax.nn.gelu(dense(p["up"], layer_norm(p["mlp_norm"], x))))


def class_loss(logits: Array, label: Array) -> Array:
    wide = logits.astype(jnp.float32)
    return jax.nn.logsumexp(wide) - jnp.sum(jax.nn.one_hot(label, wide.shape[0]) * wide)
