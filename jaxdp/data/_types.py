"""Labelled texts, before and after tokenisation."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, Int32

from jaxdp._shown import of_shapes


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledText:
    """Texts with the index of their class; one row is one example, the unit that privacy protects.

    Args:
        texts: the texts.
        labels: indices into `label_names`, one a text.
        label_names: names of the classes; they are public.

    Raises:
        ValueError: unequal lengths, a label that is no index, or fewer than two different names.

    Example:
        >>> import numpy as np
        >>> len(LabelledText(("good", "bad"), np.array([1, 0], np.int32), ("negative", "positive")))
        2
    """

    __repr__ = of_shapes

    texts: tuple[str, ...]
    labels: Int32[np.ndarray, "n"]
    label_names: tuple[str, ...]

    def __post_init__(self):
        if len(self.texts) != len(self.labels):
            raise ValueError(f"there are {len(self.texts)} texts but {len(self.labels)} labels: give one a text.")
        _check_labels(self.labels, self.label_names)

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Int[np.ndarray, "k"] | Sequence[int]) -> "LabelledText":
        """The given rows, in the given order."""
        index = np.asarray(rows, np.int64)
        texts = tuple(self.texts[row] for row in index)
        return LabelledText(texts, self.labels[index], self.label_names)


@dataclasses.dataclass(frozen=True, eq=False)
class TokenisedText:
    """Token ids of fixed length with the index of their class.

    Args:
        ids: token ids, one row a text.
        mask: true where `ids` holds a token.
        labels: indices into `label_names`.
        label_names: names of the classes; they are public.

    Raises:
        ValueError: unequal lengths, a label that is no index, or fewer than two different names.
    """

    __repr__ = of_shapes

    ids: Int32[np.ndarray, "n seq"]
    mask: Bool[np.ndarray, "_ _"]
    labels: Int32[np.ndarray, "_"]
    label_names: tuple[str, ...]

    def __post_init__(self):
        if self.ids.shape != self.mask.shape or len(self.ids) != len(self.labels):
            raise ValueError(
                f"ids {self.ids.shape}, mask {self.mask.shape} and labels {self.labels.shape} must have one row a text."
            )
        _check_labels(self.labels, self.label_names)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Int[np.ndarray, "k"] | Sequence[int]) -> "TokenisedText":
        """The given rows, in the given order."""
        index = np.asarray(rows, np.int64)
        return TokenisedText(self.ids[index], self.mask[index], self.labels[index], self.label_names)


@runtime_checkable
class BatchEncoder(Protocol):
    """What `tokenise` needs of a tokenizer; `jaxdp.models.Tokenizer` is one."""

    def encode_batch(self, texts: Sequence[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask, both [n, max_length]."""
        ...


def tokenise(dataset: LabelledText, tokenizer: BatchEncoder, max_length: int) -> TokenisedText:
    """Tokenise every text to the same length.

    Args:
        dataset: the texts.
        tokenizer: `jaxdp.models.Tokenizer`, or anything with its ``encode_batch``.
        max_length: tokens a row; longer texts are cut off, shorter ones padded. A public constant.

    Returns:
        The same rows in the same order.
    """
    ids, mask = tokenizer.encode_batch(dataset.texts, max_length)
    return TokenisedText(ids, mask, dataset.labels, dataset.label_names)


def fingerprint(dataset: LabelledText | TokenisedText) -> str:
    """SHA-256 over rows, labels and label names, in order; any change of the data changes it.

    It identifies the private data, so it belongs beside a checkpoint and not in a published report.

    Args:
        dataset: the data.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()

    def add(part: bytes) -> None:
        # The length first: "ab", "c" and "a", "bc" must differ.
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)

    add(f"{len(dataset.label_names)} names, {len(dataset)} rows".encode())
    for name in dataset.label_names:
        add(name.encode("utf-8", "surrogatepass"))
    if isinstance(dataset, LabelledText):
        for text in dataset.texts:
            add(text.encode("utf-8", "surrogatepass"))
    else:
        add(repr(dataset.ids.shape).encode())
        add(np.ascontiguousarray(dataset.ids, "<i4").tobytes())
        add(np.ascontiguousarray(dataset.mask).tobytes())
    add(np.ascontiguousarray(dataset.labels, "<i4").tobytes())
    return digest.hexdigest()


def _check_labels(labels: np.ndarray, names: tuple[str, ...]) -> None:
    """Every label must be an index into two or more different names."""
    if len(names) < 2 or len(set(names)) != len(names):
        raise ValueError(f"label_names must be at least two different names, not {names}.")
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(names)):
        row = int(np.argmax((labels < 0) | (labels >= len(names))))
        raise ValueError(
            f"row {row + 1} has a label that none of the {len(names)} label names has: labels are indices from 0."
        )
