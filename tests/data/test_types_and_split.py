"""Data sets as values: validation, fingerprint, division."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdp import data
from jaxdp.data import LabelledText, TokenisedText

NAMES = ("a", "b", "c")


def labelled(texts, labels=None):
    labels = [i % 3 for i in range(len(texts))] if labels is None else labels
    return LabelledText(tuple(texts), np.array(labels, np.int32), NAMES)


def tokenised():
    return TokenisedText(
        np.arange(12, dtype=np.int32).reshape(3, 4), np.ones((3, 4), bool), np.array([0, 1, 2], np.int32), NAMES
    )


@pytest.mark.quick
def test_wrong_labels_and_lengths_are_explained():
    with pytest.raises(ValueError, match="there are 2 texts but 1 labels"):
        labelled(["x", "y"], [0])
    with pytest.raises(ValueError, match="row 2 has a label that none of the 3 label names has"):
        labelled(["x", "y"], [0, 3])
    with pytest.raises(ValueError, match="row 1 has a label that none"):
        labelled(["x", "y"], [-1, 0])
    with pytest.raises(ValueError, match="label_names must be at least two different names"):
        LabelledText(("x",), np.zeros(1, np.int32), ("a", "a"))
    with pytest.raises(ValueError, match=r"ids \(3, 4\), mask \(2, 4\)"):
        dataclasses.replace(tokenised(), mask=np.ones((2, 4), bool))


def test_take_keeps_rows_together():
    part = labelled(["x", "y", "z"]).take([2, 0])
    assert part.texts == ("z", "x")
    assert part.labels.tolist() == [2, 0]
    rows = tokenised().take(np.array([1]))
    assert rows.ids.tolist() == [[4, 5, 6, 7]]
    assert rows.labels.tolist() == [1]


def test_tokenise_keeps_labels_and_order():
    class Letters:
        def encode_batch(self, texts, max_length):
            ids = np.array([[ord(text[0])] * max_length for text in texts], np.int32)
            return ids, np.ones_like(ids, bool)

    result = data.tokenise(labelled(["x", "y"]), Letters(), 3)
    assert result.ids.tolist() == [[120] * 3, [121] * 3]
    assert result.labels.tolist() == [0, 1]
    assert result.label_names == NAMES


def test_the_fingerprint_changes_with_anything_in_the_data():
    base = labelled(["ab", "c"], [0, 1])
    changed = [
        labelled(["a", "bc"], [0, 1]),
        labelled(["c", "ab"], [0, 1]),
        labelled(["ab", "c"], [1, 0]),
        labelled(["ab", "c", ""], [0, 1, 0]),
        dataclasses.replace(base, label_names=("a", "c", "b")),
        dataclasses.replace(base, label_names=("a", "b", "c", "d")),
    ]
    tokens = tokenised()
    changed += [
        tokens,
        dataclasses.replace(tokens, ids=tokens.ids + 1),
        dataclasses.replace(tokens, mask=~tokens.mask),
        TokenisedText(tokens.ids[:2], tokens.mask[:2], tokens.labels[:2], NAMES),
    ]
    prints = [data.fingerprint(dataset) for dataset in [base, *changed]]
    assert len(set(prints)) == len(prints)
    assert data.fingerprint(labelled(["ab", "c"], [0, 1])) == prints[0]
    # Over versions and machines too, or no run could be resumed after an upgrade.
    assert prints[0] == "357122ec200f219871cbb6c30e7fed9138158617842be8fcef6c797ec39ea12e"


def test_the_division_is_reproducible_and_depends_on_the_seed():
    dataset = labelled([f"text {i}" for i in range(200)])
    train, held_out = data.split(dataset, 50, seed=3)
    again = data.split(dataset, 50, seed=3)
    assert (train.texts, held_out.texts) == (again[0].texts, again[1].texts)
    assert len(held_out) == 50
    assert data.split(dataset, 50, seed=4)[1].texts != held_out.texts
    assert held_out.texts[:3] == ("text 3", "text 6", "text 7")
    rows = [dataset.texts.index(text) for text in train.texts]
    assert rows == sorted(rows)
    assert train.labels.tolist() == [row % 3 for row in rows]


@given(st.lists(st.text(max_size=5), min_size=2, max_size=30), st.integers(0, 5), st.floats(0.05, 0.9))
@settings(max_examples=60, deadline=None)
def test_adding_a_row_moves_no_other_row_of_a_fraction(texts, seed, fraction):
    """The division is a function of each row alone, so neighbouring data sets have neighbouring training parts."""

    def held_out(rows):
        # Rows that surely are on either side, so that the training part is not empty.
        always = [f"filler {i}" for i in range(200)]
        train, out = data.split(labelled(rows + always), fraction, seed)
        assert sorted(train.texts + out.texts) == sorted(rows + always)
        assert not {plain(t) for t in train.texts} & {plain(t) for t in out.texts}
        return set(out.texts)

    without, whole = held_out(texts[:-1]), held_out(texts)
    assert whole - {texts[-1]} == without - {texts[-1]}


def plain(text):
    return " ".join(text.casefold().split())


def test_a_fraction_holds_out_about_that_share():
    dataset = labelled([f"text {i}" for i in range(4_000)])
    assert abs(len(data.split(dataset, 0.25, seed=1)[1]) - 1_000) < 140  # 5 standard deviations


def test_copies_stay_together_when_a_count_is_held_out():
    dataset = labelled(["Twice  told", "x", "y", "twice told"] * 3)
    for count in range(1, 6):
        train, held_out = data.split(dataset, count, seed=count)
        assert len(held_out) >= count
        assert not {plain(t) for t in train.texts} & {plain(t) for t in held_out.texts}


@pytest.mark.parametrize("nothing", [0, 0.0])
def test_nothing_can_be_held_out(nothing):
    train, held_out = data.split(labelled(["x", "y"]), nothing, seed=0)
    assert (len(train), len(held_out)) == (2, 0)


@pytest.mark.parametrize("wrong", [-1, 2, 1.0, -0.1, float("nan"), True])
def test_impossible_divisions_are_refused(wrong):
    with pytest.raises(ValueError, match="held_out must be a count from 0 to 1, one less than the rows, or a"):
        data.split(labelled(["x", "y"]), wrong, seed=0)


def test_a_division_without_training_rows_is_refused():
    with pytest.raises(ValueError, match="held_out = 1 leaves no row to train on"):
        data.split(labelled(["x", "X"]), 1, seed=0)
