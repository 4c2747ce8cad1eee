"""Labelled texts from a user's own CSV, JSONL or Parquet file."""

import collections
import contextlib
import csv
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdp._reading import reason, regular_file

from ._records import TextRecords
from ._types import LabelledText

_LONGEST_LABEL = 1000
# From so many rows on there should be fewer classes than half of them.
_MANY_ROWS = 20

_Row = tuple[int, Any, Any]  # row number from 1, text, label


def read_table(
    path: str | Path, text_column: str, label_column: str, *, label_names: Sequence[str] | None = None
) -> LabelledText:
    """Read texts and labels from a table; each row is one example.

    The kind of file follows from its name: ``.csv`` and ``.tsv`` with a header line, ``.jsonl`` or
    ``.ndjson`` with one object a line, ``.parquet`` or ``.pq``. Labels are strings, whole numbers or
    true/false. Without `label_names` the classes are the labels that occur (numbers in order of size, strings
    sorted): then the set of names is derived from the rows and published with the model, so give
    `label_names` where even that must not depend on them.

    Args:
        path: the file; text is UTF-8.
        text_column: name of the column with the texts.
        label_column: name of the column with the labels.
        label_names: the classes, in the order of the logits.

    Returns:
        All rows in their order; copies of a text are kept, and `split` keeps them on one side.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown kind of file, a missing column, no rows, a missing text or label, a label that
            is not among `label_names`, or text that is not UTF-8; rows are counted from 1 without the header.

    Example:
        ``dataset = read_table("reviews.csv", "review", "stars")``
    """
    file = Path(path)
    texts, labels = _columns(file, text_column, label_column)
    names = _names(file, labels) if label_names is None else tuple(label_names)
    for sentence in _doubts(file, label_column, names, len(texts)):
        warnings.warn(sentence, stacklevel=2)
    index = {name: i for i, name in enumerate(names)}
    for row, label in enumerate(labels, 1):
        if str(label) not in index:
            raise ValueError(
                f"{file} row {row} has a {label_column} that is not among label_names {', '.join(names)}: correct the "
                "row, or add its label."
            )
    indices = np.array([index[str(label)] for label in labels], np.int32)
    return LabelledText(tuple(texts), indices, names)


def read_records(path: str | Path, text_column: str, user_column: str | None = None) -> TextRecords:
    """Read texts, and who gave each of them, from a table.

    Args:
        path: the file; see `read_table` for its kinds.
        text_column: name of the column with the texts.
        user_column: name of the column with the users, as strings or whole numbers; without one each row is a user.

    Returns:
        All rows in their order; copies of a text are kept.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as for `read_table`.

    Example:
        ``records = read_records("letters.jsonl", "body", "writer")``
    """
    file = Path(path)
    texts, users = _columns(file, text_column, text_column if user_column is None else user_column)
    names = map(str, range(len(texts)) if user_column is None else users)
    return TextRecords(tuple(texts), tuple(names))


def _columns(file: Path, text_column: str, label_column: str) -> tuple[list[str], list[str | int]]:
    """The two columns of a table of any kind."""
    readers = {
        ".csv": lambda: _csv_rows(file, ",", text_column, label_column),
        ".tsv": lambda: _csv_rows(file, "\t", text_column, label_column),
        ".jsonl": lambda: _json_rows(file, text_column, label_column),
        ".ndjson": lambda: _json_rows(file, text_column, label_column),
        ".parquet": lambda: _parquet_rows(file, text_column, label_column),
        ".pq": lambda: _parquet_rows(file, text_column, label_column),
    }
    kind = file.suffix.lower()
    if kind not in readers:
        raise ValueError(f"{file} must end in one of {', '.join(readers)}, not {kind or 'nothing'!r}.")
    regular_file(file, "give the path of a table")
    texts, labels = [], []
    try:
        for row, text, label in readers[kind]():
            texts.append(_text(file, row, text_column, text))
            labels.append(_label(file, row, label_column, label))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not UTF-8 (a bad byte after {len(texts)} good rows): convert it to UTF-8."
        ) from error
    except (OSError, MemoryError) as error:
        raise ValueError(f"{file} cannot be read ({reason(error)}): give the path of a table.") from error
    if not texts:
        raise ValueError(f"{file} holds no rows: give a table with at least one.")
    return texts, labels


def _csv_rows(file: Path, delimiter: str, text_column: str, label_column: str) -> Iterator[_Row]:
    # utf-8-sig: spreadsheets put a byte order mark in front of the first column's name.
    with _long_fields(), file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        row = 0
        try:
            header = next(reader, None)
            if header is None:
                raise ValueError(f"{file} is empty: give a table with a header line.")
            known = text_column in header or label_column in header
            text_at, label_at = (_column(file, header, name, known) for name in (text_column, label_column))
            for fields in reader:
                if not fields:  # a blank line
                    continue
                row += 1
                if len(fields) != len(header):
                    raise ValueError(
                        f"{file} row {row} has {len(fields)} fields, but the header has {len(header)}: "
                        "quote fields that hold the delimiter."
                    )
                # A CSV cannot tell an empty field from a missing one.
                yield row, fields[text_at] or None, fields[label_at] or None
        except csv.Error as error:
            raise ValueError(f"{file} row {row + 1} is not valid CSV ({error}): correct its quotes.") from error


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Texts may be longer than the csv module's 131,072 characters."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _json_rows(file: Path, text_column: str, label_column: str) -> Iterator[_Row]:
    row = 0
    with file.open(encoding="utf-8-sig") as stream:
        for line in stream:
            if not line.strip():
                continue
            row += 1
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{file} row {row} is not JSON ({reason(error)}): write one object a line.") from error
            if not isinstance(values, dict):
                raise ValueError(f"{file} row {row} is not a JSON object: write one object a line.")
            if row == 1:
                for name in (text_column, label_column):
                    _column(file, list(values), name)
            yield row, values.get(text_column), values.get(label_column)


