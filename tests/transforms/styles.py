"""Every way to say what is clipped to what, for the small model: with its groups and thresholds written out."""

import math
from typing import Any, NamedTuple

from jaxdp.per_example import Blocks

MAX_NORM = 0.7


class Style(NamedTuple):
    """`group_of_leaf` is in flattening order: bias, kernel, head."""

    max_norm: Any
    groups: Any
    names: tuple[Any, ...]
    group_of_leaf: tuple[int, int, int]
    noise_shape: Any

    @property
    def bounds(self) -> list[float]:
        """The thresholds."""
        if isinstance(self.max_norm, dict):
            return list(self.max_norm.values())
        return [self.max_norm / math.sqrt(len(self.names))] * len(self.names)

    @property
    def gammas(self) -> list[float]:
        """The noise shape that is not a word, in the order of the names."""
        return list(self.noise_shape.values())


def _by_name(names: tuple[Any, ...]) -> dict[Any, float]:
    return {name: 0.4 + 1.3 * i for i, name in enumerate(names)}


def _style(groups: Any, names: tuple[Any, ...], group_of_leaf: tuple[int, int, int], max_norm: Any = MAX_NORM) -> Style:
    return Style(max_norm, groups, names, group_of_leaf, _by_name(names))


_LAYERS = ("['dense']", "['head']")
STYLES = {
    "all": _style("all", ("all",), (0, 0, 0)),
    "layer": _style("layer", _LAYERS, (0, 0, 1)),
    "param": _style("param", ("['dense']['bias']", "['dense']['kernel']", "['head']"), (0, 1, 2)),
    "function": _style(lambda path: "dense" in path, (True, False), (0, 0, 1)),
    "blocks": _style(Blocks(2), ("block 0", "block 1"), (0, 0, 1)),
    "heads": _style(Blocks(heads=("['dense']['kernel']",)), ("start", "['dense']['kernel']"), (0, 1, 1)),
    "labels": _style({"dense": {"bias": "a", "kernel": "b"}, "head": "a"}, ("a", "b"), (0, 1, 0)),
    "thresholds": _style("layer", _LAYERS, (0, 0, 1), {"['dense']": 0.2, "['head']": 0.9}),
    "prefix": Style({"dense": 0.9, "head": 0.3}, "all", _LAYERS, (0, 0, 1), {"dense": 0.2, "head": 3.0}),
}
