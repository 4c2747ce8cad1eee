"""A public division of a data set into training and held-out rows."""

import hashlib

import numpy as np

from ._types import LabelledText

_RANGE = 2**64


def split(dataset: LabelledText, held_out: int | float, seed: int) -> tuple[LabelledText, LabelledText]:
    """Divide a data set into training rows and held-out rows.

    Each text t gets the number ``u(t) = SHA-256(seed, t) / 2^256`` in [0, 1), where t is taken without regard
    to case and spacing; so copies of a text always lie on the same side. A fraction f holds out the rows with
    ``u(t) < f``: where a row goes depends on that row alone, so adding or removing a row moves no other, and
    the guarantee for the training rows is one for the whole data set too. A count k holds out the k rows of
    smallest u(t) (and the further copies of the last one's text): adding a row may then move one other row
    across, so the guarantee is for the training rows given the division.

    ===================  ==========================================
    `held_out`           rows held out
    ===================  ==========================================
    0 or 0.0             none
    fraction in (0, 1)   about that fraction
    count in [1, n)      that many; more only to keep copies together
    anything else        ValueError
    ===================  ==========================================

    Args:
        dataset: the labelled texts; labels play no part.
        held_out: a count (int) or a fraction (float). Public.
        seed: chooses the division. Public.

    Returns:
        Training rows and held-out rows, both in their old order.

    Raises:
        ValueError: a `held_out` as above, or nothing left to train on.

    Example:
        >>> import numpy as np
        >>> texts = tuple(f"text {i}" for i in range(10))
        >>> train, test = split(LabelledText(texts, np.zeros(10, np.int32), ("a", "b")), 3, seed=0)
        >>> len(train), len(test)
        (7, 3)
    """
    count = isinstance(held_out, int) and not isinstance(held_out, bool)
    if isinstance(held_out, bool) or not (0 <= held_out < (len(dataset) if count else 1.0)):
        raise ValueError(
            f"held_out must be a count from 0 to {len(dataset) - 1}, one less than the rows, or a "
            f"fraction in [0, 1), not {held_out!r}."
        )
    marks = np.array([mark(text, seed) for text in dataset.texts], np.uint64)
    if held_out == 0:
        out = np.zeros(len(marks), bool)
    elif count:
        out = marks <= np.sort(marks)[int(held_out) - 1]
    else:
        out = marks < np.uint64(int(held_out * _RANGE))
    if np.all(out):
        raise ValueError(f"held_out = {held_out!r} leaves no row to train on: give a smaller one.")
    rows = np.arange(len(marks))
    return dataset.take(rows[~out]), dataset.take(rows[out])


def mark(text: str, seed: int) -> int:
    """The first 64 bits of a hash of the seed and the text."""
    plain = " ".join(text.casefold().split())
    digest = hashlib.sha256(f"{seed}\0{plain}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")
