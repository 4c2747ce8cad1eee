"""The command of the denoising benchmark, on shapes that take no time."""

import json

import numpy as np
import pytest

from benchmarks import denoise, workloads
from benchmarks.denoising import overhead, spectra, training

pytestmark = pytest.mark.usefixtures("as_users_run_it")


@pytest.fixture
def small(monkeypatch, toy):
    """One spectrum, the toy's step, and a task of clouds of points."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 240)
    features = (draw.normal(size=(240, 12)) + 2 * labels[:, None]).astype(np.float32)
    task = training.Task("clouds", (features[:200], labels[:200]), (features[200:], labels[200:]))
    monkeypatch.setattr(spectra, "SPECTRA", {"rank 5": spectra.SPECTRA["rank 5"]})
    monkeypatch.setattr(spectra, "SNRS", (1.0,))
    monkeypatch.setattr(spectra, "METHODS", {name: spectra.METHODS[name] for name in ("published", "keep_bulk")})
    monkeypatch.setattr(overhead, "METHODS", {"gram": {"method": "gram"}})
    monkeypatch.setattr(workloads, "build", lambda *_: toy)
    monkeypatch.setattr(training, "load", lambda *_: task)
    monkeypatch.setattr(training, "LEARNING_RATES", {"sgd": (0.5,), "adam_corrected": (0.1,)})
    monkeypatch.setattr(training, "VARIANTS", {k: training.VARIANTS[k] for k in ("raw", "keep_bulk")})
    return task


def test_every_part_is_measured_and_put_into_the_document(small, tmp_path, capsys):
    document = tmp_path / "page.md"
    document.write_text(
        "".join(f"<!-- results {n} -->\nold\n<!-- end {n} -->\n" for n in ("spectra", "training", "training adam"))
    )
    arguments = [
        "--output",
        str(tmp_path),
        "--repeats",
        "1",
        "--draws",
        "2",
        "--scale",
        "tiny",
        "--steps",
        "8",
        "--seeds",
        "1",
    ]
    arguments += [
        "--epsilons",
        "8",
        "--sources",
        "tweets",
        "--optimizers",
        "sgd",
        "adam_corrected",
        "--docs",
        str(document),
    ]
    assert denoise.main(arguments) == 0
    results = json.loads((tmp_path / "denoise.json").read_text())
    row = results["spectra"][0]
    assert row["keep_bulk"]["cosine"] > row["raw"]["cosine"] and row["keep_bulk"]["error"] < row["raw"]["error"]
    labels = [row["label"] for row in results["overhead"]["rows"]]
    assert labels[-2:] == ["denoising alone: gram", "denoising alone: full SVD"] and "jaxdp auto/all" in labels
    assert min(row["ratio"] for row in results["overhead"]["rows"] if "non-private" in row["label"]) == 1
    assert [row["variant"] for row in results["training"]] == ["raw", "keep_bulk", "raw"]
    assert results["training"][2]["optimizer"] == "adam_corrected"
    assert 0 < results["spectra"][0]["raw"]["sd"] < 0.5
    for row in training.summaries(results["training"]):
        assert len(row["final"]) == 1 and row["final"][0] > 0.8 and row["steps_to_90"][0] <= 8
    page = document.read_text()
    assert "old" not in page
    assert "| clouds | 8 | keep_bulk | sgd 0.5 |" in page
    assert page.index("| adam_corrected 0.1 |") > page.index("results training adam")
    # From the file alone the same tables come.
    said = capsys.readouterr().out
    assert denoise.main(["--from-json", str(tmp_path / "denoise.json")]) == 0
    assert capsys.readouterr().out == said


def test_steps_to_a_share_of_the_best():
    runs = [{"accuracies": [0.5, 0.73, 0.77, 0.8]}, {"accuracies": [0.5, 0.6, 0.7, 0.7]}]
    found = training.summary(runs, 0.8, 5)
    assert found["final"] == [0.8, 0.7]
    assert found["steps_to_90"] == [10, None] and found["steps_to_95"] == [15, None]
