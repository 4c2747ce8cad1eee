"""The task of text classification by a pretrained decoder with a head on it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdp import data, models
from jaxdp._shown import of_shapes
from jaxdp.training._errors import UserError
from jaxdp.training.config._config import Config
from jaxdp.training.config._phase import PhaseConfig
from jaxdp.training.tasks._data import Dataset, load_dataset, load_tokenizer
from jaxdp.training.tasks._decoder import batches, check_cached, load_decoder, stored_hidden, with_adapters
from jaxdp.training.tasks._split_model import Params, SplitModel
from jaxdp.training.tasks._task import Prepared, Progress, Task, accuracy_scores, class_sums

_EVALUATION_TOKENS = 1 << 13
# Enough for a mean; they are encoded at every start.
_CENTER_TEXTS, _CENTER_LENGTH = 512, 48

Example = models.TextExample | models.HiddenExample | models.FeatureExample


@dataclasses.dataclass(frozen=True, eq=False)
class DecoderClassification(Task):
    """A `Task`: labelled texts and a `DecoderClassifier`."""

    __repr__ = of_shapes

    kind = "text_classification"
    model: SplitModel
    dataset: Dataset
    tokenizer: models.Tokenizer

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
        for number, phase in enumerate(phases, 1):
            field = f"phase.{number}"
            check_cached(self.trained_paths(phase.train, f"{field}.train"), "decoder/", phase, field)

    def prepare(self, params: Params, phase: PhaseConfig, field: str, directory: Path, progress: Progress) -> Prepared:
        """Token ids, or the stored outputs of frozen layers; for a head alone, what it sees of each text."""
        head_only = all(name.startswith("head/") for name in self.trained_paths(phase.train, f"{field}.train"))
        total, before = self.num_train + self.num_held_out, 0
        examples: list[Example] = []
        for part in (self.dataset.train, self.dataset.held_out):
            if phase.features == "live":
                examples.append(models.TextExample(part.ids, part.mask, part.labels))
                continue
            told = lambda done, _, at=before: progress(at + done, total)
            below = self.model.build(params).decoder
            hidden = stored_hidden(
                below, params, "decoder/", part.ids, part.mask, phase.features_dtype, directory, told
            )
            example = models.HiddenExample(hidden, part.mask, part.labels)
            examples.append(self._features(params, example) if head_only else example)
            before += len(part)
        train = jax.tree.map(jnp.asarray, examples[0])
        if isinstance(examples[1], models.FeatureExample):
            held_out = [(jax.tree.map(jnp.asarray, examples[1]), np.ones(self.num_held_out, bool))]
        else:
            held_out = list(batches(examples[1], examples[1].mask, _EVALUATION_TOKENS))

        @jax.jit
        def score(params: Params, examples: Example, real: Array) -> tuple[Array, Array, Array]:
            logits = jax.vmap(lambda example: self._logits(params, example))(examples)
            losses = jax.vmap(models.cross_entropy)(logits, examples.label)
            return class_sums(logits, examples.label, losses, real)

        return Prepared(
            train,
            held_out,
            lambda params, example: models.cross_entropy(self._logits(params, example), example.label),
            lambda params, held_out: accuracy_scores([score(params, *batch) for batch in held_out]),
        )

    def _logits(self, params: Params, example: Example) -> Array:
        model: models.DecoderClassifier = self.model.build(params)
        if isinstance(example, models.FeatureExample):
            return model.head(example.features)
        if isinstance(example, models.HiddenExample):
            return model.from_hidden(example.hidden, example.mask)
        return model(example.ids, example.mask)

    def _features(self, params: Params, examples: models.HiddenExample) -> models.FeatureExample:
        """What the head sees of every text."""
        features = jax.jit(
            lambda params, part: jax.vmap(lambda e: self.model.build(params).features(e.hidden, e.mask))(part)
        )
        size = self.model.build(params).decoder.config.hidden_size
        numbered = examples._replace(label=np.arange(len(examples.label)))
        found = np.zeros((len(examples.label), size), np.float32)
        for part, real in batches(numbered, numbered.mask, _EVALUATION_TOKENS):
            found[np.asarray(part.label)[real]] = np.asarray(features(params, part))[real]
        return models.FeatureExample(found, examples.label)

    def save(self, params: Params, directory: Path) -> None:
        """Write a Hugging Face directory, adapters merged, with the tokenizer in it."""
        models.save_pretrained(self.model.build(self.model.params | params), directory)
        self.tokenizer.save(directory)


def load_decoder_classification(config: Config, path: Path) -> DecoderClassification:
    """The decoder that `[model]` names with a new head on it, and the texts that `[data]` names."""
    if config.model.dropout:
        raise UserError("model.dropout is given, but decoders have none: remove it.")
    dataset = load_dataset(config)
    decoder = load_decoder(config, path)
    tokenizer = load_tokenizer(path, decoder.config.vocab_size)
    center = None if config.model.center is None else _public_mean(config, decoder, tokenizer)
    model = new_classifier(config, decoder, dataset.train.label_names, center)
    return DecoderClassification(SplitModel.of(with_adapters(model, config), path), dataset, tokenizer)


def new_classifier(
    config: Config, decoder: models.LlamaDecoder, names: tuple[str, ...], center: np.ndarray | None
) -> models.DecoderClassifier:
    """A new head on a decoder, as `[model]` describes it."""
    return models.DecoderClassifier(
        decoder,
        len(names),
        label_names=names,
        pooling=_pooling(config),
        normalize=config.model.normalize,
        feature_center=center,
        feature_scale=config.model.feature_scale if config.model.feature_scale != 1.0 else None,
    )


def _pooling(config: Config) -> Literal["mean", "last"]:
    return "last" if config.model.pooling == "last_token" else "mean"


def _public_mean(config: Config, decoder: models.LlamaDecoder, tokenizer: models.Tokenizer) -> np.ndarray:
    """The mean features of a public corpus, in which features of all texts agree."""
    try:
        corpus = {"tweets": data.tweets, "movie_sentences": data.movie_sentences}[str(config.model.center)]()
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"model.center: {error}") from error
    chosen = corpus.take(np.linspace(0, len(corpus) - 1, _CENTER_TEXTS).astype(np.int64))
    texts = data.tokenise(chosen, tokenizer, _CENTER_LENGTH)
    plain = SplitModel.of(
        models.DecoderClassifier(decoder, 2, pooling=_pooling(config), normalize=config.model.normalize), None
    )

    @jax.jit
    def total(params: Params, ids: Array, mask: Array) -> Array:
        model = plain.build(params)
        return jnp.sum(jax.vmap(lambda i, m: model.features(model.decoder.below(i), m))(ids, mask), axis=0)

    size = 128
    sums = [total(plain.params, texts.ids[i : i + size], texts.mask[i : i + size]) for i in range(0, len(texts), size)]
    return np.asarray(sum(np.asarray(s) for s in sums)) / len(texts)
