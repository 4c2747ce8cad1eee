"""The command, on a workload that compiles in no time."""

import json
from pathlib import Path

import pytest

from benchmarks import subspace_memory, workloads

pytestmark = pytest.mark.usefixtures("as_users_run_it")


def test_it_measures_every_row_and_fills_the_document(toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "build", lambda *args, **kwargs: toy)
    document = tmp_path / "document.md"
    document.write_text("before\n<!-- results w1 -->\nold\n<!-- end w1 -->\nafter\n")
    subspace_memory.main(
        [
            *("--workloads", "w1", "--ranks", "1", "--methods", "materialize", "--run", "w1", "--repeats", "1"),
            *("--output", str(tmp_path), "--docs", str(document)),
        ]
    )
    found = json.loads((tmp_path / "subspace_memory.json").read_text())["workloads"]["w1"]["rows"]
    assert [row["label"] for row in found] == ["Adam, no privacy", "DP-Adam, materialize", "DP-GRAPE, r = 1"]
    # Two moments of the weight [3, 2] and the bias [2]; of the weight's 3 x 1 subspace and the bias.
    assert [row["state"] for row in found] == [2 * 8 * 4, 2 * 8 * 4, 2 * 5 * 4]
    assert all(row["temp"] > 0 and row["seconds"] > 0 for row in found)
    text = document.read_text()
    assert (
        "old" not in text and text.startswith("before") and text.endswith("after\n") and "| DP-GRAPE, r = 1 |" in text
    )
