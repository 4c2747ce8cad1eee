"""What is wrong with a value that describes a model, in one sentence that names the field."""

import math
from typing import Any

# No real model is larger, and nothing is allocated on the word of a file that says so.
LARGEST_SIZE = 1 << 24
LARGEST_COUNT = 4096


def check_whole(name: str, value: Any, low: int = 1, high: int = LARGEST_SIZE) -> None:
    """Refuse what is no whole number within bounds."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} must be a whole number of at least {low}, not {short(value)}.")
    if value > high:
        raise ValueError(f"{name} must be at most {high:,}, not {short(value)}.")


def check_number(name: str, value: Any, low: float | int, high: float | int, *, above: bool = False) -> None:
    """Refuse what is no number within bounds; `above` excludes the lower one."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
    if not fits or not low <= value <= high or (above and value == low):
        raise ValueError(
            f"{name} must be a number {'above' if above else 'from'} {low:g} to {high:g}, not {short(value)}."
        )


def check_truth(name: str, value: Any) -> None:
    """Refuse what is neither true nor false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, not {short(value)}.")


def widened(value: Any) -> Any:
    """A whole number as a float, which JSON does not tell apart; anything else as it is, to be refused by name."""
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53
    return float(value) if whole else value


def short(value: Any) -> str:
    """A value as Python writes it, cut off where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return "a value that cannot be written out"
    return text if len(text) <= 80 else f"{text[:77]}..."
