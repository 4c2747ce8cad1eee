"""What a disk, a file system or a limit refused, in one sentence that says how to go on."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from jaxdp.training._errors import UserError
from jaxdp.training.files._run_directory import RunDirectory

_FIXES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "raise the limit on the size of files (`ulimit -f`)",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it readable and writable",
    errno.EPERM: "make it readable and writable",
    errno.EIO: "look after the disk",
    errno.EMFILE: "raise the limit on open files (`ulimit -n`)",
    errno.ESTALE: "mount the file system again",
}


@contextmanager
def in_one_sentence(run: RunDirectory) -> Iterator[None]:
    """Turn what the file system refused, wherever it was noticed, into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number, file = _cause(error)
        if number is None:
            raise
        what = file or str(run.path)
        again = f"go on with `jaxdp resume {run.path}`" if run.manifest.exists() else "start again with `jaxdp train`"
        raise UserError(
            f"{what} could not be written or read ({os.strerror(number)}): {_FIXES[number]}, then {again}."
        ) from error


def _cause(error: BaseException) -> tuple[int | None, str | None]:
    """Number and file of the refusal that an error goes back to."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, OSError) and current.errno in _FIXES:
            return current.errno, None if current.filename is None else os.fsdecode(current.filename)
        # Libraries in other languages pass on the words only.
        for number in _FIXES:
            if number != errno.EPERM and os.strerror(number) in str(current):
                return number, None
        current = current.__cause__ or current.__context__
    return None, None
