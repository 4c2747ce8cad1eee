"""Atomic checkpoints of the whole training state, random key included, with a checksum of every array."""

import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding

from jaxdp._files import TEMPORARY, sync_directory, sync_tree
from jaxdp.training._errors import UserError
from jaxdp.training.files._checksums import checksums
from jaxdp.training.files._sealed import is_intact, read_sealed, sealed, write_sealed
from jaxdp.training.running._processes import wait_for_all

PyTree = Any

_ASIDE = ".damaged"
# In the directory of a checkpoint: the SHA-256 of its files, so that no reader is given damaged ones.
_SUMS = "files.json"


class DamagedCheckpoint(Exception):
    """A checkpoint is not what was saved; says in a few words what is wrong with it."""


class Checkpoints:
    """The checkpoints of one run.

    A checkpoint holds the root key of all noise, and whoever knows that key can take the noise off again: the
    directory is readable by its owner only, and must not be published with the model.

    Args:
      directory: where they are kept; made if need be.
      keep: how many of the newest to keep.

    Attributes:
      torn: steps of checkpoints that were not complete, and are gone.
    """

    def __init__(self, directory: Path, keep: int = 2):
        self._directory = directory.resolve()
        self.torn: list[int] = []
        if jax.process_index() == 0:
            directory.mkdir(parents=True, exist_ok=True)
            os.chmod(directory, 0o700)
            self.torn = _remove_torn(directory)
        wait_for_all("checkpoints")
        logging.getLogger("absl").addFilter(_is_news)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(self._directory, options=options)
        self._saved = self._manager.latest_step()
        self._writing: int | None = None

    def save(self, step: int, state: PyTree, meta: dict[str, Any], *, wait: bool = False) -> None:
        """Write one checkpoint; without `wait` the files are written while training goes on."""
        # The one before has to be on the disk before orbax removes the one before that.
        self._settle()
        if step != self._saved:
            stored = _storable(state)
            noted = meta | {"leaves": _names(state), "checksums": checksums(list(stored.values()))}
            arguments = ocp.args.Composite(
                state=ocp.args.StandardSave(stored), meta=ocp.args.JsonSave(sealed(noted | {"step": step}))
            )
            self._manager.save(step, args=arguments, force=True)
            self._saved = self._writing = step
        if wait:
            self._settle()

    def tend(self) -> None:
        """See that a checkpoint that was written in the background lasts."""
        if self._writing is None or self._manager.is_saving_in_progress():
            return
        path, self._writing = self._directory / str(self._writing), None
        if jax.process_index() == 0:
            write_sealed(path / _SUMS, {"files": _sums_of(path)})
            sync_tree(path)
            sync_directory(self._directory)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, the newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest complete checkpoint's step and what was noted with it.

        Raises:
          DamagedCheckpoint: what was noted is not what was saved.
        """
        steps = self.steps()
        return (steps[0], self.meta(steps[0])) if steps else None

    def meta(self, step: int) -> dict[str, Any]:
        """What was noted with a checkpoint.

        Raises:
          DamagedCheckpoint: it is not what was saved.
        """
        _check_files(self._directory / str(step))
        meta = self._read(step, meta=ocp.args.JsonRestore())["meta"]
        if not is_intact(meta) or meta["step"] != step:
            raise DamagedCheckpoint("what is noted with it has another checksum")
        return meta

    def restore(self, step: int, meta: dict[str, Any], template: PyTree) -> PyTree:
        """Read a checkpoint into the structure of `template`, bit for bit, and cut over devices as it is.

        Raises:
          DamagedCheckpoint: it cannot be read, or some array is not what was saved.
        """
        if meta["leaves"] != _names(template):
            raise RuntimeError("the checkpoint's state has another structure than this version's.")
        structs = jax.tree.map(ocp.utils.to_shape_dtype_struct, _storable(template))
        stored = self._read(step, state=ocp.args.StandardRestore(structs))["state"]
        leaves, treedef = jax.tree.flatten(template)
        try:
            restored = [_restored(like, x) for like, (_, x) in zip(leaves, sorted(stored.items()), strict=True)]
        except (ValueError, TypeError, AttributeError):
            raise DamagedCheckpoint("it holds other arrays than were saved") from None
        state = treedef.unflatten(restored)
        found = checksums(list(_storable(state).values()))
        for name, was, now in zip(meta["leaves"], meta["checksums"], found, strict=True):
            if was != now:
                raise DamagedCheckpoint(f"the array {name} has another checksum")
        return state

    def leaves(self, step: int) -> list[np.ndarray]:
        """The stored arrays of a checkpoint, in the order of the names noted with it."""
        stored = self._read(step, state=ocp.args.StandardRestore())["state"]
        return [np.asarray(x) for _, x in sorted(stored.items())]

    def set_aside(self, step: int) -> Path:
        """Rename a damaged checkpoint, so that its step can be saved again."""
        path = self._directory / str(step)
        aside = path.with_name(path.name + _ASIDE)
        if jax.process_index() == 0:
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)
            sync_directory(self._directory)
        wait_for_all(f"aside {step}")
        self._manager.reload()
        self._saved = self._manager.latest_step()
        return aside

    def close(self) -> None:
        """Finish what is being written."""
        try:
            self._settle()
        finally:
            self._manager.close()

    def _settle(self) -> None:
        """Wait until the last checkpoint is written, and see that it lasts."""
        self._manager.wait_until_finished()
        self.tend()

    def _read(self, step: int, **what: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**what))
        except MemoryError:
            raise
        except Exception as error:
            # Whatever orbax and tensorstore make of damaged files: each part of them raises errors of its own.
            raise DamagedCheckpoint(f"it cannot be read, {type(error).__name__}") from error


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of the log says what nobody else says: the errors that orbax logs it also raises."""
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _remove_torn(directory: Path) -> list[int]:
    """Delete what a killed process left half written, so that its step can be saved again."""
    steps = []
    for path in sorted(directory.iterdir()):
        torn = path.name.isdigit() and not (path / "_CHECKPOINT_METADATA").exists()
        if path.is_dir() and (torn or ".orbax-checkpoint-tmp" in path.name):
            shutil.rmtree(path)
            steps += [int(path.name)] if torn else []
    return steps


