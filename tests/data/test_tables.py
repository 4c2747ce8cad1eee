"""A user's own tables."""

import json
import os

import numpy as np
import pytest

from jaxdp import data

ROWS = [("good, really", "yes"), ("bad\nindeed", "no"), ('"so" so ü 😀', "yes")]


def write(path, rows=ROWS, columns=("text", "label")):
    """The same rows in the format that the name asks for."""
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    if path.suffix in (".csv", ".tsv"):
        import csv

        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(records)
    elif path.suffix in (".jsonl", ".ndjson"):
        path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records), encoding="utf-8")
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return path


KINDS = ["csv", "tsv", "jsonl", "ndjson", "parquet", "pq"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, kind):
    dataset = data.read_table(write(tmp_path / f"table.{kind}"), "text", "label")
    assert dataset.texts == tuple(text for text, _ in ROWS)
    assert dataset.label_names == ("no", "yes")
    assert dataset.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_numbers_are_classes_in_order_of_size(tmp_path, kind):
    path = write(tmp_path / f"t.{kind}", [("a", 10), ("b", 9), ("c", -1)])
    dataset = data.read_table(path, "text", "label")
    assert dataset.label_names == ("-1", "9", "10")
    assert dataset.labels.tolist() == [2, 1, 0]


def test_true_and_false_are_classes(tmp_path):
    dataset = data.read_table(write(tmp_path / "t.parquet", [("a", True), ("b", False)]), "text", "label")
    assert dataset.label_names == ("false", "true")
    assert dataset.labels.tolist() == [1, 0]


def test_given_label_names_fix_the_order_and_refuse_others(tmp_path):
    path = write(tmp_path / "t.csv")
    dataset = data.read_table(path, "text", "label", label_names=("yes", "no", "maybe"))
    assert dataset.labels.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match=r"row 2 has a label that is not among label_names yes, maybe"):
        data.read_table(path, "text", "label", label_names=["yes", "maybe"])


def test_a_dictionary_column_and_a_byte_order_mark_are_understood(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"text": ["a", "b"], "label": pyarrow.array(["x", "y"]).dictionary_encode()})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    assert data.read_table(tmp_path / "t.parquet", "text", "label").label_names == ("x", "y")
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbftext,label\r\na,x\r\n\r\nb,y\r\n")
    assert data.read_table(tmp_path / "t.csv", "text", "label").texts == ("a", "b")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_missing_column_lists_those_that_exist(tmp_path, kind):
    path = write(tmp_path / f"t.{kind}", columns=("review", "stars"))
    with pytest.raises(ValueError, match=r"has no column 'text': its columns are 'review', 'stars'\."):
        data.read_table(path, "text", "stars")


