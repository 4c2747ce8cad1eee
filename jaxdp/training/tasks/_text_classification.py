"""The task of text classification by a pretrained encoder with a head on it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jaxdp import models
from jaxdp._shown import of_shapes
from jaxdp.training._errors import UserError
from jaxdp.training.config._phase import PhaseConfig
from jaxdp.training.tasks._classifier import Classifier
from jaxdp.training.tasks._data import Dataset
from jaxdp.training.tasks._phase_data import check_phases, make_evaluation, make_phase_data
from jaxdp.training.tasks._split_model import Params
from jaxdp.training.tasks._task import Prepared, Progress, Task


@dataclasses.dataclass(frozen=True, eq=False)
class TextClassification(Task):
    """A `Task`: labelled texts and a `Classifier`."""

    __repr__ = of_shapes

    kind = "text_classification"
    model: Classifier
    dataset: Dataset

    @property
    def label_names(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Names of the classes."""
        return self.dataset.train.label_names

    @property
    def num_train(self) -> int:
        """Number of training texts."""
        return len(self.dataset.train)

    @property
    def num_held_out(self) -> int:
        """Number of held-out texts."""
        return len(self.dataset.held_out)

    @property
    def data_fingerprint(self) -> str:
        """Of the tokens and labels."""
        return self.dataset.fingerprint

    def check(self, phases: Sequence[PhaseConfig]) -> None:
        """Refuse phases that do not fit the model."""
        check_phases(self.model, phases)
        for number, phase in enumerate(phases, 1):
            if phase.features_dtype != "float32":
                raise UserError(
                    f"phase.{number}.features_dtype has no meaning for an encoder, whose outputs are kept in float32: "
                    "remove it."
                )

    def prepare(self, params: Params, phase: PhaseConfig, field: str, directory: Path, progress: Progress) -> Prepared:
        """Token ids, or the stored outputs of frozen layers."""
        data = make_phase_data(self.model, params, self.dataset, phase, field, directory, progress)
        evaluate = make_evaluation(self.model, data.start)
        return Prepared(
            data.train,
            data.held_out,
            lambda params, example: self.model.loss(params, example, data.start),
            lambda params, held_out: evaluate(params, dataclasses.replace(data, held_out=held_out)),
        )

    def save(self, params: Params, directory: Path) -> None:
        """Write a Hugging Face directory with the tokenizer in it."""
        model = self.model.build(self.params | params)
        models.save_pretrained(model, directory, tokenizer_dir=self.model.directory)
