"""Compiling a step and timing many of them side by side."""

import dataclasses
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from benchmarks import machine
from benchmarks.flops import count_flops
from benchmarks.variants import Variant, make_step, optimizer
from benchmarks.workloads import Workload

PyTree = Any

# Shorter samples measure the dispatch and the clock; several steps are then run for one sample.
_SHORTEST_SAMPLE = 0.02
_MOST_STEPS = 50


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step and what is known without running it.

    Attributes:
      variant: what was compiled.
      run: the executable.
      state: the privatising chain's own state (a key and a counter), reused by every run.
      compile_seconds: tracing, lowering and compiling, from empty caches.
      bytes: sizes that XLA allocates: temporary, arguments, outputs.
      flops: of matrix products and convolutions, loops multiplied out.
      unknown_loops: loops whose length is known at run time only.
      flops_xla: XLA's own count, which takes each loop's body once; None where it gives none.
    """

    variant: Variant
    run: Callable[..., tuple[PyTree, PyTree, PyTree]]
    state: PyTree
    compile_seconds: float
    bytes: dict[str, int]
    flops: int
    unknown_loops: int
    flops_xla: float | None

    @property
    def needs(self) -> int:
        """Bytes that a run takes beyond the buffers that are already there."""
        return self.bytes["temp"] + self.bytes["output"] - self.bytes["alias"]


def compile_step(variant: Variant, workload: Workload, *, with_state: bool = True) -> Program:
    """Compile one step on shapes alone; parameters and optimiser state are donated."""
    params = jax.eval_shape(workload.make_params)
    batch = jax.eval_shape(workload.make_batch)
    opt_state = jax.eval_shape(optimizer().init, params)
    private = jax.eval_shape(variant.init, params)
    # What earlier variants left in JAX's caches would make later ones look quicker to compile.
    jax.clear_caches()
    start = time.perf_counter()
    traced = jax.jit(make_step(variant), donate_argnums=(0, 1)).trace(params, opt_state, private, batch)
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - start
    flops = count_flops(traced.jaxpr, unknown_length=variant.loop_length)
    state = variant.init(workload.make_params()) if with_state else private
    return Program(
        variant, compiled, state, seconds, _sizes(compiled), flops.total, flops.unknown_loops, _xla_flops(compiled)
    )


def _sizes(compiled: Any) -> dict[str, int]:
    analysis = compiled.memory_analysis()
    names = ("temp", "argument", "output", "alias", "generated_code")
    sizes = {name: int(getattr(analysis, f"{name}_size_in_bytes")) for name in names}
    peak = getattr(analysis, "peak_memory_in_bytes", None)
    return sizes if peak is None else {**sizes, "peak": int(peak)}


def _xla_flops(compiled: Any) -> float | None:
    analysis = compiled.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) and analysis else analysis
    return float(analysis["flops"]) if analysis and "flops" in analysis else None


class Bench:
    """The buffers that all programs of one workload share, so that each adds only its own temporaries.

    Parameters and optimiser state go from one program to the next: what a step costs does not depend on their values.
    """

    def __init__(self, workload: Workload, most: int | None = None) -> None:
        self.workload, self.most = workload, most
        self.batch = workload.make_batch()
        self._refill()

    def _refill(self) -> None:
        self.params = self.workload.make_params()
        self.opt_state = optimizer().init(self.params)

    def fits(self, program: Program) -> bool:
        """Whether the program needs no more memory than was allowed, and the machine has it with a tenth to spare."""
        return self.room is None or program.needs < self.room

    @property
    def room(self) -> float | None:
        """Bytes that a run may take, None where nobody can tell."""
        free = machine.free_bytes()
        known = [x for x in (self.most, free and 0.9 * free) if x is not None]
        return min(known, default=None)

    def sample(self, program: Program, steps: int = 1) -> float:
        """Seconds of one step, the mean of `steps` in a row."""
        jax.block_until_ready((self.params, self.opt_state, self.batch, program.state))
        try:
            start = time.perf_counter()
            for _ in range(steps):
                self.params, self.opt_state, _ = program.run(self.params, self.opt_state, program.state, self.batch)
            jax.block_until_ready((self.params, self.opt_state))
            return (time.perf_counter() - start) / steps
        except jax.errors.JaxRuntimeError:
            # The buffers that were given away may be lost.
            self._refill()
            raise


def interleaved(
    bench: Bench,
    programs: Sequence[Program],
    *,
    repeats: int,
    warmup: int,
    seed: int = 0,
    store: dict[str, list[float]],
    failed: dict[str, str],
    tick: Callable[[str], None] = lambda key: None,
) -> None:
    """Time all programs in turn, `repeats` rounds, each round in another order.

    Samples go into `store` and errors into `failed` as they come, so that an interrupted run keeps what it has.
    """
    warm: dict[str, list[float]] = {}
    steps, generator = 1, random.Random(seed)
    for number in range(warmup + repeats):
        if number == warmup:
            quickest = min((min(times) for times in warm.values()), default=_SHORTEST_SAMPLE)
            steps = min(_MOST_STEPS, math.ceil(_SHORTEST_SAMPLE / quickest))
        order = [program for program in programs if program.variant.key not in failed]
        generator.shuffle(order)
        for program in order:
            key = program.variant.key
            try:
                seconds = bench.sample(program, steps)
                (warm if number < warmup else store).setdefault(key, []).append(seconds)
            except jax.errors.JaxRuntimeError as error:
                failed[key] = first_line(error)
            tick(key)


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and extremes, with the samples in the order in which they were taken."""
    ordered = sorted(samples)
    low, high = (ordered[0], ordered[-1])
    if len(ordered) > 1:
        low, _, high = statistics.quantiles(ordered, n=4, method="inclusive")
    return {
        "median": statistics.median(ordered),
        "quartiles": [low, high],
        "min": ordered[0],
        "max": ordered[-1],
        "samples": list(samples),
    }


def first_line(error: BaseException) -> str:
    """An error in one line of at most 300 characters."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:300]
