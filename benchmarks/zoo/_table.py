"""The rows as a Markdown table, and its place in a document."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine, tables
from benchmarks.zoo._compare import Row

HEADERS = ("package", "model", "parameters", "uses", "with a rule", "error of the sum", "norm above", "")


def lines(rows: Sequence[Row]) -> list[str]:
    """A line for each model."""
    head = ["| " + " | ".join(HEADERS) + " |", "|---|---|---:|---:|---:|---:|---:|---|"]
    return [*head, *("| " + " | ".join(_cells(row)) + " |" for row in rows)]


def _cells(row: Row) -> tuple[str, ...]:
    if row.failed:
        return row.package, row.title, "", "", "", "", "", f"not run: {_plain(row.failed)}"
    said = _plain("; ".join(row.wrong)) or ("float32 inside" if row.float32 else "")
    numbers = (f"{row.parameters:,}", f"{row.uses}", f"{row.ruled} of {row.leaves}")
    return (row.package, row.title, *numbers, f"{row.error:.0e}", f"{row.excess:.0e}", said)


def _plain(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def summary(rows: Sequence[Row]) -> str:
    """What came of it, in one line."""
    ran = [row for row in rows if not row.failed]
    packages = {row.package.split()[0] for row in ran}
    wrong = sum(bool(row.wrong) for row in ran)
    return f"{len(ran) - wrong} of {len(ran)} models of {len(packages)} packages agree; {len(rows) - len(ran)} not run."


def fill(document: Path, rows: Sequence[Row]) -> None:
    """Put the table into its place."""
    content = "\n".join([*lines(rows), "", summary(rows), "", tables.machine_line(machine.facts("float64"))])
    if not tables.fill_places(document, {"zoo": content}):
        raise SystemExit(f"--docs {document} has no place `<!-- results zoo -->`.")
