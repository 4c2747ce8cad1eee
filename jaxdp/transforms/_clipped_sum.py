"""`ClippedSum`: the only thing noise may be added to."""

import dataclasses
from typing import Any, NoReturn

from jaxdp.per_example import PerExampleGrads

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class ClippedSum:
    r"""A sum over examples, each of bounded influence, together with that bound.

    Adding or removing any one example moves `tree` by at most `sensitivity` in L2 norm. The value is private until
    noise is added. It is not a pytree and takes no part in arithmetic, so scaling it between clipping and noise is an
    error and not a silently changed sensitivity.

    Attributes:
      tree: pytree like the parameters, float32 or better.
      sensitivity: the L2 bound, in the unit of the gradients.
    """

    tree: PyTree
    sensitivity: float

    def _refuse(self, *_: Any) -> NoReturn:
        raise TypeError(
            "a clipped sum reached arithmetic before noise was added to it: put add_gaussian_noise directly after "
            "clip, and scaling, momentum and optimisers after that."
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __rtruediv__ = __pow__ = __neg__ = __array__ = __jax_array__ = _refuse


def describe(updates: PyTree) -> str:
    """What a transformation was given, in words, for its error sentence."""
    if isinstance(updates, ClippedSum):
        return "a sum that is already clipped"
    if isinstance(updates, PerExampleGrads):
        return "per-example gradients that are not clipped"
    return "a plain pytree of arrays"
