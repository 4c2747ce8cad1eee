"""What exact and estimated norms cost as sequences grow: memory, FLOPs and time of clipping, and of one layer's norm.

python benchmarks/long_context.py --help
"""

import dataclasses
import json
import signal
import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    # Run by its path, Python would look for modules beside this file, where `tables` and `flops` are not its own.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import jax
import jax.numpy as jnp
import matplotlib
import tyro
from rich.console import Console
from rich.table import Table

import jaxdp
from benchmarks import machine
from benchmarks.flops import count_flops
from benchmarks.measurement import Bench, Program, compile_step, interleaved, summary
from benchmarks.variants import Privacy, Variant, baselines
from benchmarks.workloads import Workload
from benchmarks.workloads._long_decoder import long_blocks
from jaxdp.norms import EXACT, Hutchinson, HutchPP, Norm, factored_certificate
from jaxdp.norms._choice import NormChoice

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# (input width, output width) and the shares that the paper reports (arXiv 2605.24879), k = 32 at T = 4096.
REPORTED = {
    (8192, 2048): {"Hutchinson": 0.9805, "Hutch++": 0.9217},
    (2048, 512): {"Hutchinson": 0.9219, "Hutch++": 0.6869},
}
REPORTED_MEMORY = {"Hutchinson": 0.39, "Hutch++": 0.15}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure clipping with exact and with estimated norms against sequence length.

    A step is the gradient of one batch and Adam; clipped, but without noise, whose cost does not depend on how norms
    are found. Prints a table for each length and writes long_context.json and long_context.png.
    """

    lengths: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)
    """Sequence lengths, multiples of 128 or less than that."""
    timed_up_to: int = 2048
    """Longer sequences are compiled for their memory and FLOPs, and not run."""
    batch_size: int = 2
    width: int = 512
    layers: int = 2
    probes: int = 64
    sketch: int = 16
    repeats: int = 5
    """Timed rounds; every round runs every variant once, in another order."""
    claims: bool = True
    """Also compare the norm of one layer with what the paper reports."""
    output: Path = Path("runs/long_context")
    """Directory of the files that are written."""


def variants(workload: Workload, settings: Settings) -> list[Variant]:
    """The non-private steps, and clipping with each kind of norm, method and group style."""
    gram, product = {"*": "gram"}, {"*": "materialize"}
    hutchinson, hutchpp = Hutchinson(settings.probes), HutchPP(settings.probes, settings.sketch)
    plain = [row for row in baselines(workload, Privacy()) if row.family == "baseline"]
    flat = [
        _clipped(workload, "bookkeeping", "all", name, norm, rules)
        for name, norm, rules in (
            ("Gram", EXACT, gram),
            ("product", EXACT, product),
            ("exact", EXACT, None),
            ("Hutchinson", hutchinson, None),
            ("Hutch++", hutchpp, None),
        )
    ]
    ghost = [
        _clipped(workload, "ghost", "all", name, norm, None)
        for name, norm in (("exact", EXACT), ("Hutchinson", hutchinson))
    ]
    fused = [
        _clipped(workload, "fused", "layer", name, norm, None)
        for name, norm in (("exact", EXACT), ("Hutchinson", hutchinson), ("Hutch++", hutchpp))
    ]
    return [*plain, *flat, *ghost, *fused]


def _clipped(
    workload: Workload, method: Any, groups: str, name: str, norm: Norm, rules: dict[str, Any] | None
) -> Variant:
    per_example: Any = jaxdp.per_example_grad(workload.loss, method=method, rules=rules)
    clip = jaxdp.transforms.clip(1.0, groups=groups, norm=norm, key=jax.random.key(5))

    def gradient(params: Any, state: Any, batch: Any) -> tuple[Any, Any]:
        clipped: Any
        clipped, state = clip.update(per_example(params, batch), state, params)
        return jax.tree.map(lambda x: x / workload.batch_size, clipped.tree), state

    key = f"{method}/{groups}, {name}"
    return Variant(key, key, "jaxdp", clip.init, gradient)


def measure_length(settings: Settings, seq: int, console: Console) -> dict[str, Any]:
    """All variants at one sequence length."""
    workload = long_blocks(
        seq,
        batch_size=settings.batch_size,
        width=settings.width,
        layers=settings.layers,
        heads=settings.width // 64 or 1,
    )
    timed = seq <= settings.timed_up_to
    programs: list[Program] = []
    for variant in variants(workload, settings):
        programs.append(compile_step(variant, workload, with_state=timed))
        console.print(f"T={seq} {variant.label}: {programs[-1].bytes['temp'] / 2**20:.1f} MiB", highlight=False)
    store: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    if timed:
        interleaved(Bench(workload), programs, repeats=settings.repeats, warmup=1, store=store, failed=failed)
    base = programs[:2]
    seconds = {key: summary(samples)["median"] for key, samples in store.items()}
    fastest = min((seconds[p.variant.key] for p in base if p.variant.key in seconds), default=None)
    least = min(p.bytes["temp"] for p in base)
    fewest = min(p.flops for p in base)
    rows = [
        {
            "key": p.variant.key,
            "temp_bytes": p.bytes["temp"],
            "temp": p.bytes["temp"] / least,
            "flops": p.flops / fewest,
            "seconds": seconds.get(p.variant.key),
            "time": None if fastest is None or p.variant.key not in seconds else seconds[p.variant.key] / fastest,
            "samples": store.get(p.variant.key, []),
        }
        for p in programs
    ]
    return {"seq": seq, "title": workload.title, "rows": rows, "failed": failed}


def claims(seq: int = 4096, probes: int = 32) -> list[dict[str, Any]]:
    """FLOPs and temporary memory of one layer's norm, for one example, beside those of the paper."""
    rows = []
    for (c, p), reported in REPORTED.items():
        shapes = [jax.ShapeDtypeStruct((1, seq, n), jnp.float32) for n in (c, p)]
        exact = _norm_program(NormChoice("materialize"), shapes)
        for name, norm in (("Hutchinson", Hutchinson(probes)), ("Hutch++", HutchPP(probes, probes))):
            flops, temp = _norm_program(NormChoice(randomized=norm), shapes)
            layer = 4 * seq * (c + p) + 4 * c * p  # its factors and its weight, which a step holds anyway
            rows.append(
                {
                    "layer": f"{c}x{p}",
                    "norm": name,
                    "flops_saved": 1 - flops / exact[0],
                    "flops_saved_reported": reported[name],
                    "memory_saved": 1 - (layer + temp) / (layer + exact[1]),
                    "memory_saved_reported": REPORTED_MEMORY[name] if (c, p) == (8192, 2048) else None,
                }
            )
    return rows


