"""The tables and the picture of `benchmarks/scale.py`."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.scaling.collectives import KINDS
from benchmarks.scaling.steps import LABELS

GIB, MIB = 2**30, 2**20
_COLOURS = {
    "plain": "#777777",
    "tapped": "#aaaaaa",
    "ghost": "#1f5fa8",
    "ghost-unplaced": "#8fb3d9",
    "fused": "#7a3fa0",
    "bookkeeping": "#2a8f5b",
    "randomised": "#c98a1b",
    "grape": "#3fa0a0",
    "jax_privacy": "#b3331f",
    "jax_privacy-1": "#d98f7f",
}


def weak_tables(rows: list[dict[str, Any]]) -> list[tuple[str, list[str], list[list[str]]]]:
    """A table for each layout: bytes sent by kind, operations and memory of one device."""
    tables = []
    for layout in dict.fromkeys(row["layout"] for row in rows if row["devices"] > 1):
        found = [row for row in rows if row["devices"] == 1 or row["layout"] == layout]
        kinds = [k for k in KINDS if any(k in row.get("collectives", {}) for row in found)]
        head = ["step", "devices", *(f"{kind}, MiB" for kind in kinds), "sent, MiB", "of non-private"]
        head += ["GFLOP", "of one device", "memory, MiB"]
        body = []
        for row in sorted(found, key=lambda row: (list(LABELS).index(row["key"]), row["devices"])):
            if "note" in row:
                body.append([LABELS[row["key"]], str(row["devices"]), row["note"], *[""] * (len(head) - 3)])
                continue
            plain = next((r for r in found if r["key"] == "plain" and r["devices"] == row["devices"]), None)
            alone = next((r for r in rows if r["key"] == row["key"] and r["devices"] == 1 and "flops" in r), None)
            by_kind = [row["collectives"].get(kind, {"sent": 0.0})["sent"] / MIB for kind in kinds]
            sent = f"{row['sent'] / plain['sent']:.2f}" if plain and plain.get("sent") else ""
            body.append(
                [
                    LABELS[row["key"]],
                    str(row["devices"]),
                    *(f"{x:,.1f}" for x in by_kind),
                    f"{row['sent'] / MIB:,.1f}",
                    sent,
                    f"{row['flops'] / 1e9:,.1f}",
                    f"{row['flops'] / alone['flops']:.2f}" if alone else "",
                    f"{row['memory']['total'] / MIB:,.0f}",
                ]
            )
        tables.append((layout, head, body))
    return tables


def fit_table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The largest batch and the longest sequence, also as multiples of the better non-private step."""
    base = {
        axis: max(row.get("largest", 0) for row in rows if row["axis"] == axis and row["key"] in ("plain", "tapped"))
        for axis in dict.fromkeys(row["axis"] for row in rows)
    }
    head = ["step"]
    for axis in base:
        head += [{"batch": "largest batch", "seq": "longest sequence"}[axis], "of non-private"]
    body = []
    for key in dict.fromkeys(row["key"] for row in rows):
        line = [LABELS[key]]
        for axis, reference in base.items():
            row = next((r for r in rows if r["axis"] == axis and r["key"] == key), {})
            if "largest" in row:
                more = "at least " * row["limited"]
                line += [f"{more}{row['largest']:,}", f"{row['largest'] / reference:.2f}" if reference else ""]
            else:
                line += [row.get("note", ""), ""]
        body.append(line)
    return head, body


def plan_tables(plan: dict[str, Any]) -> list[tuple[list[str], list[list[str]]]]:
    """Memory of one device by what takes it, and operations, bytes sent and time of a step."""
    parts = list(dict.fromkeys(name for row in plan["rows"] for name in row["memory"]))
    memory = [
        [name, *(f"{row['memory'][name] / GIB:,.2f}" if name in row["memory"] else "" for row in plan["rows"])]
        for name in parts
    ]
    memory.append(["all, GiB", *(f"{row['total'] / GIB:,.1f}" for row in plan["rows"])])
    limit = plan["cluster"]["memory_gib"]
    memory.append([f"fits {limit:g} GiB", *("yes" if row["fits"] else "no" for row in plan["rows"])])
    head = ["step", "model, PFLOP", "sums, PFLOP", "norms, PFLOP", "estimates, PFLOP", "sent, GB", "step, s"]
    head += ["of non-private", "nothing hidden"]
    work = [
        [
            row["label"],
            *(f"{row['work'][name] / 1e15:.3f}" for name in ("model", "sums", "norms", "estimates")),
            f"{row['work']['sent'] / 1e9:,.1f}",
            f"{row['seconds'][0]:.2f}",
            f"{row['ratio'][0]:.2f}",
            f"{row['ratio'][1]:.2f}",
        ]
        for row in plan["rows"]
    ]
    return [(["GiB of one device", *(row["label"] for row in plan["rows"])], memory), (head, work)]


def markdown(head: list[str], body: list[list[str]]) -> str:
    """A Markdown table; numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plot(results: dict[str, Any], path: Path) -> bool:
    """Bytes sent and operations against devices, and what fits; False if there is nothing to draw."""
    rows = [row for row in results["weak"] if "sent" in row]
    layouts = list(dict.fromkeys(row["layout"] for row in rows if row["devices"] > 1))
    fits = [row for row in results["fits"] if "largest" in row]
    panels = len(layouts) * 2 + len({row["axis"] for row in fits})
    if not panels:
        return False
    columns = min(panels, 3)
    lines = -(-panels // columns)
    shape = {"figsize": (4.6 * columns, 3.7 * lines), "dpi": 120, "layout": "constrained", "squeeze": False}
    figure, grid = plt.subplots(lines, columns, **shape)  # pyright: ignore[reportArgumentType]
    places = iter(grid.ravel())
    for layout in layouts:
        mine = [row for row in rows if row["layout"] == layout or row["devices"] == 1]
        _lines(next(places), mine, lambda row: row["sent"] / MIB, f"{layout}: MiB sent by a device")
        _lines(next(places), mine, lambda row: row["flops"] / 1e9, f"{layout}: GFLOP of a device")
    for axis in dict.fromkeys(row["axis"] for row in fits):
        axes, mine = next(places), [row for row in fits if row["axis"] == axis][::-1]
        axes.barh(
            [LABELS[r["key"]] for r in mine], [r["largest"] for r in mine], color=[_COLOURS[r["key"]] for r in mine]
        )
        axes.tick_params(axis="y", labelsize=7)
        axes.set_title({"batch": "largest batch", "seq": "longest sequence"}[axis], fontsize=10)
    for axes in places:
        axes.set_visible(False)
    figure.savefig(path)
    plt.close(figure)
    return True


def _lines(axes: Axes, rows: list[dict[str, Any]], value: Any, title: str) -> None:
    for key in dict.fromkeys(row["key"] for row in rows):
        points = sorted((row["devices"], value(row)) for row in rows if row["key"] == key)
        axes.plot(*zip(*points, strict=True), marker="o", ms=4, color=_COLOURS[key], label=LABELS[key])
    axes.set_xscale("log", base=2)
    devices = sorted({row["devices"] for row in rows})
    axes.set_xticks(devices, [str(n) for n in devices])
    axes.set_yscale("symlog", linthresh=0.1)
    axes.set_xlabel("devices")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=6)
