"""Clipping groups: which leaf of the parameters is clipped together with which."""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import jax

from jaxdp.per_example._check import leaf_name

PyTree = Any
GroupSpec = str | Callable[[str], Hashable]


@dataclasses.dataclass(frozen=True)
class Groups:
    """Names of the groups, and the groups of each leaf (in flattening order).

    Attributes:
      names: one for each group.
      stacks: for each leaf, the leading axes over which the model scans it, e.g. `(12,)` for the weight of twelve
        layers; `()` for an ordinary leaf. Each entry of a stack is a parameter by itself.
      of_leaf: for each leaf, the group of every entry of its stack, in row-major order: one number for an ordinary one.
    """

    names: tuple[Hashable, ...]
    stacks: tuple[tuple[int, ...], ...]
    of_leaf: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.names)


def resolve_groups(spec: GroupSpec, params: PyTree) -> Groups:
    """Turn `"all"`, `"param"` or a function of the leaf's name into group indices."""
    names = [leaf_name(path, "") for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    if spec == "all":
        keys: list[Hashable] = ["all"] * len(names)
    elif spec == "param":
        keys = list(names)
    elif callable(spec):
        keys = [spec(name) for name in names]
    else:
        raise ValueError(f'groups is {spec!r}: use "all", "param", or a function from a leaf\'s path to its group.')
    unique = tuple(dict.fromkeys(keys))
    index = {key: i for i, key in enumerate(unique)}
    return Groups(unique, ((),) * len(keys), tuple((index[key],) for key in keys))
