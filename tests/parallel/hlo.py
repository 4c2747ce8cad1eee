"""What a compiled program exchanges between devices."""

import math
import re

_COLLECTIVE = re.compile(
    r"= (.*?) (?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast)(?:-start)?\("
)
_ARRAY = re.compile(r"(pred|[a-z]+?\d+)\[([\d,]*)\]")


def array_bytes(text: str) -> list[int]:
    """Sizes of the arrays whose shapes a piece of a program names."""
    width = lambda dtype: 1 if dtype == "pred" else int(re.sub(r"\D", "", dtype)) // 8
    return [width(dtype) * math.prod(int(n) for n in shape.split(",") if n) for dtype, shape in _ARRAY.findall(text)]


def exchanged(compiled) -> int:
    """Bytes that one run of each collective of the program leaves on a device."""
    found = filter(None, (_COLLECTIVE.search(line) for line in compiled.as_text().splitlines()))
    return sum(sum(array_bytes(match[1])) for match in found)
