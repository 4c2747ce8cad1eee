"""Records of users: with users as the unit of privacy, all that one gave is one example."""

import numpy as np

from jaxdp import data


class Letters:
    """Encodes every letter as its place in the alphabet."""

    def encode_batch(self, texts, max_length):
        ids = np.zeros((len(texts), max_length), np.int32)
        mask = np.zeros((len(texts), max_length), bool)
        for row, text in enumerate(texts):
            for i, letter in enumerate(text[:max_length]):
                ids[row, i], mask[row, i] = ord(letter) - ord("a") + 1, True
        return ids, mask


def test_all_records_of_a_user_are_one_example():
    records = data.TextRecords(("a", "b", "c", "d", "e"), ("ann", "bob", "ann", "ann", "cy"))
    users = data.tokenise_users(records, Letters(), 2, None)
    assert users.ids.shape == (3, 3, 2)
    assert [set(row[row > 0].tolist()) for row in users.ids] == [{1, 3, 4}, {2}, {5}]
    fewer = data.tokenise_users(records, Letters(), 2, 2)
    assert fewer.ids.shape == (3, 2, 2) and len(fewer) == 3
