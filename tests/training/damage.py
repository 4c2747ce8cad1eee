"""Damaged run directories: what is done to a file, and what a command may make of it."""

import json
import random
import shutil
from pathlib import Path

from jaxdp.cli import main

KINDS = ("flip", "truncate", "empty", "delete", "garbage")
# Written anew by `jaxdp report`, or without a meaning of their own.
IRRELEVANT = {"report.md", "report.html", "learning_curve.png", "epsilon.png", "README.txt", "lock"}


def files_of(run: Path) -> list[Path]:
    """Everything in a run's directory that could matter, in an order that does not depend on chance."""
    found = [p for p in run.rglob("*") if p.is_file() and p.name not in IRRELEVANT]
    by_size = sorted(found, key=lambda p: (p.parent.as_posix(), p.stat().st_size, p.name))
    return [p.relative_to(run) for p in by_size]


def damage(path: Path, kind: str, draw: random.Random) -> None:
    """Do to a file what a disk, a crash or a careless hand does."""
    content = bytearray(path.read_bytes())
    if kind == "delete":
        path.unlink()
    elif kind == "empty" or not content:
        path.write_bytes(b"")
    elif kind == "truncate":
        path.write_bytes(content[: draw.randrange(len(content))])
    elif kind == "flip":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    else:
        path.write_bytes(draw.randbytes(draw.randrange(1, 400)))


def call(capsys, *arguments: str) -> tuple[int, str]:
    """Exit code and what was said; an error that is no sentence gets out."""
    code = 0
    try:
        main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    said = capsys.readouterr().err
    assert code in (0, 2) and "Traceback" not in said, said
    if code == 2:
        last = said.rstrip().splitlines()[-1]
        assert last.startswith("jaxdp: ") and last.endswith(".") and said.count("jaxdp: ") == 1, said
    return code, said


def results_of(run: Path) -> dict[str, bytes | dict]:
    """What a run is for, without times."""
    names = ["config.toml", "plan.json", "statement.json", "statement.txt", "metrics.jsonl", "held_out.json"]
    paths = [run / name for name in names] + sorted((run / "model").iterdir())
    found: dict[str, bytes | dict] = {path.name: path.read_bytes() for path in paths}
    result = json.loads((run / "result.json").read_text())
    return found | {"result.json": {k: v for k, v in result.items() if k != "seconds_per_step"}}


def copied(source: Path, target: Path) -> Path:
    """The run at the same place, so that its texts name it as before."""
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target))
