"""What a run needs to know of what it trains: one interface, whatever the data and the model are."""

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdp._shown import of_shapes
from jaxdp.training.config._phase import PhaseConfig
from jaxdp.training.config._task_sections import TaskKind
from jaxdp.training.tasks._split_model import Params

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Metric:
    """The number that a run is judged by.

    Attributes:
      name: its key in `metrics.jsonl` and `result.json`.
      words: what a user reads.
      percent: whether it is a share.
    """

    name: str
    words: str
    percent: bool

    def text(self, value: float) -> str:
        """The number in words."""
        return f"{self.words} {self.number(value)}"

    def number(self, value: float) -> str:
        """The number alone."""
        return f"{value:.4f}" if self.percent else f"{value:.2f}"


_ACCURACY = Metric("held_out_accuracy", "held-out accuracy", True)
METRICS: dict[TaskKind, Metric] = {
    "text_classification": _ACCURACY,
    "image_classification": _ACCURACY,
    "language_model": Metric("held_out_perplexity", "held-out perplexity", False),
}


# With more classes a table of all against all is no help, and a long line in the log.
_MOST_CLASSES = 50


def class_sums(
    logits: Float[Array, "n classes"], labels: Int[Array, "n"], losses: Float[Array, "n"], real: Bool[Array, "n"]
) -> tuple[Int[Array, "classes classes"], Float[Array, ""], Float[Array, ""]]:
    """Of a batch: how often each class (row) was taken for each (column), and sums of losses and squares."""
    counts = jnp.zeros((logits.shape[-1],) * 2, jnp.int32)
    counts = counts.at[labels, jnp.argmax(logits, axis=-1)].add(real.astype(jnp.int32))
    kept = jnp.where(real, losses, jnp.zeros_like(losses))
    return counts, jnp.sum(kept), jnp.sum(kept**2)


def accuracy_scores(sums: Sequence[tuple[Any, Any, Any]]) -> dict[str, Any]:
    """Scores of a classifier from the `class_sums` of every held-out batch."""
    confusion = np.sum([np.asarray(counts) for counts, _, _ in sums], axis=0)
    count = int(confusion.sum())
    accuracy = int(np.trace(confusion)) / count
    loss = sum(float(x) for _, x, _ in sums) / count
    spread = max(0.0, sum(float(x) for _, _, x in sums) / count - loss**2) if math.isfinite(loss) else 0.0
    details: dict[str, Any] = {
        "standard_errors": [math.sqrt(accuracy * (1 - accuracy) / count), math.sqrt(spread / count)]
    }
    details |= {"confusion": confusion.tolist()} if len(confusion) <= _MOST_CLASSES else {}
    return {"held_out_accuracy": accuracy, "held_out_loss": loss, "details": details}


def record_sums(losses: Float[Array, "n"], tokens: Int[Array, "n"]) -> tuple[Array, Array, Array]:
    """Of a batch: tokens predicted, summed losses, and the squares and products that a ratio's standard error needs."""
    counts = tokens.astype(losses.dtype)
    totals = losses * counts
    return jnp.sum(tokens), jnp.sum(totals), jnp.stack([jnp.sum(a * b) for a, b in _products(totals, counts)])


def _products(totals: Array, counts: Array) -> list[tuple[Array, Array]]:
    return [(totals, totals), (totals, counts), (counts, counts)]


def perplexity_scores(sums: Sequence[tuple[Any, Any, Any]]) -> dict[str, Any]:
    """Scores of a language model from the `record_sums` of every held-out batch; a record is one draw."""
    tokens = max(sum(int(tokens) for tokens, _, _ in sums), 1)
    loss = sum(float(loss) for _, loss, _ in sums) / tokens
    squares, products, counts = np.sum([np.asarray(x, np.float64) for _, _, x in sums], axis=0)
    spread = max(0.0, squares - 2 * loss * products + loss**2 * counts) if math.isfinite(loss) else 0.0
    error = math.sqrt(spread) / tokens
    # A loss this large is a run gone wrong, but its report is still to be written.
    perplexity = math.exp(min(loss, 700.0))
    return {
        "held_out_perplexity": perplexity,
        "held_out_loss": loss,
        "details": {"standard_errors": [min(perplexity * error, 1e300), error]},
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A phase's data and functions.

    Attributes:
      train: all training examples, as arrays with a leading axis.
      held_out: batches of (held-out examples, which of them are real).
      loss: of one example, from all parameters.
      evaluate: scores from all parameters and those batches; one of them is the task's metric, one is called
        `held_out_loss`, and `details` is what only the report shows: of the metric and the loss the standard errors,
        and of a classifier how often each class was taken for each.
    """

    __repr__ = of_shapes

    train: Any
    held_out: list[tuple[Any, Any]]
    loss: Callable[[Params, Any], Array]
    evaluate: Callable[[Params, list[tuple[Any, Any]]], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Sample:
    """A text that a language model wrote.

    Attributes:
      prompt: what it was given.
      before: what it wrote before training.
      after: what it wrote after training.
    """

    prompt: str
    before: str
    after: str


class Task(abc.ABC):
    """Data and model of a run. An example is what privacy protects: a row, or all that one user gave."""

    kind: ClassVar[TaskKind]
    model: Any  # a `SplitModel`, or a `Classifier`, which has what is asked of it here

    @property
    def metric(self) -> Metric:
        """What the run is judged by."""
        return METRICS[self.kind]

    @property
    def params(self) -> Params:
        """All values of the model by path, as loaded: weights, adapters, public constants."""
        return self.model.params

    def trained_paths(self, selection: str | Sequence[str], field: str) -> tuple[str, ...]:
        """The parameters that a phase trains."""
        return self.model.trained_paths(selection, field)

    @property
    @abc.abstractmethod
    def num_train(self) -> int:
        """Number of training examples; public."""

    @property
    @abc.abstractmethod
    def num_held_out(self) -> int:
        """Number of held-out examples."""

    @property
    @abc.abstractmethod
    def data_fingerprint(self) -> str:
        """Changes with any of the data; it identifies private data, so it is never published."""

    label_names: tuple[str, ...] = ()
    """Names of the classes, in the order of the logits; none where there are no classes."""

    scored_at_first = False
    """Whether the untrained model is worth a score: a pretrained one that already does the task."""

    @abc.abstractmethod
    def check(self, phases: Sequence[PhaseConfig]) -> None:
        """Refuse phases that train what the model does not have, or store what they change."""

    @abc.abstractmethod
    def prepare(self, params: Params, phase: PhaseConfig, field: str, directory: Path, progress: Progress) -> Prepared:
        """What a phase works with; outputs of layers that it leaves as they are may be kept in `directory`."""

    @abc.abstractmethod
    def save(self, params: Params, directory: Path) -> None:
        """Write the model with these values."""

    def samples(self, params: Params) -> list[Sample]:
        """Texts to show in the report; none where the model writes none."""
        del params
        return []
