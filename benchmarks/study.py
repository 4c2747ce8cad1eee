"""One workload from beginning to end: compile every variant, choose the peers' microbatches, time, compare."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax

from benchmarks import comparators, machine
from benchmarks.measurement import Bench, Program, compile_step, first_line, interleaved, summary
from benchmarks.variants import DEFAULT_CHOICES, Absent, Choice, Privacy, Variant, baselines, ours, private
from benchmarks.workloads import Workload

Say = Callable[[str], None]

# What of ours is also measured in the microbatches that are jax_privacy's fastest.
_IN_MICROBATCHES = Choice("fused", "layer")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a workload is measured.

    Attributes:
      repeats: timed rounds over all variants.
      warmup: untimed rounds before them.
      screening: timed runs of each microbatch size of a comparator, to find its best.
      choices: methods and group styles, and microbatch sizes where there are any.
      comparators: other libraries, by name.
      privacy: clipping norm and noise.
      compiles: how often each variant is compiled, from the beginning; the shortest time counts.
      most_bytes: what a step may take of memory to be run at all; None for what is free.
    """

    repeats: int = 9
    warmup: int = 1
    screening: int = 2
    choices: tuple[Choice, ...] = DEFAULT_CHOICES
    comparators: tuple[str, ...] = comparators.NAMES
    privacy: Privacy = dataclasses.field(default_factory=Privacy)
    compiles: int = 1
    most_bytes: int | None = None


class Study:
    """The measurement of one workload; `report` may be asked at any time, also after an interruption."""

    def __init__(self, workload: Workload, protocol: Protocol, *, say: Say, tick: Callable[[str, int], Say]) -> None:
        self.workload, self.protocol = workload, protocol
        self.say, self.tick = say, tick
        self.rows: dict[str, dict[str, Any]] = {}
        self.programs: dict[str, Program] = {}
        self.screened: dict[str, list[float]] = {}
        self.samples: dict[str, list[float]] = {}
        self.failed: dict[str, str] = {}
        self.load_average = machine.load_average()
        self.parameters = 0

    def run(self) -> None:
        """Measure."""
        self.parameters = sum(x.size for x in jax.tree.leaves(jax.eval_shape(self.workload.make_params)))
        for variant in self._variants():
            self._compile(variant)
        for _ in range(1, self.protocol.compiles):
            self._compile_again()
        bench = Bench(self.workload, self.protocol.most_bytes)
        chosen = self._screen(bench)
        programs = [p for key, p in self.programs.items() if key not in self.screened or key in chosen]
        programs = [p for p in programs if self._fits(bench, p)]
        self._time(bench, programs, self.protocol.repeats, self.protocol.warmup, self.samples, "timing")

    def _variants(self) -> Iterable[Variant | Absent]:
        protocol = self.protocol
        yield from baselines(self.workload, protocol.privacy)
        yield from ours(self.workload, protocol.privacy, protocol.choices)
        if "optax" in protocol.comparators:
            yield comparators.optax_aggregate(self.workload, protocol.privacy)
        if "jax_privacy" in protocol.comparators:
            yield comparators.jax_privacy(self.workload, protocol.privacy)

    def _compile(self, variant: Variant | Absent) -> None:
        row = {"key": variant.key, "label": variant.label, "family": variant.family, **variant.details}
        # What an interruption leaves behind, unless the row gets further.
        row.update(status="interrupted", note="not compiled yet")
        self.rows[variant.key] = row
        if isinstance(variant, Absent):
            row.update(status="skipped", note=variant.note)
            self.say(f"{variant.label}: skipped, {variant.note}")
            return
        try:
            program = compile_step(variant, self.workload)
        except Exception as error:
            # A variant that cannot be built must not take the others with it; its row says what happened.
            row.update(status="failed", note=first_line(error))
            self.say(f"{variant.label}: failed, {row['note']}")
            return
        self.programs[variant.key] = program
        row.pop("note")
        row.update(
            status="compiled",
            bytes=program.bytes,
            flops=program.flops,
            flops_xla=program.flops_xla,
            unknown_loops=program.unknown_loops,
            compile_seconds=program.compile_seconds,
        )
        self.say(
            f"{variant.label}: compiled in {program.compile_seconds:.1f} s, {program.bytes['temp'] / 2**20:.1f} MiB"
        )

    def _compile_again(self) -> None:
        """Compile all programs once more, in turn, so that a slow minute of the machine falls on all of them."""
        for key, program in self.programs.items():
            seconds = compile_step(program.variant, self.workload).compile_seconds
            self.rows[key]["compile_seconds"] = min(seconds, self.rows[key]["compile_seconds"])
            self.say(f"{program.variant.label}: compiled in {seconds:.1f} s")

    def _screen(self, bench: Bench) -> set[str]:
        """Time every microbatch size of jax_privacy briefly: its fastest (ours has a row with it, too), and its fastest
        within the memory of each of our rows."""
        unbatched = f"jax_privacy/{self.workload.batch_size}"
        if unbatched not in self.programs:
            return set()
        for size in comparators.microbatch_sizes(self.workload.batch_size):
            self._compile(comparators.jax_privacy(self.workload, self.protocol.privacy, size))
        rivals = [p for p in self.programs.values() if p.variant.family == "jax_privacy" and self._fits(bench, p)]
        # The shortest of several runs counts, so that none is needed to warm up.
        self._time(bench, rivals, self.protocol.screening, 0, self.screened, "choosing microbatch sizes")
        best = {key: min(times) for key, times in self.screened.items()}
        for key, seconds in best.items():
            self.rows[key].update(status="screened", screening_seconds=seconds)
        if not best:
            return set()
        fastest = min(best, key=best.__getitem__)
        self.rows[fastest]["fastest"] = True
        size = self.rows[fastest]["microbatch_size"]
        choice = _IN_MICROBATCHES._replace(microbatch_size=size)
        if _IN_MICROBATCHES in self.protocol.choices and choice not in self.protocol.choices and size is not None:
            self._compile(private(self.workload, self.protocol.privacy, choice))
        chosen = {unbatched, fastest} & best.keys()
        for row in self.rows.values():
            if row["family"] == "jaxdp" and "bytes" in row:
                within = [k for k in best if self.rows[k]["bytes"]["temp"] <= row["bytes"]["temp"]]
                row["rival"] = min(within, key=best.__getitem__) if within else None
                chosen.update(within and [row["rival"]])
        return chosen

    def _fits(self, bench: Bench, program: Program) -> bool:
        if bench.fits(program):
            return True
        room = (bench.room or 0) / 2**30
        note = f"needs {program.needs / 2**30:.1f} GiB where {room:.1f} may be taken, so it was compiled and not run"
        self.rows[program.variant.key]["note"] = note
        self.say(f"{program.variant.label}: {note}")
        return False

    def _time(
        self, bench: Bench, programs: list[Program], repeats: int, warmup: int, store: dict[str, list[float]], what: str
    ) -> None:
        tick = self.tick(f"{self.workload.name}: {what}", len(programs) * (repeats + warmup))
        interleaved(bench, programs, repeats=repeats, warmup=warmup, store=store, failed=self.failed, tick=tick)

    def report(self) -> dict[str, Any]:
        """What is known so far, as plain data."""
        for key, note in self.failed.items():
            self.rows[key].update(status="failed", note=note)
        for key, samples in self.samples.items():
            self.rows[key].update(status="measured", seconds=summary(samples))
        rows = list(self.rows.values())
        return {
            "name": self.workload.name,
            "title": self.workload.title,
            "batch_size": self.workload.batch_size,
            "parameters": self.parameters,
            "facts": self.workload.facts,
            "load_average_before": self.load_average,
            **compare(rows),
            "rows": rows,
        }


