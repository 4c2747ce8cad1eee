"""Clipping groups: which entry of the parameters is clipped together with which."""

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import numpy as np

from jaxdp._numbers import is_number
from jaxdp.per_example.grouping._blocks import Blocks, Entry, block_names, blocks_of, list_entries
from jaxdp.per_example.tracing._check import leaf_name

PyTree = Any
# "all", "layer", "param", `Blocks`, a function from a path to a name, a prefix tree of the parameters, or `Groups`.
GroupSpec = Any

_STYLES = ("all", "layer", "param")


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


def resolve_groups(spec: GroupSpec, params: PyTree, stacks: Sequence[tuple[int, ...]] | None = None) -> Groups:
    """Turn what a user writes for `groups=` into a group for every entry of every leaf.

    | spec | groups |
    |---|---|
    | `"all"` | one |
    | `"layer"` | each container that holds arrays only (a module), and each array that stands beside containers |
    | `"param"` | each leaf |
    | `Blocks(k)`, `Blocks(heads=...)` | blocks of consecutive modules |
    | a function | one for each name that it gives to the leaves' paths |
    | a prefix tree of the parameters | each node that is a number, and all nodes with the same string together |
    | `Groups` | these |

    Where the model scans over a leaf's leading axes, `"layer"`, `"param"`, `Blocks` and functions take each entry of
    the stack as a parameter by itself, whose path is the leaf's followed by its index, `"['layers']['w'][3]"`. A node
    of a prefix tree holds whole stacks. Boxes around a leaf (`nnx.Variable`, `nn.Partitioned`) are not containers.

    Args:
      spec: one of the above.
      params: the parameters, or anything with their structure and shapes.
      stacks: for each leaf, the leading axes over which the model scans it; None where no leaf is stacked.

    Returns:
      The groups, each of which has a member.

    Raises:
      ValueError: a spec that leaves a leaf without a group, makes a group without a leaf, or does not fit params.
      TypeError: a spec of another kind, or a function that returns something that cannot be a name.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"embed": jnp.ones((5, 2)), "layers": {"w": jnp.ones((3, 2, 2)), "b": jnp.ones((3, 2))}}
      >>> resolve_groups("layer", params).names
      ("['embed']", "['layers']")
      >>> resolve_groups("layer", params, stacks=((), (3,), (3,))).names
      ("['embed']", "['layers'][0]", "['layers'][1]", "['layers'][2]")

    References:
      He et al., Exploring the limits of differentially private deep learning with group-wise clipping, arXiv
      2212.01539.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shapes = [np.shape(leaf) for _, leaf in leaves]
    if isinstance(spec, Groups):
        return _fitting(spec, [leaf_name(path, "params") for path, _ in leaves], shapes, stacks)
    known = tuple(map(tuple, stacks)) if stacks is not None else ((),) * len(leaves)
    entries = list_entries([path for path, _ in leaves], shapes, known)
    names, keys = _keys(spec, entries, leaves, known)
    index = {name: i for i, name in enumerate(names)}
    of_leaf: list[list[int]] = [[] for _ in leaves]
    for entry, key in zip(entries, keys, strict=True):
        of_leaf[entry.leaf].append(index[key])
    return Groups(names, known, tuple(map(tuple, of_leaf)))


def certain_names(spec: GroupSpec, params: PyTree) -> tuple[Hashable, ...] | None:
    """Names of the groups if no stack could change them, else None; refuses what no stack could mend."""
    if isinstance(spec, Blocks):
        return None if spec.count is None else block_names(spec.count)
    if (isinstance(spec, str) and spec in ("layer", "param")) or (callable(spec) and not is_prefix_tree(spec)):
        return None
    return resolve_groups(spec, params).names


def is_prefix_tree(spec: Any) -> bool:
    """Whether this is a container of numbers or names, and so can be a prefix tree of parameters."""
    leaves = jax.tree.leaves(spec)
    labels = all(isinstance(leaf, str) or is_number(leaf) for leaf in leaves)
    return bool(leaves) and not jax.tree_util.all_leaves([spec]) and labels


def prefix_nodes(tree: PyTree) -> dict[str, Any]:
    """The nodes of a prefix tree by path."""
    return {leaf_name(path, ""): node for path, node in jax.tree_util.tree_leaves_with_path(tree)}


def _keys(
    spec: GroupSpec, entries: list[Entry], leaves: list, stacks: tuple[tuple[int, ...], ...]
) -> tuple[tuple[Hashable, ...], list[Hashable]]:
    """Names of the groups in order, and the name for each entry."""
    if isinstance(spec, Blocks):
        return blocks_of(spec, entries, stacks)
    keys: list[Hashable]
    if isinstance(spec, str) and spec in _STYLES:
        keys = [{"all": "all", "layer": entry.module, "param": entry.name}[spec] for entry in entries]
    elif is_prefix_tree(spec):
        return _prefix(spec, entries, [path for path, _ in leaves])
    elif callable(spec):
        keys = [_named(spec, entry.name) for entry in entries]
    elif isinstance(spec, str):
        raise ValueError(
            f'groups is {spec!r}: use "all", "layer", "param", Blocks(...), a function from a path to the name of its '
            "group, or a prefix tree of params."
        )
    else:
        raise TypeError(
            f'groups is {spec!r}: use "all", "layer", "param", Blocks(...), a function from a path to the name of its '
            "group, or a prefix tree of params whose nodes are numbers or names."
        )
    return tuple(dict.fromkeys(keys)), keys


def _named(function: Callable[[str], Hashable], name: str) -> Hashable:
    key = function(name)
    if key is None:
        raise ValueError(f"params{name} has no group: the function given as groups must return a name for every path.")
    if not isinstance(key, Hashable):
        raise TypeError(f"params{name} has the group {key!r}: names must be hashable, so return a string.")
    return key


def _prefix(tree: PyTree, entries: list[Entry], paths: list[tuple]) -> tuple[tuple[Hashable, ...], list[Hashable]]:
    """Match by path, so that a plain dict fits any container with the same keys."""
    nodes = {tuple(map(_text, path)): node for path, node in jax.tree_util.tree_leaves_with_path(tree)}
    keys, met = [], set()
    for entry in entries:
        path = tuple(map(_text, paths[entry.leaf]))
        node = next((path[:i] for i in range(len(path) + 1) if path[:i] in nodes), None)
        if node is None:
            raise ValueError(
                f"params{''.join(path)} has no group: give the prefix tree a node at its path or at one above it."
            )
        met.add(node)
        keys.append(nodes[node] if isinstance(nodes[node], str) else "".join(node))
    for node in nodes:
        if node not in met:
            raise ValueError(
                f"the prefix tree of groups has a node {''.join(node)} where params have none: remove it or correct "
                f"its path; params have {', '.join(dict.fromkeys(entry.module for entry in entries))}."
            )
    named = dict.fromkeys(node if isinstance(node, str) else "".join(path) for path, node in nodes.items())
    return tuple(named), keys


def _text(key: Any) -> str:
    return jax.tree_util.keystr((key,))


def _fitting(
    groups: Groups, names: list[str], shapes: list[tuple[int, ...]], stacks: Sequence[tuple[int, ...]] | None
) -> Groups:
    """The groups themselves, which must fit the parameters and be no finer than the model's stacks."""
    if not len(groups.stacks) == len(groups.of_leaf) == len(names):
        raise ValueError(
            f"groups are for {len(groups.of_leaf)} leaves where params have {len(names)}: resolve them anew."
        )
    for i, (name, stack, own) in enumerate(zip(names, groups.stacks, groups.of_leaf, strict=True)):
        if stacks is None:
            if shapes[i][: len(stack)] != tuple(stack):
                raise ValueError(f"groups take {name} for a stack of {stack} where its shape is {shapes[i]}.")
        elif stack and tuple(stack) != tuple(stacks[i]):
            raise ValueError(
                f"groups take {name} for a stack of {stack} where the model has {tuple(stacks[i]) or 'no stack'}: "
                "resolve them for this loss with PerExampleGrads.groups(spec)."
            )
        if len(own) != math.prod(stack) or not all(0 <= group < len(groups) for group in own):
            raise ValueError(f"groups give {name} the groups {own} where {math.prod(stack)} are needed.")
    empty = set(range(len(groups))) - {group for own in groups.of_leaf for group in own}
    if empty:
        raise ValueError(f"the group {groups.names[min(empty)]!r} has no leaf: remove it from groups.")
    return groups
