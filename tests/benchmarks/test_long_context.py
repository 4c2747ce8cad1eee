"""The command, on short sequences."""

import json

import pytest

from benchmarks import long_context

pytestmark = pytest.mark.usefixtures("as_users_run_it")


def test_it_measures_every_variant_and_writes_what_it_printed(tmp_path, capsys, monkeypatch):
    norms = {"fused/layer, exact", "fused/layer, Hutchinson"}
    every = long_context.variants

    def few(workload, settings):
        return [v for v in every(workload, settings) if v.family == "baseline" or v.key in norms]

    monkeypatch.setattr(long_context, "variants", few)
    small = ["--lengths", "16", "--width", "64", "--layers", "1", "--probes", "8", "--repeats", "1", "--no-claims"]
    assert long_context.main([*small, "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "long_context.json").read_text())
    rows = {row["key"]: row for row in results["lengths"][0]["rows"]}
    assert norms <= set(rows) and len(rows) == 4
    assert all(row["time"] > 0 and row["temp_bytes"] > 0 for row in rows.values())
    assert min(row["time"] for key, row in rows.items() if key not in norms) == 1.0
    assert (tmp_path / "long_context.png").stat().st_size > 1000
    assert "fused/layer, Hutchinson" in capsys.readouterr().out


def test_the_reported_savings_in_operations_are_reproduced(monkeypatch):
    # Shapes and k are the paper's; the sequence is shorter, which the shares hardly depend on.
    for row in long_context.claims(seq=512):
        assert abs(row["flops_saved"] - row["flops_saved_reported"]) < 0.03, row
