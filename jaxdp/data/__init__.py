"""Readers of real data: corpora from published packages and a user's own tables."""

from ._corpora import movie_sentences, newsgroups, tweets
from ._images import LabelledImages, fashion_mnist, read_idx
from ._packages import package_path
from ._records import TextRecords, TokenRecords, split_users, tokenise_users
from ._split import split
from ._tables import read_records, read_table
from ._types import BatchEncoder, LabelledText, TokenisedText, fingerprint, tokenise
from ._wordnet import wordnet_glosses, wordnet_records

__all__ = [
    "BatchEncoder",
    "LabelledImages",
    "LabelledText",
    "TextRecords",
    "TokenRecords",
    "TokenisedText",
    "fashion_mnist",
    "fingerprint",
    "movie_sentences",
    "newsgroups",
    "package_path",
    "read_idx",
    "read_records",
    "read_table",
    "split",
    "split_users",
    "tokenise",
    "tokenise_users",
    "tweets",
    "wordnet_glosses",
    "wordnet_records",
]
