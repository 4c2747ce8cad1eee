"""What denoising of noisy gradient matrices gives and costs: spectra, time, and training on real texts.

python benchmarks/denoise.py --help
"""

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

if __package__ in (None, ""):
    # Run by its path, Python would look for modules beside this file, where `tables` and `flops` are not its own.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from benchmarks import machine, workloads
from benchmarks.denoising import overhead, spectra, training

Part = Literal["spectra", "overhead", "training"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure denoising in three parts; prints Markdown tables and writes denoise.json. Ctrl-C keeps what there is."""

    parts: tuple[Part, ...] = ("spectra", "overhead", "training")
    """spectra: cosine and error for known signals; overhead: time beside a step; training: accuracy on real texts."""
    draws: int = 5
    """Draws of each spectrum."""
    repeats: int = 3
    """Timed rounds of the overhead."""
    scale: Literal["full", "tiny"] = "full"
    """tiny tries everything out on small shapes; its numbers mean nothing."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """One training run for each."""
    epsilons: tuple[float, ...] = (3.0, 8.0)
    """Budgets of the training runs."""
    sources: tuple[Literal["tweets", "movie_sentences"], ...] = training.SOURCES
    """Corpora of the training runs."""
    optimizers: tuple[Literal["sgd", "adam", "adam_corrected"], ...] = ("sgd", "adam", "adam_corrected")
    """Update rules of the training runs: with momentum, Adam, and Adam less the variance of the noise."""
    steps: int = 60
    """Updates of a training run."""
    cache: Path = Path("runs/features")
    """Directory for the outputs of the frozen encoder; private if the texts are."""
    output: Path = Path("runs/denoise")
    """Directory of denoise.json."""
    docs: Path | None = None
    """A Markdown document whose marked places receive the tables, such as docs/denoising.md."""
    from_json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Measure nothing: print, and fill the document, from this file."""

    def __post_init__(self) -> None:
        for name in ("draws", "repeats", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1.")


def measure(settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything that was asked for, or as much of it as there was before an interruption."""
    tiny = settings.scale == "tiny"
    results: dict[str, Any] = {"complete": False, "machine": machine.facts("float32"), "spectra": [], "training": []}
    try:
        if "spectra" in settings.parts:
            sizes = ((16, 24),) if tiny else spectra.SIZES
            _collect(results["spectra"], spectra.measure(sizes, settings.draws, say), results, settings)
        if "overhead" in settings.parts:
            results["overhead"] = overhead.measure(workloads.build("w1", settings.scale), settings.repeats, say)
        if "training" in settings.parts:
            every = 4
            steps = -(-settings.steps // every) * every
            plan = training.Plan(
                steps=steps,
                every=every,
                seeds=settings.seeds,
                epsilons=settings.epsilons,
                optimizers=settings.optimizers,
            )
            limit = 200 if tiny else None
            tasks = (training.load(source, settings.cache, limit) for source in settings.sources)
            _collect(results["training"], training.measure(tasks, plan, say), results, settings)
        results["complete"] = True
    except KeyboardInterrupt:
        say("interrupted: keeping what was measured so far")
    return results


def _collect(into: list[Any], rows: Iterable[Any], results: dict[str, Any], settings: Settings) -> None:
    for row in rows:
        into.append(row)
        write(results, settings.output)


def write(results: dict[str, Any], directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "denoise.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return path


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for each part that was measured."""
    found = {}
    if rows := results.get("spectra"):
        found["spectra"] = _spectra_table(rows)
    if results.get("overhead"):
        found["overhead"] = _overhead_table(results["overhead"], results["machine"])
    for name, of_adam in (("training", False), ("training adam", True)):
        if rows := [row for row in results.get("training", ()) if row["optimizer"].startswith("adam") is of_adam]:
            found[name] = _training_table(rows)
    return found


def _spectra_table(rows: list[dict[str, Any]]) -> str:
    names = ["raw", *spectra.METHODS]
    lines = ["| size | spectrum | SNR | " + " | ".join(names) + " |", "|---|---|---|" + "---|" * len(names)]
    for row in rows:
        cells = [f"{row[name]['cosine']:.3f} ± {row[name]['sd']:.3f} ({row[name]['error']:.2f})" for name in names]
        lines.append(f"| {row['m']} x {row['n']} | {row['spectrum']} | {row['snr']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"Means and standard deviations over {rows[0]['repeats']} draws."])


def _overhead_table(result: dict[str, Any], facts: dict[str, Any]) -> str:
    lines = ["| | seconds | seconds of the processor | of the faster non-private step |", "|---|---|---|---|"]
    for row in result["rows"]:
        seconds, worked = row["seconds"]["median"], row["cpu_seconds"]["median"]
        lines.append(f"| {row['label']} | {seconds:.3g} | {worked:.3g} | {100 * row['ratio']:.3g} % |")
    rounds = len(result["rows"][0]["seconds"]["samples"])
    what = (
        f"{result['workload']}: {result['parameters']:,} parameters, {result['matrices']} matrices denoised. "
        f"Medians of {rounds} rounds on {facts['cpu']}, {facts['cores']} core(s), load average {facts['load_average']}."
    )
    return "\n".join([*lines, "", what])


def _training_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| corpus | epsilon | gradient | optimiser | final accuracy (each seed) | steps to 95 % | steps to 90 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in training.summaries(rows):
        final, spread = sum(row["final"]) / len(row["final"]), ", ".join(f"{x:.3f}" for x in row["final"])
        counts = [", ".join("never" if n is None else str(n) for n in row[f"steps_to_{share}"]) for share in (95, 90)]
        lines.append(
            f"| {row['task']} | {row['epsilon']:g} | {row['variant']} | {row['optimizer']} {row['learning_rate']:g} | "
            f"{final:.3f} ({spread}) | {counts[0]} | {counts[1]} |"
        )
    return "\n".join(lines)


def fill(document: Path, contents: dict[str, str]) -> list[str]:
    """Replace what stands between `<!-- results NAME -->` and `<!-- end NAME -->`; returns the names filled."""
    text, filled = document.read_text(encoding="utf-8"), []
    for name, content in contents.items():
        mark = re.compile(rf"(<!-- results {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text, count = mark.subn(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
        filled += [name] * bool(count)
    document.write_text(text, encoding="utf-8")
    return filled


def main(arguments: list[str] | None = None) -> int:
    """The command; 130 if it was interrupted."""
    settings = tyro.cli(Settings, args=arguments, prog="denoise")
    say = lambda line: print(line, file=sys.stderr, flush=True)
    if settings.from_json is not None:
        results = json.loads(settings.from_json.read_text(encoding="utf-8"))
    else:
        results = measure(settings, say)
        say(f"wrote {write(results, settings.output)}")
    contents = tables(results)
    for name, content in contents.items():
        print(f"\n{name}\n\n{content}")
    if settings.docs is not None:
        say(f"filled in {settings.docs}: {', '.join(fill(settings.docs, contents)) or 'nothing'}")
    return 0 if results["complete"] else 130


if __name__ == "__main__":
    machine.keep_freed_memory()
    sys.exit(main())
