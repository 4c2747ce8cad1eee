"""What each device of a compiled program runs, read from its optimised HLO, loops multiplied by their length."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_ARRAY = re.compile(r"\b(pred|[su]\d+|bf16|f8\w*|f\d+|c\d+)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^(?:ROOT )?%?([\w.\-]+) = (.*)$")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(r"(?:to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_DOT = re.compile(r" dot\(([^)]*)\)")
_BITS = {"pred": 8, "bf16": 16}


class Run(NamedTuple):
    """One instruction of a program.

    Attributes:
      text: as HLO writes it.
      runs: how often it runs; loops of unknown length count once.
      unknown: whether a loop of unknown length is around it.
      computation: the name of the computation that it stands in.
    """

    text: str
    runs: int
    unknown: bool
    computation: str


class Program:
    """The optimised HLO of one device: `compiled.as_text()`."""

    def __init__(self, text: str) -> None:
        self.bodies: dict[str, list[str]] = {}
        self.entry, current = "", None
        for line in text.splitlines():
            head = _HEAD.match(line.strip()) if not line.startswith(" ") else None
            if head:
                current = self.bodies.setdefault(head[2], [])
                self.entry = head[2] if head[1] else self.entry
            elif line.strip() == "}":
                current = None
            elif current is not None:
                current.append(line.strip())
        if not self.entry:
            raise ValueError("text has no entry computation: pass the text of a compiled program.")

    def instructions(self) -> Iterator[Run]:
        """Every instruction that is reached, those of loops and called computations included."""
        yield from self._of(self.entry, 1, False)

    def _of(self, name: str, runs: int, unknown: bool) -> Iterator[Run]:
        for text in self.bodies.get(name, ()):
            yield Run(text, runs, unknown, name)
            if " while(" in text:
                known = _TRIPS.search(text)
                body = re.search(r"body=%?([\w.\-]+)", text)
                if body:
                    yield from self._of(body[1], runs * (int(known[1]) if known else 1), unknown or known is None)
                continue
            called = _CALLED.findall(text)
            for branches in _BRANCHES.findall(text):
                called += [branch.strip().lstrip("%") for branch in branches.split(",")]
            for inner in called:
                yield from self._of(inner, runs, unknown)

    def product_flops(self) -> int:
        """Multiplications and additions of the matrix products of one device."""
        shapes = {name: self._shapes(name) for name in self.bodies}
        total = 0
        for run in self.instructions():
            dot = _DOT.search(run.text)
            if dot:
                result = arrays(run.text[: dot.start()])[0][1]
                left = _operands(dot[1])[0]
                dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", run.text)
                contracted = [int(d) for d in dims[1].split(",") if d] if dims else []
                inner = math.prod(shapes[run.computation][left][d] for d in contracted)
                total += run.runs * 2 * math.prod(result) * inner
        return total

    def _shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """The shape of each value of a computation that is one array."""
        found = {}
        for text in self.bodies[name]:
            instruction = _INSTRUCTION.match(text)
            if instruction and not instruction[2].startswith("("):
                found[instruction[1]] = arrays(instruction[2])[0][1] if arrays(instruction[2]) else ()
        return found


def arrays(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """The element types and shapes written in a piece of HLO."""
    return [(dtype, tuple(int(d) for d in dims.split(",") if d)) for dtype, dims in _ARRAY.findall(text)]


def num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """The size of an array."""
    bits = _BITS.get(dtype) or int(re.findall(r"\d+", dtype)[0])
    return math.ceil(bits * math.prod(shape) / 8)


def _operands(text: str) -> list[str]:
    """Names of operands, with or without their types in front."""
    return re.findall(r"%([\w.\-]+)", text) or [part.split()[-1] for part in text.split(",")]
