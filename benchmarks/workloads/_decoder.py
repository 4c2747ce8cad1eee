"""A decoder-only language model: layers unrolled, or scanned and checkpointed."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks.workloads._layers import Params, block, dense, init_block, init_dense, init_norm, layer_norm
from benchmarks.workloads._workload import Workload


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes: the MLP is four times as wide as the stream, input and output embeddings are not tied."""

    width: int = 512
    layers: int = 4
    heads: int = 8
    vocab: int = 8192
    seq: int = 32
    scanned: bool = False


def init_decoder(key: Array, config: DecoderConfig) -> Params:
    embed, position, head, layers = jax.random.split(key, 4)
    layer_keys = jax.random.split(layers, config.layers)
    init = functools.partial(init_block, width=config.width)
    stack: Any = jax.vmap(init)(layer_keys) if config.scanned else [init(key) for key in layer_keys]
    return {
        "token": {"embedding": 0.02 * jax.random.normal(embed, (config.vocab, config.width))},
        "position": {"embedding": 0.02 * jax.random.normal(position, (config.seq, config.width))},
        "layers": stack,
        "norm": init_norm(config.width),
        "head": init_dense(head, config.width, config.vocab, bias=False),
    }


def decoder_loss(params: Params, example: dict[str, Array], *, config: DecoderConfig, dtype: Any) -> Array:
    """Mean cross-entropy of the next token, over `seq` positions."""
    ids = example["ids"]
    hidden = (params["token"]["embedding"][ids[:-1]] + params["position"]["embedding"]).astype(dtype)
    layer = functools.partial(block, heads=config.heads, causal=True)
    if config.scanned:
        # Inside a scan the two passes cannot be merged anyway, so the barrier against that is not needed.
        body = jax.checkpoint(lambda h, p: (layer(p, h), None), prevent_cse=False)
        hidden, _ = jax.lax.scan(body, hidden, params["layers"])
    else:
        for p in params["layers"]:
            hidden = layer(p, hidden)
    logits = dense(params["head"], layer_norm(params["norm"], hidden)).astype(jnp.float32)
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.mean(jnp.take_along_axis(log_probabilities, ids[1:, None], axis=1))


def decoder(name: str, title: str, config: DecoderConfig, batch_size: int, dtype: Any) -> Workload:
    """The workload of one decoder on random tokens."""

    def make_batch() -> dict[str, Array]:
        return {"ids": jax.random.randint(jax.random.key(1), (batch_size, config.seq + 1), 0, config.vocab)}

    init = jax.jit(functools.partial(init_decoder, config=config))
    loss = functools.partial(decoder_loss, config=config, dtype=dtype)
    return Workload(
        name, title, loss, lambda: init(jax.random.key(0)), make_batch, batch_size, dataclasses.asdict(config)
    )
