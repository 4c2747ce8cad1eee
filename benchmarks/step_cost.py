"""What a private training step costs beside an ordinary one: time, temporary memory, FLOPs and compile time.

python benchmarks/step_cost.py --help
"""

import contextlib
import dataclasses
import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

if __package__ in (None, ""):
    # Run by its path, Python would look for modules beside this file, where `tables` and `flops` are not its own.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import jax
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import comparators, figures, machine, tables, workloads
from benchmarks.curves import memory_curves
from benchmarks.study import Protocol, Study
from benchmarks.variants import DEFAULT_CHOICES, parse_choices

RATIOS, CURVES = "step_cost", "memory_curves"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure the training step of every method against the non-private step and against other libraries.

    Prints a table for each workload and writes step_cost.json and step_cost.png (with --curves also
    memory_curves.png). Ctrl-C (or kill) ends the measurement and writes what there is.
    """

    workloads: tuple[str, ...] = workloads.DEFAULT
    """w1, w2, w3, w4-vit, w4-conv, gpu; w4 and all are short for several. None at all for --curves alone."""
    methods: tuple[str, ...] = tuple(str(choice) for choice in DEFAULT_CHOICES)
    """method/groups, or a method alone for its usual group styles. Groups are all, layer, param, or blocks-4 (or
    another number of uniform blocks). A third part is a microbatch size: bookkeeping/all/2."""
    comparators: tuple[Literal["jax_privacy", "optax"], ...] = comparators.NAMES
    """Other libraries; rows of those that are not installed are left out with a note."""
    scale: Literal["full", "tiny"] = "full"
    """tiny tries everything out on small shapes in a minute or two; its numbers mean nothing."""
    repeats: int = 9
    """Timed rounds; every round runs every variant once, in another order."""
    warmup: int = 1
    """Untimed rounds before them, at least 1."""
    screening: int = 2
    """Timed runs of each microbatch size of jax_privacy to choose from, at least 1."""
    compiles: int = 1
    """How often each step is compiled, from empty caches; the shortest time counts. (What follows from jax_privacy's
    microbatch sizes is compiled once.)"""
    memory_gib: float | None = None
    """Steps that need more memory than this are compiled and not run: some take minutes each. (What the machine has
    free is a limit anyway.)"""
    batch_size: int | None = None
    """Another batch size than the workload's own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and products; parameters, norms, noise and optimiser are float32."""
    curves: bool = False
    """Also compile (not run) the decoders at growing batch sizes and sequence lengths for their memory."""
    output: Path = Path("runs/step_cost")
    """Directory of the files that are written."""
    docs: Path | None = None
    """A Markdown document whose marked places receive the tables and pictures, such as docs/benchmarks.md."""
    from_json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Measure nothing: print, draw and fill the document from this file."""

    def __post_init__(self) -> None:
        for name in ("repeats", "warmup", "screening", "compiles"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1.")
        if self.memory_gib is not None and self.memory_gib <= 0:
            raise ValueError(f"memory_gib is {self.memory_gib}: it must be positive.")
        workloads.expand(self.workloads)
        parse_choices(self.methods)


def measure(settings: Settings, console: Console) -> dict[str, Any]:
    """Everything that was asked for, or as much of it as there was before an interruption."""
    # A stored executable would make compilation look free.
    jax.config.update("jax_enable_compilation_cache", False)
    dtype = jax.numpy.dtype(settings.dtype)
    protocol = Protocol(
        settings.repeats,
        settings.warmup,
        settings.screening,
        parse_choices(settings.methods),
        settings.comparators,
        compiles=settings.compiles,
        most_bytes=None if settings.memory_gib is None else round(settings.memory_gib * 2**30),
    )
    results: dict[str, Any] = {
        "schema": 1,
        "complete": False,
        "machine": machine.facts(settings.dtype),
        "settings": {
            "scale": settings.scale,
            "repeats": settings.repeats,
            "warmup": settings.warmup,
            "screening": settings.screening,
            "compiles": settings.compiles,
            "memory_gib": settings.memory_gib,
            "privacy": dataclasses.asdict(protocol.privacy),
        },
        "workloads": [],
        "curves": [],
    }
    study: Study | None = None
    # A run in the background is ended by `kill`, and shells make it deaf to Ctrl-C's signal.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for name in workloads.expand(settings.workloads):
            workload = workloads.build(name, settings.scale, dtype=dtype, batch_size=settings.batch_size)
            console.rule(f"{name}: {workload.title}")
            with _progress(console) as (say, tick):
                study = Study(workload, protocol, say=say, tick=tick)
                study.run()
            results["workloads"].append(study.report())
            study = None
            write_json(results, settings.output)
            show(results["workloads"][-1], console)
        if settings.curves:
            console.rule("temporary memory against batch size and sequence length")
            with _progress(console) as (say, _):
                panels: dict[str, dict[str, Any]] = {}
                for panel in memory_curves(settings.scale, dtype, say=say):
                    panels[panel["axis"]] = panel
                    results["curves"] = list(panels.values())
        results["complete"] = True
    except KeyboardInterrupt:
        console.print("[yellow]interrupted: writing what was measured so far[/yellow]")
        if study is not None and study.rows:
            results["workloads"].append(study.report())
            write_json(results, settings.output)
            show(results["workloads"][-1], console)
    finally:
        signal.signal(signal.SIGTERM, before)
    return results


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[tuple[Callable[[str], None], Callable[[str, int], Callable[[str], None]]]]:
    """`say(line)` and `tick(title, total) -> advance(key)`; without a terminal, a line for each round of samples."""
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )

    def tick(title: str, total: int) -> Callable[[str], None]:
        if not console.is_terminal:
            console.print(f"{title}: {total} runs")
            return lambda key: None
        task = bar.add_task(title, total=total)
        return lambda key: bar.update(task, advance=1, description=f"{title} [dim]{key}[/dim]")

    if not console.is_terminal:
        yield (lambda line: console.print(line, markup=False, highlight=False)), tick
        return
    with bar:
        yield (lambda line: bar.console.print(line, markup=False, highlight=False)), tick


def show(workload: dict[str, Any], console: Console) -> None:
    """The table of a workload and what is missing in it."""
    console.print(tables.terminal_table(workload))
    for note in tables.notes(workload):
        console.print(f"  {note}", markup=False, highlight=False)


def write_json(results: dict[str, Any], directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{RATIOS}.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return path


def publish(results: dict[str, Any], settings: Settings, console: Console) -> None:
    """Write the pictures, and the document if one was named."""
    settings.output.mkdir(parents=True, exist_ok=True)
    pictures = [(RATIOS, figures.plot_ratios), (CURVES, figures.plot_curves)]
    drawn = [name for name, plot in pictures if plot(results, settings.output / f"{name}.png")]
    for name in drawn:
        console.print(f"wrote {settings.output / name}.png", highlight=False)
    if settings.docs is None:
        return
    copies = []
    for name in drawn:
        copy = f"{name}_{results['machine']['platform']}.png"
        shutil.copyfile(settings.output / f"{name}.png", settings.docs.parent / copy)
        copies.append((f"{name}_{results['machine']['platform']}", copy))
    filled = tables.fill_document(settings.docs, results, copies)
    console.print(f"filled in {settings.docs}: {', '.join(filled) or 'nothing'}", highlight=False)


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 if a variant failed that should have run, 130 if it was interrupted."""
    settings = tyro.cli(Settings, args=arguments, prog="step_cost")
    console = Console()
    if not console.is_terminal:
        console = Console(width=165)
    if settings.from_json is not None:
        results = json.loads(settings.from_json.read_text(encoding="utf-8"))
        for workload in results["workloads"]:
            show(workload, console)
    else:
        results = measure(settings, console)
        console.print(f"wrote {write_json(results, settings.output)}", highlight=False)
    for note in tables.NOTES:
        console.print(f"[dim]{note}[/dim]", highlight=False)
    publish(results, settings, console)
    if settings.from_json is not None:
        return 0
    if not results["complete"]:
        return 130
    return int(any(row["status"] == "failed" for w in results["workloads"] for row in w["rows"]))


if __name__ == "__main__":
    machine.keep_freed_memory()
    sys.exit(main())
