"""Bytes that a compiled program sends between devices."""

import re
from typing import Any, NamedTuple

from benchmarks.scaling.hlo import Program, Run, arrays, num_bytes

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_OPCODE = re.compile(rf" ({'|'.join(KINDS)})(-start)?\(")
_EXPLICIT_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]")


class Collective(NamedTuple):
    """One collective operation.

    Attributes:
      kind: one of `KINDS`.
      shapes: of what it yields on each device, as HLO writes them.
      payload: bytes of the whole array that takes part: of an all-gather's result, of a reduce-scatter's operand.
      sent: bytes that each device sends for it in a ring of its group, in one run.
      runs: how often it runs; the loops around it multiplied, those of unknown length counted once.
      unknown: whether a loop of unknown length is around it.
      source: the name that JAX gave the equation it came from, where the compiler kept it.
    """

    kind: str
    shapes: str
    payload: int
    sent: float
    runs: int
    unknown: bool
    source: str


def collectives(program: Program, devices: int) -> list[Collective]:
    """Every collective of a compiled program.

    In a ring of n devices, each sends 2 (n - 1) / n of the payload for an all-reduce, (n - 1) / n for an all-gather,
    a reduce-scatter or an all-to-all, and all of it for a permutation.

    Args:
      program: the optimised HLO.
      devices: the size of a group that the text leaves out, meaning all.
    """
    found = []
    for run in program.instructions():
        opcode = _OPCODE.search(run.text)
        if opcode:
            found.append(_collective(run, opcode, devices))
    return found


def summary(found: list[Collective]) -> dict[str, dict[str, float]]:
    """Operations in the program, their runs and bytes sent by each device, by kind."""
    table: dict[str, dict[str, float]] = {}
    for one in found:
        row = table.setdefault(one.kind, {"operations": 0, "runs": 0, "sent": 0.0})
        row["operations"] += 1
        row["runs"] += one.runs
        row["sent"] += one.runs * one.sent
    return table


def listed(found: list[Collective]) -> list[dict[str, Any]]:
    """Equal operations put together, those that send most first."""
    groups: dict[tuple[Any, ...], int] = {}
    for one in found:
        key = (one.kind, one.shapes, one.sent, one.runs, one.unknown, one.source)
        groups[key] = groups.get(key, 0) + 1
    names = ("kind", "shapes", "sent", "runs", "unknown_length", "source")
    rows = [dict(zip(names, key, strict=True)) | {"operations": count} for key, count in groups.items()]
    return sorted(rows, key=lambda row: -row["operations"] * row["runs"] * row["sent"])


def _collective(run: Run, opcode: re.Match[str], devices: int) -> Collective:
    kind = opcode[1]
    result = arrays(run.text[: opcode.start()].split("=", 1)[1])
    if opcode[2] and len(result) > 1 and kind in ("all-gather", "collective-permute"):
        # What an asynchronous start yields begins with its operands.
        result = result[len(result) // 2 :]
    group = _group_size(run.text, devices)
    payload = sum(num_bytes(*array) for array in result) * (group if kind == "reduce-scatter" else 1)
    share = {"all-reduce": 2.0 * (group - 1) / group, "collective-permute": 1.0}.get(kind, (group - 1) / group)
    source = re.search(r'op_name="([^"]*)"', run.text)
    shapes = " ".join(f"{dtype}[{','.join(map(str, shape))}]" for dtype, shape in result)
    return Collective(kind, shapes, payload, share * payload, run.runs, run.unknown, source[1] if source else "")


def _group_size(text: str, devices: int) -> int:
    if explicit := _EXPLICIT_GROUPS.search(text):
        return max(1, len([x for x in explicit[1].split(",") if x]))
    iota = _IOTA_GROUPS.search(text)
    return int(iota[1]) if iota else devices
