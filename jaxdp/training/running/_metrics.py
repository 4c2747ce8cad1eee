"""The log of a run: one JSON object a line, written through at once."""

import json
import zlib
from pathlib import Path
from typing import Any

from jaxdp._files import write_text
from jaxdp.training._errors import UserError
from jaxdp.training.files._sealed import is_intact, sealed

# Beside the log: only the last evaluation has any.
DETAILS = "held_out.json"


class MetricsLog:
    """Appends to a JSONL file.

    Args:
      path: the file.
      after_step: lines of later steps are dropped first; those steps are about to be run again.
      lines: what it begins with, as a checkpoint kept it; if not given, what is in the file.
      sums: a file for a checksum of each line.
      details: of the last evaluation, as a checkpoint kept them.
    """

    def __init__(
        self,
        path: Path,
        after_step: int = 0,
        lines: list[dict[str, Any]] | None = None,
        sums: Path | None = None,
        details: dict[str, Any] | None = None,
    ):
        self._path = path
        found = read_metrics(path) if lines is None else lines
        self.lines = [line for line in found if line["step"] <= after_step]
        texts = [json.dumps(line) for line in self.lines]
        files = {path: texts} | ({} if sums is None else {sums: [_sum(text) for text in texts]})
        for file, content in files.items():
            write_text(file, "".join(f"{text}\n" for text in content))
        self.details = None
        path.with_name(DETAILS).unlink(missing_ok=True)
        if details is not None:
            self.write_details(details)
        self._file = path.open("a", encoding="utf-8")
        self._sums = None if sums is None else sums.open("a", encoding="utf-8")

    def has(self, step: int) -> bool:
        """Whether a line of this step is there."""
        return any(line["step"] == step for line in self.lines)

    def write(self, line: dict[str, Any]) -> None:
        """Append one object."""
        self.lines.append(line)
        text = json.dumps(line)
        for file, content in ((self._file, text), (self._sums, _sum(text))):
            if file is not None:
                file.write(content + "\n")
                file.flush()

    def write_details(self, details: dict[str, Any]) -> None:
        """What the report shows of the last evaluation, in a file of its own, whole or not at all."""
        self.details = details
        write_text(self._path.with_name(DETAILS), json.dumps(sealed(details)) + "\n")

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._sums is not None:
            self._sums.close()


def read_metrics(path: Path, sums: Path | None = None) -> list[dict[str, Any]]:
    """All complete lines of a log; a last line torn by a crash is left out.

    Args:
      path: the log.
      sums: the checksums of its lines, if there are any.

    Raises:
      UserError: a line in between is damaged.
    """
    if not path.exists():
        return []
    try:
        # What follows the last line break is empty, or torn. Sums first: a line is there before its sum.
        known = [] if sums is None or not sums.exists() else sums.read_text(encoding="utf-8").split("\n")[:-1]
        complete = path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError):
        raise UserError(_damaged(path, 0)) from None
    if len(known) > len(complete):
        raise UserError(_damaged(path, len(complete) + 1))
    lines = []
    for number, text in enumerate(complete, 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            raise UserError(_damaged(path, number)) from None
        right = isinstance(line, dict) and type(line.get("step")) is int
        if not right or (number <= len(known) and known[number - 1] != _sum(text)):
            raise UserError(_damaged(path, number))
        lines.append(line)
    return lines


def read_details(metrics: Path, step: int) -> dict[str, Any]:
    """What was noted of the evaluation after a step beside its line; nothing if it was that of another one.

    Raises:
      UserError: the file is damaged.
    """
    path = metrics.with_name(DETAILS)
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not is_intact(found):
        raise UserError(_damaged(path, 0))
    return found if found["step"] == step else {}


def _damaged(path: Path, number: int) -> str:
    where = f" in line {number}" if number else ""
    return f"{path} is damaged{where}: `jaxdp resume {path.parent}` writes it again from the last checkpoint."


def _sum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"
