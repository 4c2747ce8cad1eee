"""Accuracy of DP-Adam, DP-GRAPE and DPZero at the same epsilon, by a two-layer head on features of real texts.

python benchmarks/subspace_accuracy.py --help
"""

import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any, Literal

if __package__ in (None, ""):
    # Run by its path, Python would look for modules beside this file, where `tables` and `flops` are not its own.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from benchmarks import denoise, machine, tables
from benchmarks.denoising import training

RESULTS = "subspace_accuracy"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Train the same head with Adam in the full space, in random subspaces, and without a backward pass.

    All have the same batches, steps and noise multiplier, and each the best of the same learning rates. Prints a table
    and writes subspace_accuracy.json; rows that are in it already are not measured again.
    """

    variants: tuple[str, ...] = ("raw", *training.SUBSPACES)
    """raw is DP-Adam."""
    sources: tuple[Literal["tweets", "movie_sentences"], ...] = ("tweets",)
    """Corpora."""
    epsilons: tuple[float, ...] = (8.0,)
    """Budgets; learning rates are chosen at the largest."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """One run for each, with its own start, batches and noise."""
    steps: int = 60
    """Updates of a run."""
    cache: Path = Path("runs/features")
    """Directory for the outputs of the frozen encoder; private if the texts are."""
    output: Path = Path("runs/subspace_accuracy")
    """Directory of subspace_accuracy.json."""
    docs: Path | None = None
    """A Markdown document whose place `<!-- results accuracy -->` receives the table."""


def measure(settings: Settings) -> dict[str, Any]:
    """All rows that are not in the file yet, variant by variant."""
    path = settings.output / f"{RESULTS}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": []}
    found["machine"] = machine.facts("float32")
    say = lambda line: print(line, file=sys.stderr, flush=True)
    every = 4
    for source in settings.sources:
        task = None
        for variant in settings.variants:
            done = [row for row in found["rows"] if (row["task"], row["variant"]) == (source, variant)]
            if {row["epsilon"] for row in done} >= set(settings.epsilons):
                continue
            plan = training.Plan(
                steps=-(-settings.steps // every) * every,
                every=every,
                seeds=settings.seeds,
                epsilons=settings.epsilons,
                optimizers=("adam",),
                variants=(variant,),
            )
            found["rows"] = [row for row in found["rows"] if row not in done]
            task = task or training.load(source, settings.cache)
            found["rows"] += training.measure([task], plan, say)
            settings.output.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def table(found: dict[str, Any]) -> str:
    """One line for each corpus, budget and variant."""
    lines = [
        "| corpus | epsilon | | learning rate | held-out accuracy (each run) | spread (sd) |",
        "|---|---:|---|---:|---|---:|",
    ]
    for row in found["rows"]:
        name = "DP-Adam" if row["variant"] == "raw" else row["variant"]
        final = row["final"]
        spread = f"{statistics.stdev(final):.4f}" if len(final) > 1 else "-"
        each = f"{statistics.mean(final):.4f} ({', '.join(f'{x:.4f}' for x in final)})"
        lines.append(f"| {row['task']} | {row['epsilon']:g} | {name} | {row['learning_rate']:g} | {each} | {spread} |")
    return "\n".join([*lines, "", tables.machine_line(found["machine"])])


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """The command."""
    settings = tyro.cli(Settings, args=arguments, description=Settings.__doc__)
    found = measure(settings)
    print(f"\n{table(found)}")
    if settings.docs is not None:
        denoise.fill(settings.docs, {"accuracy": table(found)})
    return found


if __name__ == "__main__":
    main()
