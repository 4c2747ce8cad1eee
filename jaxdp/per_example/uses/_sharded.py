"""A matrix product whose weight several devices hold in parts."""

import dataclasses

from jaxdp.per_example.tracing._values import Weight
from jaxdp.per_example.uses._contracted import Contracted
from jaxdp.per_example.uses._use import Use


def sharded_use(use: Use, weight: Weight, parts: dict[int, tuple[int, ...]]) -> Use:
    """The use of a weight, with how devices hold it."""
    leaves = [leaf for leaf in weight.shadows if any(count > 1 for count in parts.get(leaf, ()))]
    if len(weight.shadows) > 1 or not leaves or type(use) is not Contracted or weight.axes is None:
        return use
    cut = parts[leaves[0]]
    depth = len(weight.stack)
    counts = [cut[depth + a] if depth + a < len(cut) else 1 for a in weight.axes]
    contract, batch = use.eqn.params["dimension_numbers"]
    mine, shared = tuple(contract[use.index]), tuple(batch[use.index])
    free = [d for d in range(len(counts)) if d not in mine and d not in shared]
    shape = use.shape
    sides = tuple(tuple((shape[d], counts[d]) for d in dims) for dims in (mine, free))
    return dataclasses.replace(use, parts=sides)
