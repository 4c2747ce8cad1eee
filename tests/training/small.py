"""A tiny encoder, a small table and a two-phase configuration, so that whole runs take seconds."""

import csv
import json
import random
from pathlib import Path

from jaxdp import models

TONES = (["good", "great"], ["bad", "poor"])
PLAIN = ["the", "a", "film", "day", "bus", "it", "was", "is", "very", "not"]
TINY = models.BertConfig(
    vocab_size=32,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=16,
)


def write_table(path: Path, rows: int = 1200) -> Path:
    draw = random.Random(5)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["text", "label"])
        for row in range(rows):
            label = draw.randrange(2)
            words = [draw.choice(TONES[1 - label]), *(draw.choice(PLAIN) for _ in range(draw.randint(2, 6)))]
            out.writerow([" ".join([*words, *str(row)]), "up" if label else "down"])
    return path


def head_only(table: Path, model: Path, *, log: str = "", privacy: str = "epsilon = 6.0") -> str:
    """The first phase alone, shorter."""
    text = two_phases(table, model, log=log, privacy=privacy)
    text = text[: text.index('[[phase]]\nname = "top"')]
    return text.replace("steps = 12", "steps = 5")


def two_phases(table: Path, model: Path, *, log: str = "", privacy: str = "epsilon = 6.0") -> str:
    """A head on stored features by full batches, then the top layer by Poisson batches."""
    return f"""
[data]
source = {json.dumps(str(table))}
text_column = "text"
label_column = "label"
max_length = 14
held_out = 0.25

[model]
path = {json.dumps(str(model))}

[privacy]
{privacy}
delta = 1e-4

[log]
{log}

[[phase]]
train = "head"
features = "cached"
batch_size = "full"
steps = 12
optimizer = "sgd"
momentum = 0.9
learning_rate = 4.0
noise_weight = 4.0
evaluations = 4

[[phase]]
name = "top"
train = ["encoder/layers/1/output_norm/*", "head/*"]
features = "cached"
batch_size = 240
microbatch_size = 64
steps = 18
learning_rate = 0.002
schedule = "cosine"
warmup_steps = 2
evaluations = 9
"""


class Quiet:
    """A display that shows nothing, remembers what was said, and can act at a step."""

    def __init__(self, at_step=None):
        self.lines: list[str] = []
        self.steps: list[int] = []
        self.epsilons: list[float] = []
        self._at_step = at_step

    def say(self, text: str) -> None:
        self.lines.append(text)

    def prepare(self, what: str, done: int, total: int) -> None:
        pass

    def begin(self, phase: str, first: int, done: int, last: int) -> None:
        pass

    def step(self, done: int, phase: str, epsilon: float) -> None:
        self.steps.append(done)
        self.epsilons.append(epsilon)
        if self._at_step is not None:
            self._at_step(done)

    def evaluated(self, done: int, total: int, phase: str, epsilon: float, score: str) -> None:
        pass

    def close(self) -> None:
        pass