def compare(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Add `ratios` to every row that was compiled; returns the rows they refer to."""
    baseline, noised = _fastest(rows, "baseline"), _fastest(rows, "noised")
    by_key = {row["key"]: row for row in rows}
    for row in rows:
        if baseline is None or "bytes" not in row:
            continue
        ratios: dict[str, float | None] = {
            "temp": _ratio(row["bytes"]["temp"], baseline["bytes"]["temp"]),
            "flops": _ratio(row["flops"], baseline["flops"]),
            "compile": _ratio(row["compile_seconds"], baseline["compile_seconds"]),
        }
        if "seconds" in row and "seconds" in baseline:
            ratios["time"] = _ratio(row["seconds"]["median"], baseline["seconds"]["median"])
            pairs = list(zip(row["seconds"]["samples"], baseline["seconds"]["samples"], strict=False))
            row["time_ratio_by_round"] = summary([own / base for own, base in pairs])
        if noised is not None:
            ratios["temp_noised"] = _ratio(row["bytes"]["temp"], noised["bytes"]["temp"])
            ratios["compile_noised"] = _ratio(row["compile_seconds"], noised["compile_seconds"])
        if noised is not None and "seconds" in row and "seconds" in noised:
            ratios["time_noised"] = _ratio(row["seconds"]["median"], noised["seconds"]["median"])
        rival = by_key.get(row.get("rival") or "")
        if rival is not None and "seconds" in rival and "seconds" in row:
            ratios["speedup_at_equal_memory"] = _ratio(rival["seconds"]["median"], row["seconds"]["median"])
        row["ratios"] = ratios
    return {"baseline": baseline and baseline["key"], "baseline_noised": noised and noised["key"]}


def _fastest(rows: list[dict[str, Any]], family: str) -> dict[str, Any] | None:
    """The fastest row of a family; before anything was timed, the first that was compiled."""
    own = [row for row in rows if row["family"] == family and "bytes" in row]
    timed = [row for row in own if "seconds" in row]
    return min(timed, key=lambda row: row["seconds"]["median"]) if timed else next(iter(own), None)


def _ratio(value: float, reference: float) -> float | None:
    return value / reference if reference else None
