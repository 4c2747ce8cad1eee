"""The command, on clouds of points: every space trains, and what is in the file is not measured again."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import subspace_accuracy
from benchmarks.denoising import training

pytestmark = pytest.mark.usefixtures("as_users_run_it")


def test_every_space_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 240)
    features = (draw.normal(size=(240, 12)) + 2 * labels[:, None]).astype(np.float32)
    task = training.Task("tweets", (features[:200], labels[:200]), (features[200:], labels[200:]))
    monkeypatch.setattr(training, "load", lambda *_: task)
    monkeypatch.setattr(training, "LEARNING_RATES", {"adam": (0.1,)})
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- results accuracy -->\nold\n<!-- end accuracy -->\nafter\n")
    arguments = ["--output", str(tmp_path), "--steps", "8", "--docs", str(document), "--variants"]
    first = subspace_accuracy.main([*arguments, "DP-GRAPE, r = 4", "--seeds", "1", "2"])
    found = subspace_accuracy.main([*arguments, "DP-GRAPE, r = 4", "DPZero", "--seeds", "1"])
    assert found["rows"][0] == first["rows"][0] and [len(row["final"]) for row in found["rows"]] == [2, 1]
    assert min(found["rows"][0]["final"]) > 0.8
    assert json.loads((tmp_path / "subspace_accuracy.json").read_text()) == found
    page = document.read_text()
    assert "old" not in page and page.startswith("before") and page.endswith("after\n")
    assert "| tweets | 8 | DP-GRAPE, r = 4 | 0.1 |" in page and "| DPZero |" in page
