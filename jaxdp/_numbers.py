"""What counts as a number where one is asked for: Python's and NumPy's, but no boolean and no array."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np


def is_whole(value: Any) -> bool:
    """Whether this is a whole number."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether this is a real number."""
    return is_whole(value) or isinstance(value, float | np.floating)


P = ParamSpec("P")
R = TypeVar("R")


def takes_numbers(fn: Callable[P, R]) -> Callable[P, R]:
    """The function, given Python's numbers for NumPy's: in arithmetic these have a dtype of their own."""

    def convert(value: Any) -> Any:
        if isinstance(value, np.integer | np.floating):
            return value.item()
        holds = isinstance(value, dict) and any(isinstance(x, np.generic) for x in jax.tree.leaves(value))
        return jax.tree.map(convert, value) if holds else value

    @functools.wraps(fn)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        return fn(*map(convert, args), **{name: convert(value) for name, value in kwargs.items()})  # pyright: ignore[reportCallIssue]

    return wrapped
