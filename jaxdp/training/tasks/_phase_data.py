"""What a phase trains and is evaluated on, as arrays on the device."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdp import data, models
from jaxdp._shown import of_shapes
from jaxdp.training._errors import UserError
from jaxdp.training.config._phase import PhaseConfig
from jaxdp.training.tasks._classifier import Classifier, Example
from jaxdp.training.tasks._data import Dataset
from jaxdp.training.tasks._features import batch_size, by_length, frozen_outputs
from jaxdp.training.tasks._split_model import Params
from jaxdp.training.tasks._task import accuracy_scores, class_sums

_EVALUATION_BATCH = 256


@dataclasses.dataclass(frozen=True, eq=False)
class PhaseData:
    """The data of a phase.

    Attributes:
      train: all training examples, with a leading axis, as NumPy arrays.
      held_out: batches of (examples, which of them are real).
      start: the layer at which they enter the model.
    """

    __repr__ = of_shapes

    train: Example
    held_out: list[tuple[Example, np.ndarray]]
    start: int


def make_phase_data(
    classifier: Classifier,
    params: Params,
    dataset: Dataset,
    phase: PhaseConfig,
    field: str,
    directory: Path,
    progress: Callable[[int, int], None],
) -> PhaseData:
    """Token ids, or the stored outputs of the layers that the phase leaves as they are."""
    if phase.features == "live":
        return _placed(_text(dataset.train), _text(dataset.held_out), dataset, 0)
    start = _first_layer(classifier, phase, field)
    head_only = start == len({name.split("/")[2] for name in params if name.startswith("encoder/layers/")})
    total = len(dataset.train) + len(dataset.held_out)
    examples: list[Example] = []
    for part, before in ((dataset.train, 0), (dataset.held_out, len(dataset.train))):
        outputs = frozen_outputs(
            classifier, params, part, start, directory, lambda done, _, at=before: progress(at + done, total)
        )
        if head_only:
            examples.append(models.FeatureExample(classifier.features(params, outputs.means), part.labels))
        else:
            below = outputs.means[:, :start] if classifier.build(params).pooling == "every_layer" else None
            examples.append(models.HiddenExample(outputs.hidden, part.mask, part.labels, below=below))
    return _placed(examples[0], examples[1], dataset, start)


def check_phases(classifier: Classifier, phases: Sequence[PhaseConfig]) -> None:
    """Refuse phases that train what the model does not have, or store what they change."""
    for number, phase in enumerate(phases, 1):
        classifier.trained_paths(phase.train, f"phase.{number}.train")
        if phase.features == "cached":
            _first_layer(classifier, phase, f"phase.{number}")


def _first_layer(classifier: Classifier, phase: PhaseConfig, field: str) -> int:
    """The layer that stored outputs enter."""
    start = classifier.frozen_layers(phase.train)
    if start is None:
        raise UserError(
            f'{field}.features is "cached", but {field}.train also trains the embeddings, below which nothing can be '
            'stored: use "live", or patterns such as ["encoder/layers/*/bias", "head/*"].'
        )
    return start


def make_evaluation(classifier: Classifier, start: int) -> Callable[[Params, PhaseData], dict[str, Any]]:
    """A function that gives accuracy and mean loss on the held-out examples."""

    @jax.jit
    def batch(params: Params, examples: Example, real: Array) -> tuple[Array, Array, Array]:
        logits = jax.vmap(lambda example: classifier.logits(params, example, start))(examples)
        loss = jax.vmap(models.cross_entropy)(logits, examples.label)
        return class_sums(logits, examples.label, loss, real)

    def evaluate(params: Params, phase_data: PhaseData) -> dict[str, Any]:
        return accuracy_scores([batch(params, examples, real) for examples, real in phase_data.held_out])

    return evaluate


def _text(part: data.TokenisedText) -> models.TextExample:
    return models.TextExample(part.ids, part.mask, part.labels)


def _placed(train: Any, held_out: Any, dataset: Dataset, start: int) -> PhaseData:
    batches = []
    if isinstance(held_out, models.FeatureExample):
        pieces = [
            (np.arange(i, min(i + 4096, len(dataset.held_out))), 0) for i in range(0, len(dataset.held_out), 4096)
        ]
    else:
        pieces = list(by_length(dataset.held_out.mask, _EVALUATION_BATCH))
    for piece, length in pieces:
        size = len(piece) if length == 0 else batch_size(len(piece), length)
        for begin in range(0, len(piece), size):
            # One shape for each length: the last batch is filled up with rows that do not count.
            rows = piece[begin : begin + size]
            filled = np.resize(rows, size)
            examples = jax.tree.map(lambda x, i=filled: x[i], held_out)
            if length:
                tokens = {f: x for f, x in examples._asdict().items() if f in ("ids", "mask", "hidden")}
                examples = examples._replace(**{f: x[:, :length] for f, x in tokens.items()})
            batches.append((jax.tree.map(jnp.asarray, examples), np.arange(size) < len(rows)))
    return PhaseData(train, batches, start)
