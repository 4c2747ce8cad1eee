"""A recurrent language model of dm-haiku, trained privately from nothing on sentences of film reviews, byte by byte.

python examples/haiku_lstm.py

Every step of the recurrence uses the same weights, so the gradient of an example is a sum over its bytes, and its norm
needs all inner products between them.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    # Run by its path, Python looks for modules beside this file.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import jax

from examples.common import Training, need, next_byte_loss, texts_as_bytes, train_privately
from jaxdp import data

tyro = need("tyro", "tyro")
hk = need("haiku", "dm-haiku")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Train a small LSTM of dm-haiku with DP-Adam."""

    width: int = 64
    length: int = 48
    """Bytes of a sentence that are seen."""
    training: tyro.conf.OmitArgPrefixes[Training] = dataclasses.field(default_factory=Training)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """The command."""
    settings = tyro.cli(Settings, args=arguments, prog="haiku_lstm")

    @hk.without_apply_rng
    @hk.transform
    def model(ids: jax.Array) -> jax.Array:
        core = hk.LSTM(settings.width)
        hidden, _ = hk.dynamic_unroll(core, hk.Embed(256, settings.width)(ids), core.initial_state(None))
        return hk.Linear(256)(hidden)

    def loss(params: Any, example: dict[str, jax.Array]) -> jax.Array:
        return next_byte_loss(model.apply(params, example["ids"][:-1]), example)

    sentences, held_out = data.split(data.movie_sentences(), held_out=600, seed=0)
    train, judge = (texts_as_bytes(part.texts, settings.length) for part in (sentences, held_out))
    params = model.init(jax.random.key(0), train["ids"][0, :-1])
    return train_privately(loss, params, train, judge, loss, "bits per byte", settings.training)


if __name__ == "__main__":
    main()
