"""The model of a run as plain dictionaries of arrays, and its loss and logits of one example."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jaxtyping import Array

from jaxdp import data, models
from jaxdp._shown import of_shapes
from jaxdp.training._errors import UserError
from jaxdp.training.config._config import Config
from jaxdp.training.config._sections import ModelConfig
from jaxdp.training.tasks._split_model import Params, SplitModel

# Enough for a mean; they are encoded at every start.
_CENTER_TEXTS, _CENTER_LENGTH = 1024, 48

Example = models.TextExample | models.HiddenExample | models.FeatureExample


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier(SplitModel):
    """A `SequenceClassifier`, taken apart."""

    __repr__ = of_shapes

    def features(self, params: Params, means: np.ndarray) -> np.ndarray:
        """What the head sees of every text, from the masked means of all levels."""
        model = self.build(params)
        head_inputs = jax.jit(jax.vmap(model.features))
        return np.concatenate([np.asarray(head_inputs(means[i : i + 4096])) for i in range(0, len(means), 4096)])

    def frozen_layers(self, selection: str | tuple[str, ...]) -> int | None:
        """How many layers from the bottom a phase leaves as they are; None if not even the embeddings."""
        return models.frozen_layers(selection, self.build(self.params))

    def loss(self, params: Params, example: Example, start: int) -> Array:
        """Cross-entropy of one example, in training mode."""
        return models.cross_entropy(self._logits(params, example, start, False), example.label)

    def logits(self, params: Params, example: Example, start: int) -> Array:
        """Logits of one example, in evaluation mode."""
        return self._logits(params, example, start, True)

    def _logits(self, params: Params, example: Example, start: int, deterministic: bool) -> Array:
        model = self.build(params)
        if isinstance(example, models.FeatureExample):
            return model.head(example.features)
        if isinstance(example, models.HiddenExample):
            inputs = (example.hidden, example.mask, start)
            return model.from_hidden(*inputs, below=example.below, key=example.key, deterministic=deterministic)
        return model(example.ids, example.mask, key=example.key, deterministic=deterministic)


def load_classifier(config: ModelConfig, directory: Path, label_names: Sequence[str]) -> Classifier:
    """The pretrained encoder with a new head on it."""
    try:
        encoder = models.load_pretrained(directory, dropout=config.dropout)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"model.path: {error}") from error
    model = models.SequenceClassifier(
        encoder,
        len(label_names),
        label_names=tuple(label_names),
        pooling=_levels(config),
        normalize=config.normalize,
        feature_center=None if config.center is None else _public_mean(config, encoder, directory),
        feature_scale=config.feature_scale if config.feature_scale != 1.0 else None,
    )
    return Classifier.of(model, directory)


def encoder_pooling(config: Config) -> Literal["last", "every_layer"]:
    """What the head on an encoder sees; options for decoders are refused."""
    given = {
        "model.layers": config.model.layers,
        "model.top_layers": config.model.top_layers,
        "lora.rank": config.lora.rank,
        'model.pooling = "last_token"': config.model.pooling == "last_token",
    }
    for name, value in given.items():
        if value:
            raise UserError(f"{name} is given, but model.path is an encoder: remove it, or name a decoder.")
    return _levels(config.model)


def _levels(config: ModelConfig) -> Literal["last", "every_layer"]:
    return "last" if config.pooling == "last" else "every_layer"


def _public_mean(config: ModelConfig, encoder: models.BertEncoder, directory: Path) -> np.ndarray:
    """The mean features of a public corpus: features point much the same way for all texts, which is none of a head's
    business and takes up room under the clipping norm.
    """
    try:
        corpus = {"tweets": data.tweets, "movie_sentences": data.movie_sentences}[str(config.center)]()
        chosen = corpus.take(np.linspace(0, len(corpus) - 1, _CENTER_TEXTS).astype(np.int64))
        length = min(_CENTER_LENGTH, encoder.config.max_length)
        texts = data.tokenise(chosen, models.Tokenizer(directory), length)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"model.center: {error}") from error
    means = models.encode(
        encoder, texts.ids, texts.mask, layers=encoder.config.num_hidden_layers, hidden=False, batch_size=128
    ).means
    plain = models.SequenceClassifier(encoder, 2, pooling=_levels(config), normalize=config.normalize)
    return np.asarray(jax.jit(jax.vmap(plain.features))(means)).mean(axis=0)
