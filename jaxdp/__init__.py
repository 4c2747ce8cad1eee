"""Differentially private training for any JAX model."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxdp import accounting, parallel, per_example, sampling, transforms
    from jaxdp.per_example import Explanation, PerExampleGrads, explain, per_example_grad

__version__ = "0.1.0"
__all__ = [
    "Explanation",
    "PerExampleGrads",
    "__version__",
    "accounting",
    "explain",
    "parallel",
    "per_example",
    "per_example_grad",
    "sampling",
    "transforms",
]
_OF_PER_EXAMPLE = ("Explanation", "PerExampleGrads", "explain", "per_example_grad")


def __getattr__(name: str) -> Any:
    """Import what is asked for: JAX takes a second, and the command line has to listen to Ctrl-C before that."""
    if name in _OF_PER_EXAMPLE:
        return getattr(importlib.import_module("jaxdp.per_example"), name)
    if name in __all__:
        return importlib.import_module(f"jaxdp.{name}")
    raise AttributeError(f"module 'jaxdp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
