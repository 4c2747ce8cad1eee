"""Files that are whole or not there at all, also after a power cut."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp"


@contextmanager
def replaced(path: Path, *, private: bool = False) -> Iterator[Path]:
    """A file to write beside `path`, which takes its place once everything is on the disk.

    Args:
      path: what it becomes.
      private: readable by its owner only; else as readable as the user's other files.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    temporary.unlink(missing_ok=True)
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666))
    mode = temporary.stat().st_mode
    try:
        yield temporary
        # A library that made a file of its own there chose who may read it.
        os.chmod(temporary, mode & 0o777)
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Whole or not at all."""
    with replaced(path, private=private) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync_directory(path: Path) -> None:
    """Make the names in a directory last."""
    _sync(path)


def sync_tree(path: Path) -> None:
    """Make a directory last with everything in it."""
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            _sync(Path(folder) / name)
        _sync(Path(folder))


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
