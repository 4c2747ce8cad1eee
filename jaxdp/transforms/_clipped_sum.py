"""`ClippedSum`: the only thing noise may be added to."""

import dataclasses
from typing import Any

import jax
import optax

from jaxdp.per_example import Inert, PerExampleGrads

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class ClippedSum(Inert):
    r"""A sum over examples, each of bounded influence, together with that bound.

    Adding or removing any one example moves `tree` by at most `sensitivity` in L2 norm. The value is private until
    noise is added. It is not a pytree and takes no part in arithmetic, so scaling it between clipping and noise is an
    error and not a silently changed sensitivity.

    Attributes:
      tree: pytree like the parameters, float32 or better.
      sensitivity: the L2 bound, in the unit of the gradients.
    """

    _refusal = (
        "a clipped sum reached arithmetic before noise was added to it: put add_gaussian_noise directly after "
        "clip, and scaling, momentum and optimisers after that."
    )

    tree: PyTree
    sensitivity: float


def describe(updates: PyTree) -> str:
    """What a transformation was given, in words, for its error sentence."""
    if isinstance(updates, ClippedSum):
        return "a sum that is already clipped"
    if isinstance(updates, PerExampleGrads):
        return "per-example gradients that are not clipped"
    return "a plain pytree of arrays"


def refuse_masked(tree: PyTree, name: str) -> None:
    """Refuse parameters of which a wrapper has hidden a part: what is hidden would be neither clipped nor noisy."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    if any(isinstance(x, optax.MaskedNode) for x in leaves):
        raise TypeError(
            f"{name} sees only a part of the parameters, so it stands inside optax.masked, multi_transform or "
            "partition, where the rest would stay private data: put these around the optimiser after the noise, clip "
            "parts by themselves with groups, and keep frozen values out of params."
        )
