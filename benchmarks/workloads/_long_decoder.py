"""Blocks of a decoder whose attention never holds a score for every pair of positions."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks.workloads._layers import Params, dense, init_block, layer_norm
from benchmarks.workloads._workload import Workload


def attention_in_pieces(p: Params, x: Array, heads: int, piece: int) -> Array:
    """Causal attention of `piece` queries at a time, made again on the way back."""
    seq, width = x.shape
    q, k, v = (dense(p[name], x).reshape(seq, heads, width // heads) for name in ("query", "key", "value"))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def attend(queries: tuple[Array, Array]) -> Array:
        first, q = queries
        scores = jnp.einsum("qhd,khd->hqk", q, k).astype(jnp.float32) * (width // heads) ** -0.5
        allowed = (first + jnp.arange(piece))[:, None] >= jnp.arange(seq)[None]
        probabilities = jax.nn.softmax(jnp.where(allowed[None], scores, -1e30), axis=-1).astype(x.dtype)
        return jnp.einsum("hqk,khd->qhd", probabilities, v)

    count = seq // piece
    mixed = jax.lax.map(attend, (jnp.arange(count) * piece, q.reshape(count, piece, *q.shape[1:])))
    return dense(p["output"], mixed.reshape(seq, width))


def long_blocks(
    seq: int, *, batch_size: int = 2, width: int = 512, layers: int = 2, heads: int = 8, piece: int = 128
) -> Workload:
    """Scanned and checkpointed pre-norm layers on given vectors, without embeddings or a head."""
    piece = min(piece, seq)

    def layer(h: Array, p: Params) -> tuple[Array, None]:
        h = h + attention_in_pieces(p, layer_norm(p["attention_norm"], h), heads, piece)
        return h + dense(p["down"], jax.nn.gelu(dense(p["up"], layer_norm(p["mlp_norm"], h)))), None

    def loss(params: Params, example: dict[str, Array]) -> Array:
        hidden, _ = jax.lax.scan(jax.checkpoint(layer, prevent_cse=False), example["x"], params)
        return jnp.mean(jnp.square(hidden - example["y"]))

    def make_params() -> Any:
        return jax.vmap(functools.partial(init_block, width=width))(jax.random.split(jax.random.key(0), layers))

    def make_batch() -> dict[str, Array]:
        x, y = jax.random.normal(jax.random.key(1), (2, batch_size, seq, width))
        return {"x": x, "y": y}

    title = f"decoder blocks d={width}, {layers} layers scanned and checkpointed, T={seq}, B={batch_size}"
    facts = {"seq": seq, "width": width, "layers": layers, "heads": heads, "piece": piece}
    return Workload(f"long-{seq}", title, loss, jax.jit(make_params), make_batch, batch_size, facts)
