"""The files of a run."""

import fcntl
import os
from pathlib import Path
from typing import IO

from jaxdp._files import TEMPORARY, sync_directory, write_text
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
        self.details = path / "held_out.json"
        self.result = path / "result.json"
        self.samples = path / "samples.json"
        self.plan = path / "plan.json"
        self.report = path / "report.md"
        self.model = path / "model"
        self.checkpoints = path / "checkpoints"
        self.saved = self.checkpoints if saved is None else saved
        self.features = self.checkpoints / "features"
        self.manifest = self.checkpoints / "manifest.json"
        self.journal = self.checkpoints / "journal.json"
        self.key = self.checkpoints / "key.json"
        self.finished = self.checkpoints / "finished.json"
        self.metrics_sums = self.checkpoints / "metrics.sums"
        self._readme = self.checkpoints / "README.txt"
        self._lock = self.checkpoints / "lock"

    def create(self) -> None:
        """Make a new directory."""
        try:
            taken = self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())) and not self._is_shell()
            if not taken:
                self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path} cannot be made ({error.strerror}): choose another --run-dir.") from None
        if taken:
            raise UserError(
                f"{self.path} already exists and is not empty: go on with `jaxdp resume {self.path}`, or choose "
                "another --run-dir."
            )
        os.chmod(self.checkpoints, 0o700)
        write_text(self._readme, _SECRET)
        for folder in (self.path, self.path.parent):
            sync_directory(folder)

    def _is_shell(self) -> bool:
        """Whether a run was stopped here before its manifest was written, and so before anything was drawn."""
        harmless = {self.checkpoints, self._readme, self._lock, self.key, self.journal}
        return all(path in harmless or path.name.endswith(TEMPORARY) for path in self.path.rglob("*"))

    def require(self) -> None:
        """Refuse a directory that holds no run."""
        if self.config.exists() or self.manifest.exists():
            return
        if self.checkpoints.is_dir() and self._is_shell():
            raise UserError(
                f"{self.path} was stopped before the run began, with nothing drawn and nothing spent: start it again "
                f"with `jaxdp train` and --run-dir {self.path}."
            )
        raise UserError(f"{self.path} holds no run: give the directory that `jaxdp train` made.")

    def lock(self) -> IO[str]:
        """Keep a second process off the run until the returned file is closed."""
        file = self._lock.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise UserError(f"{self.path} is being trained by another process: wait for it, or stop it.") from None
        return file

    def remove_left_over(self) -> None:
        """Delete what a killed process left half written."""
        for folder in (self.path, self.checkpoints, self.model, self.features):
            for path in folder.glob(f"*{TEMPORARY}"):
                path.unlink(missing_ok=True)
