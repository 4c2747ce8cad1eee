"""A model of another package, and the list of all of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

PyTree = Any
# The number of examples, of which a clipping norm at the median clips about half.
BATCH = 4


class Parts(NamedTuple):
    """The loss of one example, the parameters, and a batch of `BATCH` examples."""

    loss: Callable[[PyTree, PyTree], Any]
    params: PyTree
    batch: PyTree


class Model(NamedTuple):
    """A row of the table; the packages are imported when it is built.

    Attributes:
      name: of the function that builds it.
      package: its name on the index.
      title: what is used of the package.
      build: makes the parts.
      vmapped: whether JAX can batch the gradient, so that `vmap(grad)` is the reference; otherwise it is a loop.
    """

    name: str
    package: str
    title: str
    build: Callable[[], Parts]
    vmapped: bool = True


LISTED: list[Model] = []


def of(package: str, title: str, *, vmapped: bool = True) -> Callable[[Callable[[], Parts]], Callable[[], Parts]]:
    """Puts what the decorated function builds into the list."""

    def listed(build: Callable[[], Parts]) -> Callable[[], Parts]:
        LISTED.append(Model(build.__name__, package, title, build, vmapped))
        return build

    return listed


def normal(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Normal numbers in float64."""
    return scale * np.random.default_rng(seed).standard_normal(shape)


def integers(seed: int, high: int, *shape: int) -> np.ndarray:
    """Integers below `high`."""
    return np.random.default_rng(seed).integers(0, high, shape).astype(np.int32)
