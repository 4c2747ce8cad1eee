"""What DP-Adam holds and needs by every method, and in a random subspace, beside Adam without privacy.

python benchmarks/subspace_memory.py --help
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    # Run by its path, Python would look for modules beside this file, where `tables` and `flops` are not its own.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import jax
import jax.numpy as jnp
import optax
import tyro
from rich.console import Console

import jaxdp
from benchmarks import machine, tables, workloads
from benchmarks.workloads import Workload
from benchmarks.workloads._images import ViTConfig, vit

PyTree = Any

NAMES = ("w1", "vit-b16")
RESULTS = "subspace_memory"
LEARNING_RATE = 1e-5


@dataclasses.dataclass(frozen=True)
class Settings:
    """Compile a training step of each variant for its memory, and with --run time it.

    Prints a table for each workload and writes subspace_memory.json.
    """

    workloads: tuple[str, ...] = NAMES
    """w1 (MiniLM) and vit-b16 (ViT-B/16 at 224 pixels)."""
    ranks: tuple[int, ...] = (16, 64)
    """Dimensions of the subspace."""
    methods: tuple[str, ...] = ("materialize", "ghost", "fused")
    """Ways of DP-Adam in the full space."""
    scale: str = "full"
    """tiny tries everything out on small shapes; its numbers mean nothing."""
    batch_size: int | None = None
    """Another batch size than 64 (16 for vit-b16)."""
    run: tuple[str, ...] = ()
    """Workloads whose steps are also run and timed."""
    repeats: int = 5
    """Timed rounds; every round runs every variant once."""
    output: Path = Path("runs/subspace_memory")
    """Directory of subspace_memory.json."""
    docs: Path | None = None
    """A Markdown document whose marked places receive the tables."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to train: `step(params, state, batch) -> (params, state)`."""

    label: str
    init: Callable[[PyTree], PyTree]
    step: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]


def build(name: str, settings: Settings) -> Workload:
    """A workload by name."""
    if name == "vit-b16":
        tiny = settings.scale == "tiny"
        size = settings.batch_size or (2 if tiny else 16)
        config = ViTConfig(8, 4, 16, 2, 2) if tiny else ViTConfig(224, 16, 768, 12, 12)
        return vit(name, f"ViT-B/16, {config.seq} patches, B={size}", config, size, jnp.float32)
    return workloads.build(name, settings.scale, batch_size=settings.batch_size)  # pyright: ignore[reportArgumentType]


def rows(workload: Workload, settings: Settings) -> list[Row]:
    """Adam, DP-Adam by every method, and DP-GRAPE with Adam in the subspace."""
    size, loss = workload.batch_size, workload.loss
    shapes = jax.eval_shape(workload.make_params), jax.eval_shape(workload.make_batch)

    def private() -> optax.GradientTransformation:
        return jaxdp.transforms.dpsgd(
            max_norm=1.0, noise_multiplier=1.0, expected_batch_size=size, key=jax.random.key(5)
        )

    def row(label: str, gradients: Callable[[PyTree, PyTree], PyTree], tx: optax.GradientTransformation) -> Row:
        def step(params: PyTree, state: PyTree, batch: PyTree) -> tuple[PyTree, PyTree]:
            updates, state = tx.update(gradients(params, batch), state, params)
            return optax.apply_updates(params, updates), state

        return Row(label, tx.init, step)

    mean_loss = lambda p, batch: jnp.mean(jax.vmap(loss, in_axes=(None, 0))(p, batch))
    found = [row("Adam, no privacy", jax.grad(mean_loss), optax.adam(LEARNING_RATE))]
    for method in settings.methods:
        make: Any = jaxdp.per_example_grad(loss, method=method)  # pyright: ignore[reportArgumentType]
        found.append(row(f"DP-Adam, {method}", make, optax.chain(private(), optax.adam(LEARNING_RATE))))
    lazy = jaxdp.per_example_grad(loss)
    matrices = lazy(*shapes).matrices()
    for rank in settings.ranks:
        inner = optax.chain(private(), optax.adam(LEARNING_RATE))
        tx = jaxdp.transforms.grape(inner, rank=rank, refresh_every=100, key=jax.random.key(6), matrices=matrices)
        found.append(row(f"DP-GRAPE, r = {rank}", lazy, tx))
    return found


