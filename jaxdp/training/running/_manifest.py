"""What a run was begun with, and what has to be the same when it is resumed."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from jaxdp._files import write_text
from jaxdp.training._errors import UserError
from jaxdp.training.files._environment import differences, environment
from jaxdp.training.files._run_directory import RunDirectory
from jaxdp.training.files._sealed import read_sealed, read_text, write_sealed
from jaxdp.training.tasks._split_model import fingerprint
from jaxdp.training.tasks._task import Task

_WHY = "the same noise on another computation would let the difference be read off"
_ELSE = "start a new run with `jaxdp train`"
_FIXES = {
    "versions": "install the old version",
    "device": "resume it on a device of that kind",
    "cpu": "resume it on the machine where it began, or one like it",
    "variables": "set it as it was",
    "flags": "set XLA_FLAGS as it was",
    "settings": "set it as it was",
}


def write_key(run: RunDirectory, key: PRNGKeyArray) -> None:
    """Save the root key before anything is drawn from it."""
    words = np.asarray(jax.random.key_data(key)).tolist()
    write_sealed(run.key, {"key": words, "impl": str(jax.random.key_impl(key))})


def read_key(run: RunDirectory) -> PRNGKeyArray:
    """The root key of a run that has no checkpoint."""
    saved = read_sealed(run.key)
    return jax.random.wrap_key_data(jnp.array(saved["key"], jnp.uint32), impl=saved["impl"])


def write_manifest(run: RunDirectory, task: Task, plan: dict[str, Any], files: dict[Path, str]) -> None:
    """Note everything that must not change, and the texts of the run's files."""
    write_sealed(
        run.manifest,
        {
            "environment": environment(),
            "data": task.data_fingerprint,
            "model": fingerprint(task.params),
            "plan": plan,
            "files": {path.name: text for path, text in files.items()},
        },
    )


def write_texts(run: RunDirectory, manifest: dict[str, Any], files: dict[Path, str]) -> None:
    """Write other texts of the run's files, the manifest first: from it they are restored."""
    texts = manifest["files"] | {path.name: text for path, text in files.items()}
    write_sealed(run.manifest, manifest | {"files": texts})
    for path, text in files.items():
        write_text(path, text)


def read_manifest(run: RunDirectory) -> dict[str, Any]:
    """What was noted when the run began."""
    return read_sealed(run.manifest)


def check_environment(run: RunDirectory, manifest: dict[str, Any]) -> None:
    """Refuse to resume where the same steps would be rounded another way."""
    changed = differences(manifest["environment"], environment())
    if changed:
        section = changed[0][0]
        what = ", ".join(words for found, words in changed if found == section)
        raise UserError(f"{run.path} cannot be resumed, as {what}: {_WHY}, so {_FIXES[section]}, or {_ELSE}.")


def check_task(run: RunDirectory, manifest: dict[str, Any], task: Task) -> None:
    """Refuse to resume on other data, or from another model."""
    if manifest["data"] != task.data_fingerprint:
        _refuse(run, "the training or held-out data changed")
    if manifest["model"] != fingerprint(task.params):
        _refuse(run, "the pretrained model changed")


def check_config(run: RunDirectory, manifest: dict[str, Any]) -> None:
    """Refuse another configuration; write it again where it is missing."""
    if not run.config.exists():
        write_text(run.config, manifest["files"][run.config.name])
    try:
        same = run.config.read_bytes() == manifest["files"][run.config.name].encode()
    except OSError as error:
        raise UserError(f"{run.config} cannot be read ({error.strerror}): put the file back.") from None
    if not same:
        raise UserError(
            f"{run.path} cannot be resumed, as {run.config} was changed: {_WHY}, so restore it (its text is also in "
            f"{run.manifest}) or {_ELSE}."
        )


def restore_files(run: RunDirectory, manifest: dict[str, Any]) -> list[Path]:
    """Write the plan and the statement again where they are missing or damaged; which of them were."""
    changed = [path for path in _texts(run, manifest) if path != run.config and not _holds(path, manifest)]
    for path in changed:
        write_text(path, manifest["files"][path.name])
    return changed


def check_files(run: RunDirectory, manifest: dict[str, Any]) -> None:
    """Refuse to report on files that are not as the run wrote them."""
    for path in _texts(run, manifest):
        read_text(path) if path.exists() else None
        if not _holds(path, manifest):
            fix = "restore it" if path == run.config else f"`jaxdp resume {run.path}` writes it again"
            raise UserError(f"{path} is not as the run wrote it: {fix}.")


def _texts(run: RunDirectory, manifest: dict[str, Any]) -> list[Path]:
    return [run.path / name for name in manifest["files"]]


def _holds(path: Path, manifest: dict[str, Any]) -> bool:
    return path.is_file() and path.read_bytes() == manifest["files"][path.name].encode()


def _refuse(run: RunDirectory, what: str) -> None:
    raise UserError(f"{run.path} cannot be resumed, as {what}: {_WHY}, so restore it or {_ELSE}.")
