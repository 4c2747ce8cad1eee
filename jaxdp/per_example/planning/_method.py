"""What a user may ask for: how many passes, and what is kept."""

from typing import Any, Literal

Method = Literal["auto", "fused", "bookkeeping", "ghost", "materialize"]

_METHODS = ("auto", "fused", "bookkeeping", "ghost", "materialize")


def check_method(method: Any) -> None:
    """Refuse an unknown method."""
    if method not in _METHODS:
        raise ValueError(f"method is {method!r}: use one of {', '.join(map(repr, _METHODS))}.")
