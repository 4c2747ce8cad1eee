"""The command, on a tiny encoder and table: every variant trains, nothing is run twice, and the document is filled."""

import json
from pathlib import Path

import pytest

from benchmarks import inside_encoder
from tests.training.conftest import table, tiny_model  # noqa: F401  (fixtures)
from tests.training.small import two_phases

pytestmark = pytest.mark.usefixtures("as_users_run_it")


def test_variants_are_run_once_and_told_apart(table: Path, tiny_model: Path, tmp_path: Path) -> None:  # noqa: F811
    text = two_phases(table, tiny_model, privacy="noise_multiplier = 0.02")
    config = tmp_path / "small.toml"
    config.write_text(text[: text.index("[[phase]]")] + text[text.index('[[phase]]\nname = "top"') :])
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- results inside_encoder -->\nold\n<!-- end inside_encoder -->\nafter\n")
    arguments = ["--config", str(config), "--cache", str(tmp_path / "features"), "--output", str(tmp_path)]
    arguments += ["--overrides", "privacy.accountant", "rdp", "phase.1.steps", "3", "phase.1.optimizer", "adam"]
    first = inside_encoder.main([*arguments, "--runs", "1", "--variants", "DP-Adam"])
    names = ["DP-Adam", "DPZero"]
    found = inside_encoder.main([*arguments, "--runs", "2", "--variants", *names, "--docs", str(document)])
    assert found["rows"][0] == first["rows"][0]
    assert [(row["variant"], row["run"]) for row in found["rows"]] == [(name, run) for run in (0, 1) for name in names]
    assert json.loads((tmp_path / "inside_encoder.json").read_text()) == found
    losses = [row["held_out_loss"] for row in found["rows"]]
    assert len(set(losses)) == len(losses) and all(0 < row["held_out_accuracy"] <= 1 for row in found["rows"])
    page = document.read_text()
    assert "old" not in page and page.startswith("before") and page.endswith("after\n") and "| DPZero |" in page
    with pytest.raises(ValueError, match="2 phases"):
        config.write_text(text)
        inside_encoder.main(arguments[:6])
    with pytest.raises(ValueError, match="variants has 'DP'"):
        inside_encoder.Settings(variants=("DP",))