def test_a_table_without_a_header_shows_nobodys_text(tmp_path):
    """What stands where the columns' names should is the first person's."""
    (tmp_path / "t.csv").write_text("i owe the bank 7120,secret\nb,open\n")
    with pytest.raises(ValueError, match="its columns are the 2 that its first line names") as why:
        data.read_table(tmp_path / "t.csv", "text", "label")
    assert "7120" not in str(why.value) and "secret" not in str(why.value)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("bad", "sentence"),
    [((None, "yes"), "row 2 has no text"), (("a", None), "row 2 has no label"), (("a", ""), "row 2 has no label")],
)
def test_a_missing_value_names_its_row(tmp_path, kind, bad, sentence):
    path = write(tmp_path / f"t.{kind}", [ROWS[0], bad, ROWS[1]])
    with pytest.raises(ValueError, match=sentence):
        data.read_table(path, "text", "label")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("t.csv", b"", "is empty: give a table with a header line"),
        ("t.csv", b"text,label\n", "holds no rows"),
        ("t.jsonl", b"\n", "holds no rows"),
        ("t.csv", b"text,label\na,x\nb\xff,y\n", "is not UTF-8"),
        ("t.jsonl", b'{"text": "\xff", "label": 1}', "is not UTF-8"),
        ("t.csv", b"text,label\na,x\nb,y,z\n", "row 2 has 3 fields, but the header has 2"),
        ("t.csv", b'text,label\na,x\n"b,y\n', "row 2 is not valid CSV"),
        ("t.csv", b"text,text,label\na,b,x\n", "has more than one column 'text'"),
        ("t.jsonl", b'{"text": "a", "label": 1}\n{"text"\n', "row 2 is not JSON"),
        ("t.jsonl", b'{"text": "a", "label": 1}\n[1]\n', "row 2 is not a JSON object"),
        ("t.jsonl", b'{"text": "a", "label": 1}\n{"text": "b"}\n', "row 2 has no label"),
        ("t.jsonl", b'{"text": 5, "label": 1}', "row 1 has text of type int: texts must be strings"),
        ("t.jsonl", b'{"text": "a", "label": 0.5}', "row 1 has label of type float: labels must be"),
        ("t.csv", b"text,label\na,x\nb,x\n", "has the same label in every row"),
        ("t.parquet", b"not one", "is not a Parquet file"),
        ("t.xlsx", b"", r"must end in one of \.csv, \.tsv, .*, not '\.xlsx'"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as caught:
        data.read_table(tmp_path / name, "text", "label")
    assert "\n" not in str(caught.value).strip()
    assert str(tmp_path / name) in str(caught.value)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"t\.csv does not exist"):
        data.read_table(tmp_path / "t.csv", "text", "label")


@pytest.mark.quick
def test_labels_are_int32_whatever_the_file(tmp_path):
    assert data.read_table(write(tmp_path / "t.csv"), "text", "label").labels.dtype == np.int32


def test_the_order_of_classes_is_total(tmp_path):
    path = write(tmp_path / "t.csv", [("a", "00"), ("b", "0"), ("c", "1"), ("d", "000")])
    assert data.read_table(path, "text", "label").label_names == ("0", "00", "000", "1")


def test_long_fields_are_texts(tmp_path):
    long = "x " * 100_000
    (tmp_path / "t.csv").write_text(f'text,label\n"{long}",a\nb,b\n')
    assert data.read_table(tmp_path / "t.csv", "text", "label").texts[0] == long


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "t.jsonl",
            b'{"text": "a", "label": "x"}\n{"text": "b\\ud83d", "label": "y"}\n',
            "row 2 has half of a",
        ),
        ("t.jsonl", b'{"text": ' + b"[" * 100_000, "row 1 is not JSON"),
        ("t.csv", b"text;label\na;x\nb;y\n", "has its columns separated by semicolons"),
        ("t.csv", b"text\tlabel\na\tx\n", "has its columns separated by tabs"),
    ],
)
def test_what_is_hardly_a_table_is_one_sentence(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        data.read_table(tmp_path / name, "text", "label")


def test_directories_and_pipes_are_no_files(tmp_path):
    (tmp_path / "a.csv").mkdir()
    os.mkfifo(tmp_path / "b.csv")
    with pytest.raises(ValueError, match=r"a\.csv is a directory, not a file"):
        data.read_table(tmp_path / "a.csv", "text", "label")
    with pytest.raises(ValueError, match=r"b\.csv is a pipe or a device, not a file"):
        data.read_table(tmp_path / "b.csv", "text", "label")


def test_doubtful_classes_are_warned_of(tmp_path):
    path = write(tmp_path / "t.csv", [("a", "neg"), ("b", "neg "), ("c", "pos")])
    with pytest.warns(UserWarning, match="labels 'neg', 'neg ' in label, which differ in spacing or case"):
        data.read_table(path, "text", "label")
    path = write(tmp_path / "u.csv", [(f"text {i}", i) for i in range(30)])
    with pytest.warns(UserWarning, match="has 30 classes in label for 30 rows"):
        data.read_table(path, "text", "label")
