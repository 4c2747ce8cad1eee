"""The largest batch and the longest sequence whose step fits a memory budget, by compiling and never running."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax

from benchmarks import workloads
from benchmarks.measurement import first_line
from benchmarks.scaling import steps
from benchmarks.variants import Absent
from benchmarks.workloads import Scale, Workload
from benchmarks.workloads._long_decoder import long_blocks

STEPS = ("plain", "ghost", "fused", "bookkeeping", "randomised", "jax_privacy")


@dataclasses.dataclass(frozen=True)
class Axis:
    """What grows until memory is full.

    Attributes:
      name: `"batch"` or `"seq"`.
      title: one line for the table.
      workload: the workload of a size.
      start: the first size that is tried, a power of two.
      limit: no larger size is tried.
      grain: sizes are multiples of it.
    """

    name: str
    title: str
    workload: Callable[[int], Workload]
    start: int
    limit: int
    grain: int = 1


def axes(scale: Scale) -> tuple[Axis, Axis]:
    """The decoder's batch size at a fixed length, and the length of its layers at a fixed batch size."""
    tiny = scale == "tiny"
    seq = 8 if tiny else 256
    batch = Axis("batch", "examples", lambda n: workloads.build("w3", scale, batch_size=n, seq=seq), 32, 2**14)
    if tiny:
        long = lambda n: long_blocks(n, width=16, heads=2, piece=8)
        return dataclasses.replace(batch, start=2, limit=16), Axis("seq", "tokens", long, 16, 64, grain=8)
    return batch, Axis("seq", "tokens", long_blocks, 1024, 2**20, grain=128)


def largest(needs: Callable[[int], int], budget: int, start: int, limit: int, grain: int, fineness: int) -> int:
    """The largest multiple of `grain` that fits, to one part in `fineness`; 0 if not even one does.

    Sizes below `start` are halved until one fits. From there on a straight line through the two sizes nearest to the
    budget says where to look next, and every third try halves what is left between the last that fits and the first
    that does not.

    Args:
      needs: the bytes that a size needs, growing with it.
      budget: the bytes that there are.
      start: the first size that is tried.
      limit: no larger size is tried.
      grain: sizes from `start` on are multiples of it.
      fineness: the interval that is left at the end is no more than the size divided by this (or `grain`).
    """
    known: dict[int, int] = {}

    def fits(size: int) -> bool:
        known[size] = needs(size)
        return known[size] <= budget

    low, high = start, None
    while not fits(low):
        if low == 1:
            return 0
        low, high = low // 2, low
    tries = 0
    while low < limit:
        unit = max(grain, low // fineness // grain * grain)
        if high is not None and high - low <= unit:
            break
        tries += 1
        if tries % 3 == 0 and high is not None:
            guess = (low + high) // 2
        else:
            guess = min(_crossing(known, budget, low, high), 16 * low)
        guess = max(low + unit, min(limit if high is None else high - unit, guess // grain * grain))
        if fits(guess):
            low = guess
        else:
            high = guess
    return low


def _crossing(known: dict[int, int], budget: int, low: int, high: int | None) -> int:
    """Where a straight line through two sizes reaches the budget."""
    smaller = [size for size in known if size < low]
    other = high if high is not None else max(smaller, default=None)
    if other is None or known[other] == known[low]:
        return 2 * low
    slope = (known[other] - known[low]) / (other - low)
    return low + int((budget - known[low]) / slope) if slope > 0 else 2 * low


def what_fits(
    scale: Scale, names: tuple[str, ...], keys: tuple[str, ...], budget: int, fineness: int, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """One row for each axis and step: the largest size, and every size that was compiled."""
    for axis in (axis for axis in axes(scale) if axis.name in names):
        for key in keys:
            row: dict[str, Any] = {"axis": axis.name, "key": key, "title": axis.workload(axis.start).title}
            tried: dict[int, dict[str, int]] = {}

            def needs(size: int, axis: Axis = axis, key: str = key, tried: dict = tried) -> int:
                if size not in tried:
                    tried[size] = _memory(key, axis.workload(size))
                    say(f"{axis.title} {size}, {key}: {tried[size]['total'] / 2**20:,.0f} MiB")
                return tried[size]["total"]

            try:
                row["largest"] = largest(needs, budget, axis.start, axis.limit, axis.grain, fineness)
                row["limited"] = row["largest"] >= axis.limit
            except Exception as error:
                # A step that is not installed or cannot be compiled must not take the others with it.
                row["note"] = str(error) if isinstance(error, _AbsentError) else first_line(error)
            row["tried"] = {str(size): sizes for size, sizes in sorted(tried.items())}
            yield row


class _AbsentError(Exception):
    """A step that this installation does not have."""


def _memory(key: str, workload: Workload) -> dict[str, int]:
    step = steps.build(key, workload)
    if isinstance(step, Absent):
        raise _AbsentError(step.note)
    jax.clear_caches()
    compiled = jax.jit(step.run, donate_argnums=(0, 1)).lower(*steps.shapes_of(step, workload)).compile()
    return steps.memory(compiled)
