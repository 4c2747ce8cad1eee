"""What many devices exchange, what fits a memory budget, and a plan on paper for a model that fits no one machine.

python benchmarks/scale.py --help
"""

import dataclasses
import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

if __package__ in (None, ""):
    # Run by its path, Python would look for modules beside this file, where `tables` and `flops` are not its own.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import jax
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import machine, tables
from benchmarks.scaling import fits, report, weak
from benchmarks.scaling.plan import Cluster, paper_plan
from benchmarks.scaling.steps import LABELS

Part = Literal["weak", "fits", "plan"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Compile training steps for several devices and for growing sizes, without running any.

    Prints tables and writes scale.json and scale.png. Ctrl-C (or kill) ends it and writes what there is. What
    scale.json has already, with the same settings, is kept beside what is compiled anew: a study can be made in pieces.
    """

    parts: tuple[Part, ...] = ("weak", "fits", "plan")
    """weak: collectives on simulated devices. fits: the largest batch and sequence. plan: a 7B model on paper."""
    scale: Literal["full", "tiny"] = "full"
    """tiny tries everything out on small shapes; its numbers mean nothing."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of simulated devices."""
    batch_per_device: int = 4
    seq: int = 128
    """Tokens of an example in the part weak."""
    weak_steps: tuple[str, ...] = weak.STEPS
    """Steps of the part weak, by name."""
    fit_steps: tuple[str, ...] = fits.STEPS
    """Steps of the part fits, by name."""
    fit_axes: tuple[Literal["batch", "seq"], ...] = ("batch", "seq")
    """What grows in the part fits."""
    memory_gib: float = 4.0
    """What parameters, optimiser state, batch and temporaries may take together in the part fits."""
    fineness: int = 16
    """The part fits stops when a size is known to one part in this."""
    cluster: Cluster = dataclasses.field(default_factory=Cluster)
    output: Path = Path("runs/scale")
    """Directory of the files that are written."""
    docs: Path | None = None
    """A Markdown document whose marked places receive the tables and the picture, such as docs/scale.md."""
    from_json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Compile nothing: print, draw and fill the document from this file."""

    def __post_init__(self) -> None:
        for name in ("weak_steps", "fit_steps"):
            for key in getattr(self, name):
                if key not in LABELS:
                    raise ValueError(f"{name} has {key!r}: use {', '.join(LABELS)}.")
        if self.memory_gib <= 0:
            raise ValueError(f"memory_gib is {self.memory_gib}: it must be positive.")


def measure(settings: Settings, console: Console) -> dict[str, Any]:
    """The parts that were asked for, or as much of them as there was before an interruption."""
    jax.config.update("jax_enable_compilation_cache", False)
    say = lambda line: console.print(line, markup=False, highlight=False)
    path = settings.output / "scale.json"
    results: dict[str, Any] = {"schema": 1, "weak": [], "fits": [], "plan": None}
    if path.exists():
        results |= json.loads(path.read_text(encoding="utf-8"))
    results |= {"complete": False, "machine": machine.facts("float32")}
    known = results.get("settings", {})
    for part in settings.parts:
        if known.get(part) != _facts(settings, part):
            results[part] = None if part == "plan" else []
    results["settings"] = known | {part: _facts(settings, part) for part in settings.parts}
    # A run in the background is ended by `kill`, and shells make it deaf to Ctrl-C's signal.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if "plan" in settings.parts:
            results["plan"] = paper_plan(settings.scale, settings.cluster)
        if "weak" in settings.parts:
            sizes = settings.batch_per_device, settings.seq if settings.scale == "full" else 8
            rows = weak.weak_scaling(settings.devices, settings.weak_steps, settings.scale, sizes, say)
            _collect(results, "weak", rows, settings.output)
        if "fits" in settings.parts:
            budget = int(settings.memory_gib * 2**30) if settings.scale == "full" else 2**20
            rows = fits.what_fits(settings.scale, settings.fit_axes, settings.fit_steps, budget, settings.fineness, say)
            _collect(results, "fits", rows, settings.output)
        results["complete"] = True
    except KeyboardInterrupt:
        say("interrupted: writing what was found so far")
    finally:
        signal.signal(signal.SIGTERM, before)
    write_json(results, settings.output)
    return results


def _facts(settings: Settings, part: Part) -> dict[str, Any]:
    names = {
        "weak": ("scale", "batch_per_device", "seq"),
        "fits": ("scale", "memory_gib", "fineness"),
        "plan": ("scale",),
    }
    return {name: getattr(settings, name) for name in names[part]}


def _collect(results: dict[str, Any], part: Part, rows: Any, directory: Path) -> None:
    identity = lambda row: [row.get(name) for name in ("key", "layout", "devices", "axis")]
    for row in rows:
        results[part] = [*(old for old in results[part] if identity(old) != identity(row)), row]
        write_json(results, directory)


def write_json(results: dict[str, Any], directory: Path) -> None:
    """Write scale.json."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "scale.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def sections(results: dict[str, Any]) -> dict[str, list[tuple[str, list[str], list[list[str]]]]]:
    """The tables of each part, with a line above each."""
    found: dict[str, list[tuple[str, list[str], list[list[str]]]]] = {}
    shrunk = lambda part: " Shrunk shapes: these numbers mean nothing." * (facts(part)["scale"] == "tiny")
    facts = lambda part: results["settings"][part]
    if results["weak"]:
        names = {"data": "Parameters on every device", "fsdp": "Parameters cut over the devices"}
        size = f"{facts('weak')['batch_per_device']} examples of {facts('weak')['seq']} tokens on each device"
        found["weak"] = [
            (f"{names[layout]}; {size}.{shrunk('weak')}", head, body)
            for layout, head, body in report.weak_tables(results["weak"])
        ]
    if results["fits"]:
        titles = list(dict.fromkeys(row["title"] for row in results["fits"]))
        what = " and of ".join(", ".join(p for p in t.split(", ") if p[:2] not in ("B=", "T=")) for t in titles)
        budget = "1 MiB" if facts("fits")["scale"] == "tiny" else f"{facts('fits')['memory_gib']:g} GiB"
        found["fits"] = [(f"{budget}; a {what}.{shrunk('fits')}", *report.fit_table(results["fits"]))]
    if results["plan"]:
        plan = results["plan"]
        line = f"{plan['title']} on {plan['cluster']['devices']} devices, {plan['tokens']:,} tokens in a step."
        memory, work = report.plan_tables(plan)
        found["plan"] = [
            (line + shrunk("plan"), *memory),
            ("Operations and bytes sent are those of one device.", *work),
        ]
    return found


def publish(results: dict[str, Any], settings: Settings, console: Console) -> None:
    """Print the tables, draw the picture, and fill the document if one was named."""
    found = sections(results)
    for part in found.values():
        for line, head, body in part:
            table = Table(title=line, title_justify="left")
            for number, name in enumerate(head):
                table.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
            for row in body:
                table.add_row(*row)
            console.print(table)
    settings.output.mkdir(parents=True, exist_ok=True)
    drawn = report.plot(results, settings.output / "scale.png")
    if settings.docs is None:
        return
    where = tables.machine_line(results["machine"])
    fills = {
        name: "\n\n".join([f"{line}\n\n{report.markdown(head, body)}" for line, head, body in part] + [f"{where}."])
        for name, part in found.items()
    }
    if drawn:
        copy = settings.docs.parent / "scale.png"
        if copy.resolve() != (settings.output / "scale.png").resolve():
            shutil.copyfile(settings.output / "scale.png", copy)
        fills["scale"] = "![bytes sent, operations and what fits](scale.png)"
    filled = tables.fill_places(settings.docs, fills)
    console.print(f"filled in {settings.docs}: {', '.join(filled) or 'nothing'}", highlight=False)


def main(arguments: list[str] | None = None) -> int:
    """The command; 130 if it was interrupted."""
    settings = tyro.cli(Settings, args=arguments, prog="scale")
    console = Console() if Console().is_terminal else Console(width=200)
    if settings.from_json is not None:
        results = json.loads(settings.from_json.read_text(encoding="utf-8"))
    else:
        results = measure(settings, console)
    publish(results, settings, console)
    return 0 if results["complete"] or settings.from_json is not None else 130


if __name__ == "__main__":
    sys.exit(main())
