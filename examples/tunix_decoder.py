"""A decoder of Google's Tunix (Flax NNX), trained privately from nothing on sentences of film reviews, byte by byte.

python examples/tunix_decoder.py --family qwen3

The embedding is tied to the head, so its gradient comes from a lookup and from a matrix product: the norm of the sum
needs the inner product of both.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

if __package__ in (None, ""):
    # Run by its path, Python looks for modules beside this file.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import jax
import jax.numpy as jnp
from flax import nnx

from examples.common import Training, need, next_byte_loss, texts_as_bytes, train_privately
from jaxdp import data

tyro = need("tyro", "tyro")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Train a small tied decoder of Tunix with DP-Adam."""

    family: Literal["llama3", "qwen3", "gemma3"] = "llama3"
    """Which of the package's models."""
    layers: int = 2
    width: int = 64
    length: int = 48
    """Bytes of a sentence that are seen."""
    training: tyro.conf.OmitArgPrefixes[Training] = dataclasses.field(default_factory=Training)


def build(settings: Settings) -> nnx.Module:
    """The package's own class, small and with a tied embedding."""
    module = need(f"tunix.models.{settings.family}.model", "google-tunix")
    sizes = {"num_layers": settings.layers, "embed_dim": settings.width, "hidden_dim": 3 * settings.width}
    heads = {"num_heads": 4, "num_kv_heads": 2, "head_dim": settings.width // 4}
    own = {
        "llama3": {"vocab_size": 256, "rope_theta": 10_000, "norm_eps": 1e-5, "weight_tying": True},
        "qwen3": {"vocab_size": 256, "rope_theta": 10_000, "norm_eps": 1e-5, "use_tied_embedding": True},
        "gemma3": {"num_embed": 256, "sliding_window_size": 16, "param_dtype": jnp.float32},
    }[settings.family]
    model_class = {"llama3": "Llama3", "qwen3": "Qwen3", "gemma3": "Gemma3"}[settings.family]
    return getattr(module, model_class)(module.ModelConfig(**sizes, **heads, **own), rngs=nnx.Rngs(0))


def drawn(params: Any) -> Any:
    """The package leaves kernels at zero, to be loaded, and draws others with unit variance: all small and random."""
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))
    fresh = lambda x: 0.02 * jax.random.normal(next(keys), x.shape, x.dtype) if x.ndim > 1 else x
    return jax.tree.map(fresh, params)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """The command."""
    settings = tyro.cli(Settings, args=arguments, prog="tunix_decoder")
    graph, params, rest = nnx.split(build(settings), nnx.Param, ...)
    positions = jnp.arange(settings.length)[None]
    causal = jnp.tril(jnp.ones((1, settings.length, settings.length), bool))

    def loss(params: Any, example: dict[str, jax.Array]) -> jax.Array:
        # Their models want a batch: one of one example is as good as none.
        logits, _ = nnx.merge(graph, params, rest)(example["ids"][None, :-1], positions, None, causal)
        return next_byte_loss(logits[0], example)

    sentences, held_out = data.split(data.movie_sentences(), held_out=600, seed=0)
    train, judge = (texts_as_bytes(part.texts, settings.length) for part in (sentences, held_out))
    return train_privately(loss, drawn(params), train, judge, loss, "bits per byte", settings.training)


if __name__ == "__main__":
    main()
