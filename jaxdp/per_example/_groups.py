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
    """Names of the groups, and for each leaf (in flattening order) the index of its group."""

    names: tuple[Hashable, ...]
    of_leaf: tuple[int, ...]

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
    return Groups(unique, tuple(index[key] for key in keys))
