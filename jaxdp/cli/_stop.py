"""Ctrl-C on the command line: never a traceback, whenever it comes."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_CODE = 130


# What to say when there is no time to end in good order; the last one counts.
_WORDS: list[Callable[[], str]] = [lambda: "stopped."]


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Leave without a word when the program is stopped before it has begun."""
    try:
        yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.exit(_CODE)


@contextmanager
def stopped_quietly() -> Iterator[None]:
    """Let Ctrl-C end the process at once while inside, unless something inside listens to it.

    A run survives that as it survives being killed. To raise an error instead would reach whatever code is running,
    inside of libraries that print it.
    """
    main = threading.current_thread() is threading.main_thread()
    listening = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if listening:
        signal.signal(signal.SIGINT, _leave)
    try:
        yield
    except KeyboardInterrupt:
        _leave(signal.SIGINT, None)
    finally:
        if listening:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def saying(words: Callable[[], str]) -> Iterator[None]:
    """What is said when the process ends at once."""
    _WORDS.append(words)
    try:
        yield
    finally:
        _WORDS.pop()


def _leave(number: int, frame: FrameType | None) -> None:
    """End the process as a second Ctrl-C asks for it."""
    del frame
    signal.signal(number, signal.SIG_IGN)
    # Not through `print`, which may be what was interrupted; a progress bar had hidden the cursor.
    shown = "\x1b[?25h" if os.isatty(2) else ""
    os.write(2, f"{shown}\n{_WORDS[-1]()}\n".encode())
    os._exit(_CODE)
