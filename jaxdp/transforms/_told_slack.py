"""What clipped sums hold for rounding, told to whoever traces a step that makes them."""

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager

_listening: contextvars.ContextVar[list[float] | None] = contextvars.ContextVar("listening", default=None)


@contextmanager
def told_slack() -> Iterator[list[float]]:
    """The slack of every sum that got noise while inside, a public number that is known when a step is traced."""
    slacks: list[float] = []
    token = _listening.set(slacks)
    try:
        yield slacks
    finally:
        _listening.reset(token)


def tell_slack(slack: float) -> None:
    """Called where a sum gets its noise."""
    slacks = _listening.get()
    if slacks is not None:
        slacks.append(slack)
