"""The two pictures of a report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

_BLUE, _RED, _GREY = "#1f5fa8", "#b3331f", "#777777"


def plot_epsilon(
    curve: Sequence[tuple[int, float]],
    path: Path,
    *,
    delta: float,
    target: float | None,
    ends: Sequence[tuple[str, int]],
) -> None:
    """Epsilon over steps.

    Args:
      curve: pairs (steps, epsilon).
      path: the PNG file.
      delta: of the guarantee.
      target: the budget, drawn as a line.
      ends: name and last step of each phase.
    """
    figure, axes = _figure()
    steps, spent = zip(*curve, strict=True)
    axes.plot(steps, spent, color=_BLUE, linewidth=2, marker=".", label="spent")
    if target is not None:
        axes.axhline(target, color=_RED, linestyle="--", linewidth=1.2, label=f"target epsilon {target:g}")
    axes.set_ylim(0, max(*spent, target or 0.0) * 1.15)
    _finish(figure, axes, f"Privacy spent (delta = {delta:g})", "epsilon", ends, path)


def plot_accuracy(
    lines: Sequence[dict[str, Any]], path: Path, *, ends: Sequence[tuple[str, int]], guarantee: str
) -> None:
    """Held-out accuracy over steps.

    Args:
      lines: the evaluations of `metrics.jsonl`.
      path: the PNG file.
      ends: name and last step of each phase.
      guarantee: in words, for the title.
    """
    figure, axes = _figure()
    steps = [line["step"] for line in lines]
    percent = [100 * line["held_out_accuracy"] for line in lines]
    axes.plot(steps, percent, color=_BLUE, linewidth=2, marker="o", markersize=4, label="held-out accuracy")
    if steps:
        axes.annotate(
            f"{percent[-1]:.1f} %",
            (steps[-1], percent[-1]),
            textcoords="offset points",
            xytext=(-4, 8),
            ha="right",
            color=_BLUE,
        )
    axes.margins(y=0.2)
    _finish(figure, axes, f"Learning curve ({guarantee})", "held-out accuracy (%)", ends, path)


def _figure() -> tuple[Any, Axes]:
    return plt.subplots(figsize=(7.2, 4.0), dpi=130, layout="constrained")


def _finish(figure: Any, axes: Axes, title: str, ylabel: str, ends: Sequence[tuple[str, int]], path: Path) -> None:
    last = ends[-1][1] if ends else axes.get_xlim()[1]
    axes.set_xlim(0, last * 1.02)
    begin = 0
    if len(ends) > 1:
        for name, end in ends:
            if end != last:
                axes.axvline(end, color=_GREY, linestyle=":", linewidth=1)
            axes.annotate(
                name if name.startswith("phase") else f"phase {name}",
                ((begin + end) / 2, 0.02),
                xycoords=("data", "axes fraction"),
                ha="center",
                va="bottom",
                fontsize=9,
                color=_GREY,
            )
            begin = end
    axes.set_title(title)
    axes.set_xlabel("step (updates of the model)")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", frameon=False)
    figure.savefig(path)
    plt.close(figure)