def compiled(row: Row, workload: Workload) -> tuple[Any, dict[str, Any]]:
    """The executable, from shapes alone, and its memory; parameters and state are donated."""
    params = jax.eval_shape(workload.make_params)
    state = jax.eval_shape(row.init, params)
    batch = jax.eval_shape(workload.make_batch)
    start = time.perf_counter()
    program = jax.jit(row.step, donate_argnums=(0, 1)).lower(params, state, batch).compile()
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating))
    facts = {
        "label": row.label,
        "temp": int(program.memory_analysis().temp_size_in_bytes),
        "state": int(held),
        "compile_seconds": time.perf_counter() - start,
    }
    return program, facts


def timed(programs: list[tuple[Row, Any, dict[str, Any]]], workload: Workload, repeats: int) -> None:
    """Median seconds of a step, and of the processor, in rounds of all variants after one untimed round."""
    batch = workload.make_batch()
    samples: dict[str, list[tuple[float, float]]] = {}
    for number in range(repeats + 1):
        for row, program, facts in programs:
            params = workload.make_params()
            arguments = jax.block_until_ready((params, row.init(params), batch))
            start, worked = time.perf_counter(), time.process_time()
            jax.block_until_ready(program(*arguments))
            if number:
                spent = time.perf_counter() - start, time.process_time() - worked
                samples.setdefault(facts["label"], []).append(spent)
    for _, _, facts in programs:
        facts["samples"] = samples[facts["label"]]
        # On a shared machine the second one is the one to trust.
        facts["seconds"], facts["cpu_seconds"] = map(statistics.median, zip(*facts["samples"], strict=True))


def measure(settings: Settings, console: Console) -> dict[str, Any]:
    """All workloads."""
    found: dict[str, Any] = {"machine": machine.facts("float32"), "workloads": {}}
    for name in settings.workloads:
        if name not in NAMES:
            raise ValueError(f"workloads has {name!r}: use {', '.join(NAMES)}.")
        workload = build(name, settings)
        programs = []
        for row in rows(workload, settings):
            program, facts = compiled(row, workload)
            sizes = f"temporary {facts['temp'] / 1e6:,.0f} MB, optimiser {facts['state'] / 1e6:,.0f} MB"
            console.print(f"{name}: {row.label}: {sizes}, compiled in {facts['compile_seconds']:.0f} s")
            programs.append((row, program if name in settings.run else None, facts))
        if name in settings.run:
            timed(programs, workload, settings.repeats)
        found["workloads"][name] = {"title": workload.title, "rows": [facts for _, _, facts in programs]}
    return found


def table(entry: dict[str, Any]) -> str:
    """One workload as a Markdown table, the first row being what is compared with."""
    base = entry["rows"][0]
    whole = lambda row: row["temp"] + row["state"]
    worst = max(map(whole, entry["rows"]))
    lines = [
        "| | temporary MB | optimiser MB | both, of Adam's | below the largest | time, of Adam's | processor time |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in entry["rows"]:
        kinds = ("seconds", "cpu_seconds")
        times = " | ".join(f"{row[kind] / base[kind]:.2f}" if "seconds" in row else "-" for kind in kinds)
        lines.append(
            f"| {row['label']} | {row['temp'] / 1e6:,.0f} | {row['state'] / 1e6:,.0f} | "
            f"{whole(row) / whole(base):.2f} | {1 - whole(row) / worst:.0%} | {times} |"
        )
    return "\n".join([f"**{entry['title']}**", "", *lines])


def fill(document: Path, found: dict[str, Any]) -> None:
    """Put each table between `<!-- results NAME -->` and `<!-- end NAME -->`."""
    text = document.read_text()
    for name, entry in found["workloads"].items():
        begin, end = f"<!-- results {name} -->", f"<!-- end {name} -->"
        if begin in text and end in text:
            head, rest = text.split(begin, 1)
            body = f"{table(entry)}\n\n{tables.machine_line(found['machine'])}"
            text = f"{head}{begin}\n{body}\n{end}{rest.split(end, 1)[1]}"
    document.write_text(text)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """The command."""
    settings = tyro.cli(Settings, args=arguments, description=Settings.__doc__)
    console = Console()
    found = measure(settings, console)
    for entry in found["workloads"].values():
        console.print(f"\n{table(entry)}", markup=False, highlight=False, soft_wrap=True)
    settings.output.mkdir(parents=True, exist_ok=True)
    (settings.output / f"{RESULTS}.json").write_text(json.dumps(found, indent=1))
    if settings.docs is not None:
        fill(settings.docs, found)
    return found


if __name__ == "__main__":
    machine.keep_freed_memory()
    main()
