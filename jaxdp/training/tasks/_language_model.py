"""The task of a language model: the next token of every record, an example being one record or all of one user."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdp import data, models, sampling
from jaxdp._shown import of_shapes
from jaxdp.training._errors import UserError
from jaxdp.training.config._config import Config
from jaxdp.training.config._phase import PhaseConfig
from jaxdp.training.tasks._data import load_tokenizer
from jaxdp.training.tasks._decoder import batches, check_cached, load_decoder, stored_hidden, with_adapters
from jaxdp.training.tasks._records import load_records, tokenised
from jaxdp.training.tasks._split_model import Params, SplitModel
from jaxdp.training.tasks._task import Prepared, Progress, Sample, Task, perplexity_scores, record_sums

# Logits are as wide as the vocabulary: few tokens at a time.
_EVALUATION_TOKENS = 1024
# Public: samples are computed from the private model and need no secret.
_SAMPLES_SEED = 0

Example = models.TokenExample | models.HiddenTokens


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel(Task):
    """A `Task`: users' records and a decoder."""

    __repr__ = of_shapes

    kind = "language_model"
    config: Config
    model: SplitModel
    train: data.TokenRecords
    held_out: data.TokenRecords
    tokenizer: models.Tokenizer
    scored_at_first = True

    @property
    def num_train(self) -> int:
        """Number of training records or users."""
        return len(self.train)

    @property
    def num_held_out(self) -> int:
        """Number of held-out records or users."""
        return len(self.held_out)

    @property
    def data_fingerprint(self) -> str:
        """Of all tokens."""
        return self.train.fingerprint + self.held_out.fingerprint

    def check(self, phases: Sequence[PhaseConfig]) -> None:
        """Refuse phases that do not fit the model, and prompts that do not fit its context."""
        for number, phase in enumerate(phases, 1):
            field = f"phase.{number}"
            check_cached(self.trained_paths(phase.train, f"{field}.train"), "", phase, field)
        self._prompts()

    def prepare(self, params: Params, phase: PhaseConfig, field: str, directory: Path, progress: Progress) -> Prepared:
        """Token ids, with the stored outputs of frozen layers if the phase asks for them."""
        del field
        total = sum(part.mask.shape[0] * part.mask.shape[1] for part in (self.train, self.held_out))
        examples, before = [], 0
        for part in (self.train, self.held_out):
            flat = (part.ids.shape[0] * part.ids.shape[1], part.ids.shape[2])
            ids, mask = part.ids.reshape(flat), part.mask.reshape(flat)
            if phase.features == "cached":
                told = lambda done, _, at=before: progress(at + done, total)
                decoder = self.model.build(params)
                hidden = stored_hidden(decoder, params, "", ids, mask, phase.features_dtype, directory, told)
                examples.append(models.HiddenTokens(ids, mask, hidden))
            else:
                examples.append(models.TokenExample(ids, mask))
            before += flat[0]
        records = self.train.ids.shape[:2] if self.config.data.unit == "user" else self.train.ids.shape[:1]
        train = jax.tree.map(lambda x: jnp.asarray(x.reshape(*records, *x.shape[1:])), examples[0])
        rows = np.flatnonzero(examples[1].mask.sum(axis=1) > 1)
        kept = jax.tree.map(lambda x: x[rows], examples[1])
        held_out = list(batches(kept, kept.mask, _EVALUATION_TOKENS))

        @jax.jit
        def score(params: Params, examples: Example, real: Array) -> tuple[Array, Array, Array]:
            losses = jax.vmap(lambda example: self._loss(params, example))(examples)
            tokens = jnp.where(real, jnp.sum(examples.mask, axis=1) - 1, 0)
            return record_sums(losses, tokens)

        return Prepared(
            train,
            held_out,
            self._loss,
            lambda params, held_out: perplexity_scores([score(params, *batch) for batch in held_out]),
        )

    def _loss(self, params: Params, example: Example) -> Array:
        return models.record_loss(self.model.build(params), example)

    def save(self, params: Params, directory: Path) -> None:
        """Write a Hugging Face directory, adapters merged, with the tokenizer in it."""
        models.save_pretrained(self.model.build(self.params | params), directory)
        self.tokenizer.save(directory)

    def samples(self, params: Params) -> list[Sample]:
        """A continuation of each prompt by the model as it was and as it is now."""
        prompts = self.config.samples.prompts
        if not prompts:
            return []
        before, after = (self._continued(values) for values in (self.params, self.params | params))
        return [Sample(*texts) for texts in zip(prompts, before, after, strict=True)]

    def _continued(self, params: Params) -> list[str]:
        section = self.config.samples
        ids, mask = self._prompts()
        written, kept = models.generate(
            self.model.build(params),
            jnp.asarray(ids),
            jnp.asarray(mask),
            sampling.key_from_seed(_SAMPLES_SEED),
            max_new_tokens=section.max_new_tokens,
            temperature=section.temperature,
            top_k=section.top_k,
        )
        lengths = mask.sum(axis=1)
        rows = zip(np.asarray(written), np.asarray(kept), lengths, strict=True)
        return [self.tokenizer.decode(row[start:][real[start:]]) for row, real, start in rows]

    def _prompts(self) -> tuple[np.ndarray, np.ndarray]:
        section, longest = self.config.samples, self.model.build(self.params).config.max_position_embeddings
        if not section.prompts:
            return np.zeros((0, 1), np.int32), np.zeros((0, 1), bool)
        length = int(self.tokenizer.lengths(section.prompts).max())
        if length + section.max_new_tokens > longest or not all(section.prompts):
            raise UserError(
                f"samples.prompts must not be empty, and with max_new_tokens fit into the model's {longest} tokens."
            )
        return self.tokenizer.encode_batch(section.prompts, length)


def load_language_model(config: Config, path: Path) -> LanguageModel:
    """The decoder that `[model]` names and the records that `[data]` names."""
    decoder = with_adapters(load_decoder(config, path), config)
    tokenizer = load_tokenizer(path, decoder.config.vocab_size)
    train, held_out = (tokenised(config, part, tokenizer) for part in load_records(config))
    return LanguageModel(config, SplitModel.of(decoder, path), train, held_out, tokenizer)
