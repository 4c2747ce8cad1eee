"""Texts without labels, each given by somebody, and the users who gave them as examples."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Int32

from jaxdp._shown import of_shapes

from ._split import mark
from ._types import BatchEncoder

_ORDER_SEED = 1


@dataclasses.dataclass(frozen=True)
class TextRecords:
    """Texts and the user who gave each of them.

    Args:
        texts: the texts.
        users: a name for each; all different where every text is an example by itself.

    Raises:
        ValueError: unequal lengths.
    """

    __repr__ = of_shapes

    texts: tuple[str, ...]
    users: tuple[str, ...]

    def __post_init__(self):
        if len(self.texts) != len(self.users):
            raise ValueError(f"there are {len(self.texts)} texts but {len(self.users)} users: give one a text.")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def num_users(self) -> int:
        """How many different users there are."""
        return len(set(self.users))

    def take(self, rows: Int[np.ndarray, "k"] | Sequence[int]) -> "TextRecords":
        """The given rows, in the given order."""
        return TextRecords(tuple(self.texts[row] for row in rows), tuple(self.users[row] for row in rows))


@dataclasses.dataclass(frozen=True, eq=False)
class TokenRecords:
    """Token ids of users' records; one user is one example, the unit that privacy protects.

    Args:
        ids: token ids; a user with fewer records than others is filled up with empty ones.
        mask: true where `ids` holds a token.
    """

    __repr__ = of_shapes

    ids: Int32[np.ndarray, "users records seq"]
    mask: Bool[np.ndarray, "users records seq"]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all tokens; it identifies the data, so it is private like them."""
        digest = hashlib.sha256(repr(self.ids.shape).encode())
        digest.update(np.ascontiguousarray(self.ids, "<i4").tobytes())
        digest.update(np.ascontiguousarray(self.mask).tobytes())
        return digest.hexdigest()


def split_users(records: TextRecords, held_out: float | int, seed: int) -> tuple[TextRecords, TextRecords]:
    """Divide records into those of training users and those of held-out users.

    As `split`, with a hash of the user in place of one of the text: all records of a user are on one side, and with a
    fraction, where they go depends on that user alone.

    Args:
        records: texts and users.
        held_out: a fraction of the users, or how many of them. Public.
        seed: chooses the division. Public.

    Returns:
        Training records and held-out records, both in their old order.

    Raises:
        ValueError: a share out of range, or nobody left to train on.
    """
    marks = {user: mark(user, seed) for user in records.users}
    count = isinstance(held_out, int)
    if not 0 <= held_out < (len(marks) if count else 1.0):
        raise ValueError(
            f"held_out must be a count from 0 to {len(marks) - 1}, one less than the users, or a fraction in [0, 1), "
            f"not {held_out!r}."
        )
    bound = sorted(marks.values())[int(held_out)] if count else int(held_out * 2**64)
    out = np.array([marks[user] < bound for user in records.users])
    if np.all(out):
        raise ValueError(f"held_out = {held_out!r} leaves nobody to train on: give a smaller one.")
    return records.take(np.flatnonzero(~out)), records.take(np.flatnonzero(out))


def tokenise_users(
    records: TextRecords, tokenizer: BatchEncoder, max_length: int, max_records: int | None
) -> TokenRecords:
    """Tokenise the records of every user.

    Of a user with more than `max_records`, those are kept whose texts have the smallest hashes: which ones depends on
    that user's records alone, so that adding or removing a user changes nobody else's.

    Args:
        records: texts and users.
        tokenizer: `jaxdp.models.Tokenizer`, or anything with its ``encode_batch``.
        max_length: tokens of a record; longer ones are cut off. A public constant.
        max_records: records of a user; as many as the one with most has when None, which is then told by the shape.

    Returns:
        One row a user, in the order in which they first occur.

    Raises:
        ValueError: a `max_records` below 1.
    """
    if max_records is not None and max_records < 1:
        raise ValueError(f"max_records must be at least 1, not {max_records}.")
    rows: dict[str, list[int]] = {}
    for row, user in enumerate(records.users):
        rows.setdefault(user, []).append(row)
    cap = max((len(own) for own in rows.values()), default=1) if max_records is None else max_records
    chosen = [sorted(sorted(own, key=lambda row: mark(records.texts[row], _ORDER_SEED))[:cap]) for own in rows.values()]
    ids, mask = tokenizer.encode_batch([records.texts[row] for own in chosen for row in own], max_length)
    all_ids = np.zeros((len(chosen), cap, max_length), np.int32)
    all_mask = np.zeros((len(chosen), cap, max_length), bool)
    begin = 0
    for user, own in enumerate(chosen):
        all_ids[user, : len(own)] = ids[begin : begin + len(own)]
        all_mask[user, : len(own)] = mask[begin : begin + len(own)]
        begin += len(own)
    return TokenRecords(all_ids, all_mask)
