"""Files that others wrote, read so that whatever is wrong with one is a sentence that names it."""

import json
import os
import stat
from pathlib import Path
from typing import Any

# Texts that say how something else is to be read; none of them is larger in earnest.
_LARGEST_TEXT = 1 << 30


def regular_file(path: str | Path, fix: str) -> Path:
    """A file of the file system that can be read from the start.

    Args:
      path: of the file.
      fix: what to do where there is none, such as "give the path of a table".

    Raises:
      FileNotFoundError: there is nothing at the path.
      ValueError: a directory, a pipe or a device, or a path that is none.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} does not exist: {fix}.") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{_short(path)} cannot be opened ({reason(error)}): {fix}.") from None
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise ValueError(f"{path} is {kind}, not a file: {fix}.")
    return Path(path)


def read_bytes(path: str | Path, fix: str, limit: int = _LARGEST_TEXT) -> bytes:
    """The content of a file of at most `limit` bytes; what is wrong with it is a ValueError that names it."""
    file = regular_file(path, fix)
    try:
        size = file.stat().st_size
        if size > limit:
            raise ValueError(f"{file} has {size:,} bytes, more than {limit:,}: {fix}.")
        return file.read_bytes()
    except (OSError, MemoryError) as error:
        raise ValueError(f"{file} cannot be read ({reason(error)}): {fix}.") from None


def read_text(path: str | Path, fix: str, limit: int = _LARGEST_TEXT) -> str:
    """The content of a UTF-8 file, without a byte order mark."""
    try:
        return read_bytes(path, fix, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start:,} is none): {fix}.") from None


def read_json(path: str | Path, fix: str) -> dict[str, Any]:
    """The object that a JSON file holds."""
    text = read_text(path, fix)
    try:
        values = json.loads(text)
    except RecursionError:
        raise ValueError(f"{path} is nested too deep: {fix}.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({reason(error)}): {fix}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(values).__name__}: {fix}.")
    return values


def reason(error: BaseException) -> str:
    """Why something failed, in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:200].rstrip(".")


def _short(path: object) -> str:
    text = str(path)
    return repr(text if len(text) <= 100 else text[:97] + "...")
