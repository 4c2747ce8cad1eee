"""The two pictures: bars of ratios for every workload, and curves of memory."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator, ScalarFormatter

from benchmarks.tables import heading, machine_line, shown

_COLOURS = {
    "baseline": "#777777",
    "noised": "#aaaaaa",
    "jaxdp": "#1f5fa8",
    "jax_privacy": "#b3331f",
    "optax": "#c98a1b",
}
_LINES = {
    "plain": ("#777777", "--"),
    "ghost/all": ("#1f5fa8", "-"),
    "bookkeeping/all": ("#2a8f5b", "-"),
    "fused/layer": ("#7a3fa0", "-"),
    "materialize/all": ("#b3331f", "-"),
}


def plot_ratios(results: dict[str, Any], path: Path) -> bool:
    """Horizontal bars of time and temporary memory as ratios to the non-private step; False if there are none."""
    workloads = [w for w in results["workloads"] if any("ratios" in row for row in shown(w))]
    if not workloads:
        return False
    heights = [0.27 * sum("ratios" in row for row in shown(w)) + 0.7 for w in workloads]
    figure, grid = plt.subplots(
        len(workloads),
        2,
        figsize=(12.5, sum(heights) + 0.7),
        dpi=120,
        layout="constrained",
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )
    for (left, right), workload in zip(grid, workloads, strict=True):
        rows = [row for row in shown(workload) if "ratios" in row][::-1]
        _bars(left, rows, "time")
        _bars(right, rows, "temp")
        right.set_yticklabels([])
        left.set_title(heading(workload), loc="left", fontsize=10)
    grid[-1][0].set_xlabel("time of a step / non-private step")
    grid[-1][1].set_xlabel("temporary memory / non-private step")
    figure.suptitle(machine_line(results["machine"]), fontsize=8, color="#555555", x=0.01, ha="left")
    figure.savefig(path)
    plt.close(figure)
    return True


def _bars(axes: Axes, rows: list[dict[str, Any]], name: str) -> None:
    values = [row["ratios"].get(name) for row in rows]
    places = range(len(rows))
    known = [value for value in values if value]
    axes.set_xscale("log")
    low, high = min([*known, 1.0]), max([*known, 1.0])
    axes.set_xlim(low / 1.6, high * 1.9)
    # Bars of a logarithmic axis have no natural foot: they stand on 1, the non-private step.
    for place, row, value in zip(places, rows, values, strict=True):
        if value:
            axes.barh(place, value - 1.0, left=1.0, height=0.72, color=_COLOURS[row["family"]])
            end, side = (value, "left") if value >= 1 else (value, "right")
            axes.annotate(
                f"{value:.2f}",
                (end, place),
                xytext=(3 if side == "left" else -3, 0),
                textcoords="offset points",
                va="center",
                ha=side,
                fontsize=8,
            )
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(list(places), [row["label"] for row in rows], fontsize=8)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if low / 1.6 <= tick <= high * 1.9])
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def plot_curves(results: dict[str, Any], path: Path) -> bool:
    """Temporary memory against batch size and sequence length; False if there are no points."""
    panels = [panel for panel in results["curves"] if any(line["points"] for line in panel["lines"])]
    if not panels:
        return False
    figure, grid = plt.subplots(1, len(panels), figsize=(6.2 * len(panels), 4.4), dpi=120, layout="constrained")
    for axes, panel in zip([grid] if len(panels) == 1 else grid, panels, strict=True):
        ticks: set[int] = set()
        for line in panel["lines"]:
            if not line["points"]:
                continue
            points, sizes = zip(*line["points"], strict=True)
            ticks.update(points)
            colour, style = _LINES.get(line["key"], ("black", ":"))
            axes.plot(points, [s / 2**20 for s in sizes], style, color=colour, marker="o", ms=4, label=line["label"])
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
        axes.set_xlabel("batch size B" if panel["axis"] == "batch_size" else "sequence length T")
        axes.set_ylabel("temporary memory, MiB")
        # The axis that varies is not a fact of the panel.
        varies = {"batch_size": "B=", "seq": "T="}[panel["axis"]]
        kept = [part for part in panel["title"].split(", ") if not part.startswith(varies)]
        axes.set_title(", ".join(kept), fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)
    plt.close(figure)
    return True
