"""Outputs of frozen layers on disk: private, checked when they are read, computed again when they are damaged."""

import fcntl
import json
import os
import zipfile
from pathlib import Path

import jax
import numpy as np

from jaxdp._files import TEMPORARY, sync_directory
from jaxdp.training.files._environment import devices, environment

# A name, a shape and a type for each array of a file.
Forms = dict[str, tuple[tuple[int, ...], str]]


def made_by() -> str:
    """What the bits of stored outputs depend on, besides model and texts: for the names of their files."""
    return json.dumps([environment(), devices()], sort_keys=True)


def read_stored(file: Path, forms: Forms) -> dict[str, np.ndarray] | None:
    """The arrays of a file; None if there is none, or it is damaged, or holds anything else."""
    try:
        with zipfile.ZipFile(file) as archive:
            # Checks every byte before any length in it is believed.
            if archive.testzip() is not None or {f"{name}.npy" for name in forms} != set(archive.namelist()):
                return None
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in forms}
    except FileNotFoundError:
        return None
    except PermissionError:
        raise
    except Exception:
        # Readers of archives meet damage with errors of every kind.
        return None
    return arrays if {name: (x.shape, x.dtype.name) for name, x in arrays.items()} == forms else None


def write_stored(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Whole or not at all, and for nobody else to read."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = file.with_suffix(f".{os.getpid()}{TEMPORARY}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            # Held while it is written: what nobody holds was left by a killed process.
            fcntl.flock(stream, fcntl.LOCK_EX)
            np.savez(stream, **arrays)  # pyright: ignore[reportArgumentType]
            stream.flush()
            os.fsync(stream.fileno())
            os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(file.parent)


def remove_left_over(directory: Path) -> None:
    """Delete what killed processes left half written; other processes may be writing there."""
    if jax.process_index() or not directory.is_dir():
        return
    for path in directory.glob(f"*{TEMPORARY}"):
        try:
            with path.open("rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
        except OSError:
            continue
