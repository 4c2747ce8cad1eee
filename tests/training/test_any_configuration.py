"""Configurations that nobody meant: each is refused in a sentence, or trains; none ends in a traceback."""

import json
import math
import random
import tomllib
import typing
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from jaxdp import training
from jaxdp.training import UserError, _run
from jaxdp.training.config._config import Config
from jaxdp.training.config._fields import _bounds
from jaxdp.training.config._phase import PhaseConfig
from tests.training.small import Quiet, two_phases
from tests.training.small_decoder import language_model, save_decoder, write_letters
from tests.training.test_other_tasks import images_config, write_images

SECTIONS = {name: PhaseConfig if name == "phase" else info.annotation for name, info in Config.model_fields.items()}
# What a number, a text or a list can be at worst.
VALUES: list[Any] = [
    0, 1, -1, 2, 3, 5, 7, 8, 16, 64, 255, 1000, 65_536, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**30, 16**5000, True,
    False, 0.0, -0.0, 0.5, 1.0, 1.5, 1e-320, 1e-40, 1e-12, 1e-7, 0.999_999_99, 1e9, 1e30, 1e39, 1e308, math.inf,
    -math.inf, math.nan, "", " ", "a", "0", "all", "full", "head", "last:1", "last:0", "last:99999999999999999999",
    "last:²", "lora", "bias", "rest", "none", "user", "record", "../..", "/", "~nobody/x", "x" * 5000, "a\nb", "\u202e",
    "{}", "%FIELD%", "nul\0", "package:os/path", "package:no.such/x", [], [1], ["a"], ["*"], [["a"]],
    ["*/kernel", "*/bias"],
    [0.9], [0.9, 0.999], [1.0, 1.0], [0.1, 0.2, 0.3], {}, {"a": 1}, {"a": {"b": {"c": {"d": {"e": {"f": {}}}}}}},
]  # fmt: skip


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if abs(value) < 10**4000 else hex(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(map(toml, value)) + "]"


def choices(annotation: Any) -> list[Any]:
    """The words that a field may be."""
    found = list(typing.get_args(annotation)) if typing.get_origin(annotation) is typing.Literal else []
    return found + [word for inner in typing.get_args(annotation) for word in choices(inner)]


def likely(info: Any) -> list[Any]:
    """Values of the field's own kind: its words, its bounds and what lies between them."""
    kind = str(info.annotation)
    found = choices(info.annotation)
    found += [True, False] if "bool" in kind else []
    found += [0.001, 0.1, 0.3, 0.9, 1.0, 2.5, 100.0] if "float" in kind else []
    found += [1, 2, 3, 4, 8, 9, 12, 30, 100] if "int" in kind else []
    for bounds in _bounds(info):
        found += [bound for bound in bounds.values() for _ in range(3)]
    return found or ["head", "all", "last:1", "lora", ["*"], ["*/kernel"], "top", "a", 2]


def mutated(raw: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    raw = json.loads(json.dumps(raw))
    for _ in range(draw.choice([1, 1, 2, 3])):
        section = draw.choice([*SECTIONS, *raw])
        fields = SECTIONS[section].model_fields if section in SECTIONS else {}
        kind = draw.random()
        if kind < 0.03:
            raw.pop(section, None)
            continue
        if kind < 0.06:
            raw[section] = draw.choice(VALUES)
            continue
        if section == "phase":
            tables = raw.get("phase")
            table = draw.choice(tables) if isinstance(tables, list) and tables else {}
        else:
            table = raw.setdefault(section, {})
        if not isinstance(table, dict):
            continue
        field = draw.choice([*fields]) if fields and draw.random() < 0.97 else "nonsense"
        if kind < 0.1:
            table.pop(field, None)
            continue
        own = likely(fields[field]) if field in fields and draw.random() < 0.7 else VALUES
        table[field] = draw.choice(own)
    return raw


@pytest.fixture(scope="module")
def documents(tmp_path_factory, table, tiny_model) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("bases")
    letters, decoder = write_letters(folder / "letters.csv"), save_decoder(folder / "decoder")
    images = write_images(folder / "images")
    cheap = {"noise_multiplier": 2.0, "accountant": "rdp"}
    texts = [
        two_phases(table, tiny_model),
        language_model(letters, decoder),
        language_model(letters, decoder, unit="user"),
        images_config(images),
        images_config(images, "vit"),
    ]
    return [tomllib.loads(text) | {"privacy": cheap} for text in texts]


def written(raw: dict[str, Any], path: Path) -> Path:
    """The document as a file."""
    lines = [f"{json.dumps(name)} = {toml(value)}" for name, value in raw.items()]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def outcome(raw: dict[str, Any], folder: Path, begin: bool) -> str:
    """What becomes of a configuration: one word, or what went wrong."""
    try:
        config = training.load_config(written(raw, folder / "a.toml"))
        (folder / "b.toml").write_text(training.dump_config(config))
        assert training.load_config(folder / "b.toml") == config
        if begin:
            training.train(config, folder / "run", Quiet())
    except UserError as error:
        text = str(error)
        assert text and "\n" not in text and len(text) < 2000, text
        assert not (folder / "run" / "metrics.jsonl").exists()
        return "refused"
    return "begun" if begin else "read"


def survivors(documents: list[dict[str, Any]], folder: Path, count: int, begin_every: int) -> Counter[str]:
    """Outcomes of so many configurations; a failure names the seed that makes it again."""
    found: Counter[str] = Counter()
    for seed in range(count):
        draw = random.Random(seed)
        raw = mutated(draw.choice(documents), draw)
        own = folder / str(seed)
        own.mkdir()
        try:
            found[outcome(raw, own, seed % begin_every == 0)] += 1
        except Exception as error:
            raise AssertionError(f"configuration {seed} ended in {error!r}: {str(raw)[:2000]}") from error
        for file in own.glob("*.toml"):
            file.unlink()
    return found


@pytest.fixture
def up_to_the_run_directory(monkeypatch):
    """Everything that `train` does before its first step."""

    def stop(run: Any, job: Any, state: Any, index: int) -> Path:
        job.checkpoints.close()
        job.log.close()
        return run.path

    monkeypatch.setattr(_run, "_finish", stop)


@pytest.mark.usefixtures("without_type_checks", "up_to_the_run_directory")
def test_any_configuration_is_read_or_refused(documents, tmp_path):
    found = survivors(documents, tmp_path, count=400, begin_every=40)
    assert found["refused"] > 100 and found["read"] > 20


@pytest.mark.slow
@pytest.mark.usefixtures("without_type_checks", "up_to_the_run_directory")
def test_ten_thousand_configurations(documents, tmp_path):
    found = survivors(documents, tmp_path, count=10_000, begin_every=1)
    print(dict(found))
    assert found["refused"] > 3000 and found["begun"] > 500