def _norm_program(choice: NormChoice, shapes: list[Any]) -> tuple[int, int]:
    norm = lambda a, g, key: factored_certificate(a, g, choice, key)
    traced = jax.jit(norm).trace(*shapes, jax.random.key(0))
    analysis: Any = traced.lower().compile().memory_analysis()
    return count_flops(traced.jaxpr).total, analysis.temp_size_in_bytes


def length_table(length: dict[str, Any]) -> Table:
    table = Table(title=length["title"])
    for head in ("step", "temp, MiB", "temp", "FLOPs", "time, ms", "time"):
        table.add_column(head, justify="left" if head == "step" else "right")
    for row in length["rows"]:
        seconds = "" if row["seconds"] is None else f"{1e3 * row['seconds']:,.0f}"
        ratio = "" if row["time"] is None else f"{row['time']:.2f}"
        table.add_row(
            row["key"], f"{row['temp_bytes'] / 2**20:,.1f}", f"{row['temp']:.2f}", f"{row['flops']:.2f}", seconds, ratio
        )
    return table


def claims_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="norm of one layer, one example, T=4096, k=32: saved against the gradient itself")
    for head in ("layer", "norm", "FLOPs saved", "reported", "memory saved", "reported"):
        table.add_column(head, justify="left" if head in ("layer", "norm") else "right")
    for row in rows:
        percent = lambda name, row=row: "" if row[name] is None else f"{100 * row[name]:.2f}%"
        names = ("flops_saved", "flops_saved_reported", "memory_saved", "memory_saved_reported")
        table.add_row(row["layer"], row["norm"], *map(percent, names))
    return table


def plot(results: dict[str, Any], path: Path) -> None:
    """Temporary memory and time against sequence length, as ratios to the non-private step."""
    figure, (memory, time) = plt.subplots(1, 2, figsize=(11, 4.4), dpi=120, layout="constrained")
    for axes, name, label in ((memory, "temp", "temporary memory"), (time, "time", "time")):
        for key in [row["key"] for row in results["lengths"][0]["rows"]]:
            found = [(x["seq"], row[name]) for x in results["lengths"] for row in x["rows"] if row["key"] == key]
            points = [(seq, value) for seq, value in found if value is not None]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", ms=4, label=key)
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("sequence length T")
        axes.set_ylabel(f"{label} / non-private")
        axes.spines[["top", "right"]].set_visible(False)
    memory.legend(frameon=False, fontsize=7)
    figure.savefig(path)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """The command; 130 if it was interrupted, with what was measured written."""
    settings = tyro.cli(Settings, args=arguments, prog="long_context")
    console = Console() if Console().is_terminal else Console(width=120)
    # A stored executable would make no difference to the numbers, but its absence keeps every run alike.
    jax.config.update("jax_enable_compilation_cache", False)
    results: dict[str, Any] = {"schema": 1, "complete": False, "machine": machine.facts("float32"), "lengths": []}
    results["settings"] = dataclasses.asdict(settings) | {"output": str(settings.output)}
    settings.output.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if settings.claims:
            results["claims"] = claims()
            console.print(claims_table(results["claims"]))
        for seq in settings.lengths:
            results["lengths"].append(measure_length(settings, seq, console))
            console.print(length_table(results["lengths"][-1]))
        results["complete"] = True
    except KeyboardInterrupt:
        console.print("[yellow]interrupted: writing what was measured so far[/yellow]")
    finally:
        signal.signal(signal.SIGTERM, before)
    path = settings.output / "long_context.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if results["lengths"]:
        plot(results, settings.output / "long_context.png")
    console.print(f"wrote {path}", highlight=False)
    return 0 if results["complete"] else 130


if __name__ == "__main__":
    machine.keep_freed_memory()
    sys.exit(main())