def _parquet_rows(file: Path, text_column: str, label_column: str) -> Iterator[_Row]:
    # Here, not above: it takes a third of a second and only Parquet needs it.
    import pyarrow
    import pyarrow.parquet

    def batches() -> Iterator[tuple[list[Any], list[Any]]]:
        with pyarrow.parquet.ParquetFile(file) as table:
            for name in (text_column, label_column):
                _column(file, table.schema_arrow.names, name)
            for batch in table.iter_batches(columns=list(dict.fromkeys([text_column, label_column]))):
                yield batch.column(text_column).to_pylist(), batch.column(label_column).to_pylist()

    row, found = 0, batches()
    while True:
        try:
            batch = next(found, None)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError, OverflowError, MemoryError) as error:
            raise ValueError(f"{file} is not a Parquet file ({reason(error)}): write it again.") from error
        if batch is None:
            return
        for text, label in zip(*batch, strict=True):
            row += 1
            yield row, text, label


def _column(file: Path, header: list[str], name: str, known: bool = True) -> int:
    """Index of a column, or a sentence that lists those that exist."""
    if header.count(name) != 1:
        fault = "no" if name not in header else "more than one"
        for mark, words in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars"), (",", "commas")):
            if len(header) == 1 and name in (part.strip(' "') for part in header[0].split(mark)):
                kind = "a .tsv file" if mark == "\t" else "commas, or as a .tsv file with tabs"
                raise ValueError(f"{file} has its columns separated by {words}: save it with {kind}.")
        names = ", ".join(map(repr, header[:20])) + (f" and {len(header) - 20} more" if len(header) > 20 else "")
        # Where nothing that was asked for is known, the first line may be no header but somebody's.
        names = names if known else f"the {len(header)} that its first line names"
        raise ValueError(f"{file} has {fault} column {name!r}: its columns are {names}.")
    return header.index(name)


def _text(file: Path, row: int, column: str, value: Any) -> str:
    if value is None or value == "":
        raise ValueError(f"{file} row {row} has no {column}: fill it in or remove the row.")
    if not isinstance(value, str):
        raise ValueError(f"{file} row {row} has {column} of type {type(value).__name__}: texts must be strings.")
    return _readable(file, row, column, value)


def _readable(file: Path, row: int, column: str, value: str) -> str:
    """Half of a character is none: tokenizers would refuse it, or put another one in its place."""
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{file} row {row} has half of a surrogate pair in {column}: write the whole character.")
    return value


def _label(file: Path, row: int, column: str, value: Any) -> str | int:
    if value is None or value == "":
        raise ValueError(f"{file} row {row} has no {column}: fill it in or remove the row.")
    if not isinstance(value, str | int):
        raise ValueError(
            f"{file} row {row} has {column} of type {type(value).__name__}: labels must be strings or whole numbers."
        )
    return str(value).lower() if isinstance(value, bool) else _label_text(file, row, column, value)


def _label_text(file: Path, row: int, column: str, value: str | int) -> str | int:
    if len(str(value)) > _LONGEST_LABEL:
        raise ValueError(f"{file} row {row} has {column} of {len(str(value)):,} characters: labels must be shorter.")
    return _readable(file, row, column, value) if isinstance(value, str) else value


def _names(file: Path, labels: list[str | int]) -> tuple[str, ...]:
    """The labels that occur: numbers (as text too) by size, anything else in the order of the alphabet."""
    found = {str(label) for label in labels}
    if len(found) < 2:
        raise ValueError(f"{file} has the same label in every row: give rows of at least two classes.")
    if all(name.removeprefix("-").isdecimal() for name in found):
        # "0" and "00" are the same number: only with the text as well is the order one and the same in every run.
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found))


def _doubts(file: Path, column: str, names: Sequence[str], rows: int) -> Iterator[str]:
    """What about the classes is allowed, but hardly meant."""
    alike = collections.defaultdict(list)
    for name in names:
        alike[" ".join(name.casefold().split())].append(name)
    for group in alike.values():
        if len(group) > 1:
            yield (
                f"{file} has the labels {', '.join(map(repr, group))} in {column}, which differ in spacing or case "
                "only and are classes of their own: write them alike if they are one."
            )
    if rows >= _MANY_ROWS and len(names) > rows / 2:
        yield f"{file} has {len(names):,} classes in {column} for {rows:,} rows: name the column of the labels."
