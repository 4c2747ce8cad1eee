"""Results as tables: on the terminal, and as Markdown between the marks of a document."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

HEADERS = (
    "step",
    "time, ms",
    "time",
    "time (n)",
    "temp, MiB",
    "temp",
    "temp (n)",
    "FLOPs",
    "compile, s",
    "compile",
    "compile (n)",
    "speed-up",
)
NOTES = (
    "Ratios are to the faster non-private step (marked *) of the same process; times are medians of interleaved runs.",
    "(n): to the faster non-private step that draws the same noise, which leaves the cost of clipping.",
    "temp: XLA's temporary allocation. FLOPs: matrix products and convolutions of the traced step, scan bodies times "
    "their length.",
    "speed-up: over jax_privacy's fastest microbatch size that needs no more temporary memory than the row.",
)


def cells(row: dict[str, Any], baseline: str | None) -> list[str]:
    """The row in the order of `HEADERS`; an empty cell was not measured."""
    ratios = row.get("ratios", {})

    def ratio(name: str) -> str:
        return "" if ratios.get(name) is None else f"{ratios[name]:.2f}"

    label = row["label"] + (" *" if row["key"] == baseline else "") + (" (fastest)" if row.get("fastest") else "")
    speedup = ratio("speedup_at_equal_memory")
    if "rival" in row:
        speedup = f"{speedup}x" if speedup else "none fits" if row["rival"] is None else ""
    return [
        label,
        f"{1e3 * row['seconds']['median']:,.1f}" if "seconds" in row else "",
        ratio("time"),
        ratio("time_noised"),
        f"{row['bytes']['temp'] / 2**20:,.1f}" if "bytes" in row else "",
        ratio("temp"),
        ratio("temp_noised"),
        ratio("flops"),
        f"{row['compile_seconds']:.1f}" if "compile_seconds" in row else "",
        ratio("compile"),
        ratio("compile_noised"),
        speedup,
    ]


def shown(workload: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table: microbatch sizes that were only screened stay in the JSON file."""
    return [row for row in workload["rows"] if row["status"] in ("measured", "compiled")]


def notes(workload: dict[str, Any]) -> list[str]:
    """What is missing, and why."""
    return [f"{row['label']}: {row['status']}, {row['note']}" for row in workload["rows"] if row.get("note")]


def terminal_table(workload: dict[str, Any]) -> Table:
    """One workload for rich."""
    table = Table(title=heading(workload), title_justify="left", caption_justify="left")
    for number, header in enumerate(HEADERS):
        table.add_column(header, justify="left" if number == 0 else "right", no_wrap=number == 0, overflow="fold")
    family = None
    for row in shown(workload):
        if family not in (None, row["family"]) and {family, row["family"]} != {"baseline", "noised"}:
            table.add_section()
        family = row["family"]
        style = "bold" if family == "jaxdp" else None
        table.add_row(*cells(row, workload["baseline"]), style=style)
    return table


def heading(workload: dict[str, Any]) -> str:
    """Name, model and number of parameters."""
    return f"{workload['name']}: {workload['title']}, {workload['parameters'] / 1e6:,.1f} M parameters"


def machine_line(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    where = f"{machine['cpu']}, {machine['cores']} core{'s' * (machine['cores'] != 1)}"
    if machine["platform"] != "cpu":
        where = f"{machine['devices']} x {machine['device_kind']} ({where})"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if name != "numpy")
    return f"{where}; {machine['dtype']}; {versions}"


def markdown(workload: dict[str, Any], machine: dict[str, Any], settings: dict[str, Any]) -> str:
    """One workload as a Markdown table with what it was measured on."""
    rounds = max((len(row["seconds"]["samples"]) for row in workload["rows"] if "seconds" in row), default=0)
    lines = [
        f"{heading(workload)}.",
        "",
        f"{machine_line(machine)}; {rounds} rounds.",
        *(["", "**Shrunk shapes (`--scale tiny`): these numbers mean nothing.**"] * (settings["scale"] == "tiny")),
        "",
        "| " + " | ".join(HEADERS) + " |",
        "|---" * len(HEADERS) + "|",
    ]
    lines += ["| " + " | ".join(cells(row, workload["baseline"])) + " |" for row in shown(workload)]
    missing = notes(workload)
    return "\n".join([*lines, *(["", *(f"* {note}" for note in missing)] if missing else [])])


def fill_document(path: Path, results: dict[str, Any], pictures: Sequence[tuple[str, str]]) -> list[str]:
    """Put each workload's table (and each picture) into its place; returns the names that were filled."""
    fills = {w["name"]: markdown(w, results["machine"], results["settings"]) for w in results["workloads"]}
    fills.update({name: f"![{name.replace('_', ' ')}]({file})" for name, file in pictures})
    return fill_places(path, fills)


def fill_places(path: Path, fills: dict[str, str]) -> list[str]:
    """Replace what stands between the marks of each name; returns the names that were filled.

    A mark is a pair of comments: `<!-- results NAME -->` and `<!-- end NAME -->`.
    """
    text = path.read_text(encoding="utf-8")
    filled = []
    for name, content in fills.items():
        mark = re.compile(rf"(<!-- results {re.escape(name)} -->\n).*?(<!-- end {re.escape(name)} -->)", re.DOTALL)
        text, count = mark.subn(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
        filled += [name] * bool(count)
    path.write_text(text, encoding="utf-8")
    return filled
