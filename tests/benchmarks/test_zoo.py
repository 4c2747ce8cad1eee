"""The comparison of other packages' models with `vmap(grad)`, on a small model of its own."""

import json
import tomllib
from pathlib import Path

import jax.numpy as jnp
import pytest

from benchmarks.zoo import __main__ as command
from benchmarks.zoo import _compare
from benchmarks.zoo._compare import Row, compare
from benchmarks.zoo._list import LISTED, MODELS
from benchmarks.zoo._model import BATCH, Model, Parts, normal

pytestmark = pytest.mark.usefixtures("as_users_run_it")


def two_layers() -> Parts:
    params = {"w": normal(1, 3, 4), "b": normal(2, 4), "v": normal(3, 4)}
    loss = lambda p, x: jnp.square(jnp.tanh(x @ p["w"] + p["b"]) @ p["v"])
    return Parts(loss, params, normal(4, BATCH, 3))


MODEL = Model("two_layers", "jax", "two layers", two_layers)


def test_a_model_that_agrees() -> None:
    row = compare(MODEL, "jax 1.0")
    assert row.agrees and (row.parameters, row.leaves, row.float32) == (20, 3, False), row
    assert 0 < row.error < 1e-5 and 0 <= row.excess < 1e-4 and row.ruled > 0


@pytest.mark.parametrize(("factor", "what"), [(1.001, "a norm too small"), (0.999, "a norm too large")])
def test_a_gradient_that_is_another_one_is_told(factor: float, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = _compare.reference
    monkeypatch.setattr(_compare, "METHODS", ("ghost",))
    monkeypatch.setattr(_compare, "reference", lambda parts, vmapped: [factor * g for g in right(parts, vmapped)])
    wrong = compare(MODEL, "jax 1.0").wrong
    assert {f"ghost, {spec}: {what}" for spec in _compare.GROUPS} <= {said.split(" by ")[0] for said in wrong}


def test_a_method_that_raises_is_wrong_and_a_model_that_does_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compare, "METHODS", ("none of them",))
    assert compare(MODEL, "jax 1.0").wrong[0].startswith("none of them raises ")

    def build() -> Parts:
        raise ImportError("no such package")

    row = compare(MODEL._replace(build=build), "jax 1.0")
    assert row.failed == "ImportError: no such package" and not row.wrong


def test_the_command_fills_a_document_and_fails_where_one_disagrees(tmp_path: Path, monkeypatch, capsys) -> None:
    document, results = tmp_path / "models.md", tmp_path / "zoo.json"
    document.write_text("before\n<!-- results zoo -->\nold\n<!-- end zoo -->\nafter\n")
    rows = {
        "equinox_attention": Row("equinox_attention", "equinox 1", "attention", 10, 3, 2, 2),
        "haiku_lstm": Row("haiku_lstm", "dm-haiku", "LSTM", failed="not installed: pip install '.[zoo]'"),
    }
    monkeypatch.setattr(command, "in_its_own_process", lambda model: rows[model.name])
    arguments = ["--only", *rows, "--docs", str(document), "--results", str(results)]
    assert command.main(arguments) == 0
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "not run: not installed" in text and "1 of 1 models of 1 packages agree; 1 not run." in text
    # What has run is not run again.
    rows["equinox_attention"] = Row("equinox_attention", "equinox 1", "attention", wrong=["ghost, all: a wrong sum"])
    assert command.main(arguments) == 0
    results.write_text(json.dumps([]))
    assert command.main(arguments) == 1 and "ghost, all: a wrong sum" in capsys.readouterr().out


def test_a_model_runs_in_a_process_of_its_own() -> None:
    row = command.in_its_own_process(Model("none", "jax", "a name that is not in the list", two_layers))
    assert row.failed.startswith("exit 1") and "none" in row.failed


def test_every_package_is_pinned() -> None:
    pinned = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    names = {line.split("==")[0] for line in pinned["optional-dependencies"]["zoo"]}
    assert {model.package for model in LISTED} <= names
    assert len(MODELS) == len(LISTED) >= 25
