"""Temporary memory of a step against batch size and sequence length: compiled, never run."""

from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp

from benchmarks.measurement import compile_step, first_line
from benchmarks.variants import Absent, Choice, Privacy, baselines, ours
from benchmarks.workloads import Scale, build

CHOICES = (
    Choice("ghost", "all"),
    Choice("bookkeeping", "all"),
    Choice("fused", "layer"),
    Choice("materialize", "all"),
)
# (axis, workload, points)
PANELS = {
    "full": (("batch_size", "w2", (8, 16, 32, 64, 128, 256)), ("seq", "w3", (64, 128, 256, 512, 1024, 2048))),
    "tiny": (("batch_size", "w2", (2, 4)), ("seq", "w3", (4, 8))),
}


def memory_curves(
    scale: Scale, dtype: Any = jnp.float32, *, say: Callable[[str], None], privacy: Privacy | None = None
) -> Iterator[dict[str, Any]]:
    """One panel at a time, yielded again after every point so that an interruption loses nothing."""
    for axis, name, points in PANELS[scale]:
        base = build(name, scale, dtype=dtype)
        panel: dict[str, Any] = {"axis": axis, "workload": name, "title": base.title, "lines": []}
        lines: dict[str, dict[str, Any]] = {}
        for point in points:
            workload = build(name, scale, dtype=dtype, **{axis: point})
            plain = baselines(workload, privacy or Privacy())[0]
            for variant in (plain, *ours(workload, privacy or Privacy(), CHOICES)):
                line = {"key": variant.key, "label": variant.label, "points": [], "notes": []}
                line = lines.setdefault(variant.key, line)
                if isinstance(variant, Absent):
                    line["notes"] = [variant.note]
                    continue
                try:
                    program = compile_step(variant, workload, with_state=False)
                except Exception as error:
                    line["notes"].append(f"{axis} {point}: {first_line(error)}")
                    say(f"{variant.label}, {axis} {point}: failed, {line['notes'][-1]}")
                    continue
                line["points"].append([point, program.bytes["temp"]])
                say(f"{variant.label}, {axis} {point}: {program.bytes['temp'] / 2**20:.1f} MiB")
            panel["lines"] = list(lines.values())
            yield panel
