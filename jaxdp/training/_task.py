"""What a run needs to know of what it trains: one interface, whatever the data and the model are."""

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Array

from jaxdp._shown import of_shapes
from jaxdp.training._config_phase import PhaseConfig
from jaxdp.training._config_task import TaskKind
from jaxdp.training._split_model import Params

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


def accuracy_scores(sums: Sequence[tuple[Any, Any]], count: int) -> dict[str, float]:
    """Scores of a classifier from (correct, summed losses) of every held-out batch."""
    return {
        "held_out_accuracy": sum(int(correct) for correct, _ in sums) / count,
        "held_out_loss": sum(float(loss) for _, loss in sums) / count,
    }


def perplexity_scores(sums: Sequence[tuple[Any, Any]]) -> dict[str, float]:
    """Scores of a language model from (tokens predicted, summed losses) of every held-out batch."""
    tokens = sum(int(tokens) for tokens, _ in sums)
    loss = sum(float(loss) for _, loss in sums) / max(tokens, 1)
    # A loss this large is a run gone wrong, but its report is still to be written.
    return {"held_out_perplexity": math.exp(min(loss, 700.0)), "held_out_loss": loss}


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A phase's data and functions.

    Attributes:
      train: all training examples, as arrays with a leading axis.
      held_out: batches of (held-out examples, which of them are real).
      loss: of one example, from all parameters.
      evaluate: scores from all parameters and those batches; one of them is the task's metric, one is called
        `held_out_loss`.
    """

    __repr__ = of_shapes

    train: Any
    held_out: list[tuple[Any, Any]]
    loss: Callable[[Params, Any], Array]
    evaluate: Callable[[Params, list[tuple[Any, Any]]], dict[str, float]]


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
