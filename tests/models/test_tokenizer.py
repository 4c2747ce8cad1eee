"""Texts to ids."""

import numpy as np
import pytest

from jaxdp import models

pytest.importorskip("tokenizers")


@pytest.fixture
def tokenizer(minilm_directory):
    return models.Tokenizer(minilm_directory / "tokenizer.json")


def test_padding_and_truncation_follow_the_call_and_not_the_file(tokenizer):
    """The file itself pads to 128."""
    ids, mask = tokenizer.encode_batch(["a b c d e f", "a"], 5)
    assert ids.dtype == np.int32
    assert mask.dtype == bool
    assert mask.tolist() == [[True] * 5, [True, True, True, False, False]]
    assert ids[:, 0].tolist() == [101, 101]
    assert (ids[0, -1], ids[1, 2]) == (102, 102)  # the closing token survives truncation
    assert ids[1, 3:].tolist() == [0, 0]
    assert tokenizer.lengths(["a b c d e f", "a"]).tolist() == [8, 3]
    assert tokenizer.vocab_size == 30522


def test_no_texts_give_no_rows(tokenizer):
    ids, mask = tokenizer.encode_batch([], 4)
    assert ids.shape == mask.shape == (0, 4)


def test_wrong_arguments_are_explained(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="max_length must be more than the 2 special tokens"):
        tokenizer.encode_batch(["a"], 2)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json does not exist"):
        models.Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        models.Tokenizer(tmp_path)
