"""Modules of a parameter tree in order, and blocks of them."""

import bisect
import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax

from jaxdp._numbers import is_whole
from jaxdp.per_example.tracing._check import leaf_name

BEFORE_THE_FIRST_HEAD = "start"


@dataclasses.dataclass(frozen=True, init=False)
class Blocks:
    """Blocks of consecutive modules, in flattening order with stacked layers one after the other.

    `Blocks(k)` cuts the modules (the groups of `"layer"`) into k blocks, so that the largest block has as few
    parameters as it can. `Blocks(heads=(...))` begins a block at the first parameter whose path starts with each head;
    parameters before the first head, if any, are a block named `"start"`.

    Attributes:
      count: k, the number of blocks; they are named `"block 0"` to `"block k-1"`.
      heads: paths such as `"['layers'][0]"`, which are the blocks' names too. An entry of a stacked leaf has the leaf's
        path followed by its index, and its module the module's, so that `"['layers'][3]"` is layer 3 of a stack too.

    Raises:
      TypeError: not exactly one of the two, or one of another kind.
      ValueError: no block at all, or a head given twice.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxdp.per_example import Blocks, resolve_groups
      >>> params = {"layers": [{"w": jnp.ones((2, 2)), "b": jnp.ones(2)} for _ in range(3)]}
      >>> resolve_groups(Blocks(2), params).of_leaf
      ((0,), (0,), (0,), (0,), (1,), (1,))
      >>> resolve_groups(Blocks(heads=("['layers'][0]", "['layers'][1]")), params).of_leaf
      ((0,), (0,), (1,), (1,), (1,), (1,))

    References:
      Bu et al., On the accuracy and efficiency of group-wise clipping, arXiv 2310.19215.
    """

    count: int | None
    heads: tuple[str, ...] | None

    def __init__(self, count: Any = None, *, heads: Any = None) -> None:
        if (count is None) == (heads is None):
            raise TypeError("Blocks takes either a number of blocks or heads=(...): give one of them.")
        if heads is None and not is_whole(count):
            raise TypeError(f"Blocks({count!r}): the number of blocks is a whole number.")
        if heads is None and count < 1:
            raise ValueError(f"Blocks({count}): there must be at least one block.")
        if heads is not None:
            single = isinstance(heads, str) or not isinstance(heads, Sequence)
            if single or not all(isinstance(head, str) for head in heads):
                raise TypeError(f"heads is {heads!r}: give a sequence of paths such as (\"['layers'][0]\", ...).")
            repeated = [head for head, times in Counter(heads).items() if times > 1]
            if repeated or not heads:
                what = f"names {repeated[0]!r} twice" if repeated else "is empty"
                raise ValueError(f"heads {what}: each block needs one head of its own.")
        object.__setattr__(self, "count", count)
        object.__setattr__(self, "heads", None if heads is None else tuple(heads))


class Entry(NamedTuple):
    """One entry of a leaf's stack (or a whole ordinary leaf)."""

    leaf: int
    at: tuple[int, ...]
    name: str
    module: str
    size: int


def list_entries(paths: list[tuple], shapes: list[tuple[int, ...]], stacks: tuple[tuple[int, ...], ...]) -> list[Entry]:
    """Every entry of every leaf, in flattening order."""
    modules = _modules([tuple(jax.tree_util.keystr((key,)) for key in path) for path in paths])
    entries = []
    for i, (path, shape, stack, module) in enumerate(zip(paths, shapes, stacks, modules, strict=True)):
        for index in itertools.product(*map(range, stack)):
            suffix = "".join(f"[{k}]" for k in index)
            size = math.prod(shape[len(stack) :])
            entries.append(Entry(i, index, leaf_name(path, "") + suffix, "".join(module) + suffix, size))
    return entries


def _modules(paths: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The module of each leaf: its container, or itself where it stands beside containers."""
    # A box around a leaf adds a key `.value` that says nothing about where the leaf belongs.
    only_child = Counter(path[:i] for path in paths for i in range(len(path)))
    paths = [p[:-1] if p[-1:] == (".value",) and only_child[p[:-1]] == 1 else p for p in paths]
    holds_containers = {path[:i] for path in paths for i in range(len(path) - 1)}
    return [path if path[:-1] in holds_containers else path[:-1] for path in paths]


def block_names(count: int) -> tuple[str, ...]:
    """Names of uniform blocks."""
    return tuple(f"block {i}" for i in range(count))


def blocks_of(
    spec: Blocks, entries: list[Entry], stacks: tuple[tuple[int, ...], ...]
) -> tuple[tuple[Hashable, ...], list[Hashable]]:
    """Names of the blocks in order, and the name for each entry."""
    # Leaves side by side with the same stack belong to the same layers, which follow each other.
    run_of = list(itertools.accumulate((a != b for a, b in itertools.pairwise(stacks)), initial=0))
    order = sorted(entries, key=lambda entry: (run_of[entry.leaf], entry.at, entry.leaf))
    blocks = _headed(spec.heads, order) if spec.heads is not None else _uniform(spec.count or 1, order)
    return tuple(dict.fromkeys(blocks.values())), [blocks[entry.name] for entry in entries]


def _uniform(count: int, order: list[Entry]) -> dict[str, Hashable]:
    sizes: Counter[str] = Counter()
    for entry in order:
        sizes[entry.module] += entry.size
    if count > len(sizes):
        raise ValueError(
            f"Blocks({count}) wants more blocks than there are modules to share out, {len(sizes)}: use at most that "
            'many, or "param".'
        )
    block_of = dict(zip(sizes, _balanced(list(sizes.values()), count), strict=True))
    names = block_names(count)
    return {entry.name: names[block_of[entry.module]] for entry in order}


def _balanced(sizes: list[int], count: int) -> list[int]:
    """The block of each size, for `count` runs of neighbours of which the largest is as small as it can be."""

    def fill(capacity: int) -> list[int]:
        blocks, used = [0], sizes[0]
        for i, size in enumerate(sizes[1:], start=1):
            # As many sizes left as blocks still to be begun: each begins one.
            begin = used + size > capacity or len(sizes) - i == count - 1 - blocks[-1]
            used = size if begin else used + size
            blocks.append(blocks[-1] + begin)
        return blocks

    capacities = range(max(sizes), sum(sizes) + 1)
    return fill(capacities[bisect.bisect_left(capacities, True, key=lambda c: fill(c)[-1] < count)])


def _headed(heads: tuple[str, ...], order: list[Entry]) -> dict[str, Hashable]:
    begins: dict[str, str] = {}
    for head in heads:
        first = next((e.name for e in order if _is_below(e.name, head) or _is_below(e.module, head)), None)
        if first is None:
            raise ValueError(
                f"the head {head!r} is the start of no path: params have {', '.join(entry.name for entry in order)}."
            )
        if first in begins:
            raise ValueError(
                f"the heads {begins[first]!r} and {head!r} both begin at params{first}, so that one block would be "
                "empty: keep one of them."
            )
        begins[first] = head
    block, blocks = BEFORE_THE_FIRST_HEAD, {}
    for entry in order:
        block = begins.get(entry.name, block)
        blocks[entry.name] = block
    return blocks


def _is_below(name: str, head: str) -> bool:
    """Whether a path starts with another one, whole keys only."""
    return name.startswith(head) and name[len(head) : len(head) + 1] in ("", "[", ".")
