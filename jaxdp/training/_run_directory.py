"""The files of a run, and what has to be the same when it is resumed."""

import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any

import jax
import jaxlib

import jaxdp
from jaxdp._normals import NUMBERS
from jaxdp.training._errors import UserError

_SECRET = """\
Keep this directory secret. It holds the random key of the run, with which the noise can be taken off the model again,
outputs of the frozen layers on the private examples, and a fingerprint of the private data. It is needed for
`jaxdp resume` only: delete it when the run is finished.
"""


class RunDirectory:
    """Paths inside a run's directory.

    `checkpoints/` is secret: it holds the key of the noise and a fingerprint of the private data. Everything else may
    be published under the guarantee (unless private metrics were asked for).

    Args:
      path: the directory.
      saved: where the states are saved, if not in it.
    """

    def __init__(self, path: Path, saved: Path | None = None):
        self.path = path
        self.config = path / "config.toml"
        self.statement_json = path / "statement.json"
        self.statement_text = path / "statement.txt"
        self.metrics = path / "metrics.jsonl"
        self.result = path / "result.json"
        self.samples = path / "samples.json"
        self.plan = path / "plan.json"
        self.model = path / "model"
        self.checkpoints = path / "checkpoints"
        self.saved = self.checkpoints if saved is None else saved
        self.features = self.checkpoints / "features"
        self.manifest = self.checkpoints / "manifest.json"
        self.running = self.checkpoints / "running.json"

    def create(self) -> None:
        """Make a new directory."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UserError(
                f"{self.path} already exists and is not empty: go on with `jaxdp resume {self.path}`, or choose "
                "another --run-dir."
            )
        try:
            self.checkpoints.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{self.path} cannot be made ({error.strerror}): choose another --run-dir.") from None
        os.chmod(self.checkpoints, 0o700)
        write_text(self.checkpoints / "README.txt", _SECRET)

    def require(self) -> None:
        """Refuse a directory that holds no run."""
        if not self.config.exists():
            raise UserError(f"{self.path} holds no run: give the directory that `jaxdp train` made.")

    def lock(self) -> IO[str]:
        """Keep a second process off the run until the returned file is closed."""
        file = (self.checkpoints / "lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise UserError(f"{self.path} is being trained by another process: wait for it, or stop it.") from None
        return file


def versions() -> dict[str, str]:
    """What computes a run's numbers."""
    return {"jaxdp": jaxdp.__version__, "jax": jax.__version__, "jaxlib": jaxlib.__version__, "noise": NUMBERS}


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """A JSON file that the run wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def check_unchanged(run: RunDirectory, manifest: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to resume with anything that would give other results from the same noise."""
    why = "the same noise on another computation would let the difference be read off"
    start_again = "start a new run with `jaxdp train`"
    if manifest["versions"] != now["versions"]:
        changed = [
            f"{name} was {manifest['versions'].get(name, 'another')} and is {version}"
            for name, version in now["versions"].items()
            if manifest["versions"].get(name) != version
        ]
        raise UserError(
            f"{run.path} cannot be resumed, as {', '.join(changed)}: {why}, so install the old version or "
            f"{start_again}."
        )
    names = {
        "config": f"{run.config} was changed",
        "data": "the training or held-out data changed",
        "model": "the pretrained model changed",
        "platform": "it would run on another kind of device",
    }
    for name, what in names.items():
        if manifest[name] != now[name]:
            raise UserError(f"{run.path} cannot be resumed, as {what}: {why}, so restore it or {start_again}.")