def _sums_of(directory: Path) -> dict[str, str]:
    """SHA-256 of every file in a directory."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name not in (_SUMS, _SUMS + TEMPORARY):
            with path.open("rb") as file:
                found[path.relative_to(directory).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _check_files(directory: Path) -> None:
    """Refuse changed files; a process that was killed at the wrong moment left no sums, and arrays have their own."""
    if not (directory / _SUMS).exists():
        return
    try:
        sums = read_sealed(directory / _SUMS)["files"]
    except UserError:
        raise DamagedCheckpoint(f"its {_SUMS} is damaged") from None
    found = _sums_of(directory)
    for name in sorted(sums.keys() | found.keys()):
        if sums.get(name) != found.get(name):
            what = "is missing" if name not in found else "was added" if name not in sums else "has another checksum"
            raise DamagedCheckpoint(f"its file {name} {what}")


def _names(tree: PyTree) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _storable(tree: PyTree) -> dict[str, Any]:
    """Leaves by number: names with slashes and empty states are nothing for a file system."""
    leaves = [jax.random.key_data(x) if _is_key(x) else x for x in jax.tree.leaves(tree)]
    return {f"{i:06d}": x for i, x in enumerate(leaves)}


def state_checksums(state: PyTree) -> list[str]:
    """A checksum of every array of a state."""
    return checksums(list(_storable(state).values()))


def _restored(like: Any, x: Any) -> Any:
    # On one device through the host, so that a resumed step sees arrays placed just as in a run never stopped.
    array = x if isinstance(like.sharding, NamedSharding) else jnp.asarray(np.asarray(x))
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like)) if _is_key(like) else array


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
