"""Readers of real data: corpora from published packages and a user's own tables."""

from ._corpora import movie_sentences, newsgroups, tweets
from ._packages import package_path
from ._split import split
from ._tables import read_table
from ._types import BatchEncoder, LabelledText, TokenisedText, fingerprint, tokenise
from ._wordnet import wordnet_glosses

__all__ = [
    "BatchEncoder",
    "LabelledText",
    "TokenisedText",
    "fingerprint",
    "movie_sentences",
    "newsgroups",
    "package_path",
    "read_table",
    "split",
    "tokenise",
    "tweets",
    "wordnet_glosses",
]
