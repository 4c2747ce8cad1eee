"""The log of a run: one JSON object a line, written through at once."""

import json
import os
from pathlib import Path
from typing import Any

# Beside the log: only the last evaluation has any.
DETAILS = "held_out.json"


class MetricsLog:
    """Appends to a JSONL file.

    Args:
      path: the file.
      after_step: lines of later steps are dropped first; those steps are about to be run again.
    """

    def __init__(self, path: Path, after_step: int = 0):
        self._path = path
        kept = [line for line in read_metrics(path) if line["step"] <= after_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, path)
        self._file = path.open("a", encoding="utf-8")
        self._steps = {line["step"] for line in kept}

    def has(self, step: int) -> bool:
        """Whether a line of this step is there."""
        return step in self._steps

    def write(self, line: dict[str, Any]) -> None:
        """Append one object."""
        self._steps.add(line["step"])
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def write_details(self, details: dict[str, Any]) -> None:
        """What the report shows of the last evaluation, in a file of its own, whole or not at all."""
        target = self._path.with_name(DETAILS)
        temporary = target.with_suffix(".tmp")
        temporary.write_text(json.dumps(details) + "\n", encoding="utf-8")
        os.replace(temporary, target)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a log; a last line torn by a crash is left out."""
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
    return lines


def read_details(metrics: Path, step: int) -> dict[str, Any]:
    """What was noted of the evaluation after a step beside its line; nothing if it was that of another one."""
    try:
        found = json.loads(metrics.with_name(DETAILS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and found.get("step") == step else {}
