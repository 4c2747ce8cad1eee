"""The pictures of a report."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from jaxdp.training.tasks._task import Metric

# What tells our own plots from other pictures.
_MARK = {"Software": "jaxdp"}

_BLUE, _RED, _GREY = "#1f5fa8", "#b3331f", "#777777"


def plot_epsilon(
    curve: Sequence[tuple[int, float]],
    path: Path,
    *,
    delta: float,
    target: float | None,
    ends: Sequence[tuple[str, int]],
    reached: int | None = None,
) -> None:
    """Epsilon over steps.

    Args:
      curve: pairs (steps, epsilon).
      path: the PNG file.
      delta: of the guarantee.
      target: the budget, drawn as a line.
      ends: name and last step of each phase.
      reached: the step that an unfinished run has come to, drawn as a line.
    """
    figure, axes = _figure()
    steps, spent = zip(*curve, strict=True)
    # Between two points at most what the next one says is spent: a straight line would lie below that.
    axes.plot(steps, spent, color=_BLUE, linewidth=2, marker=".", drawstyle="steps-pre", label="spent at most")
    if reached is not None:
        axes.axvline(reached, color=_GREY, linestyle="--", linewidth=1.2, label=f"reached: step {reached}")
    if target is not None:
        axes.axhline(target, color=_RED, linestyle="--", linewidth=1.2, label=f"target epsilon {target:g}")
    # Infinite epsilons are off the axis; an axis needs a length even if nothing was spent.
    highest = max(value for value in (*spent, target or 0.0, 0.0) if math.isfinite(value))
    axes.set_ylim(0, highest * 1.15 or 1.0)
    _finish(figure, axes, f"Privacy spent (delta = {delta:g})", "epsilon", ends, path)


def plot_scores(
    lines: Sequence[dict[str, Any]], path: Path, metric: Metric, *, ends: Sequence[tuple[str, int]], guarantee: str
) -> None:
    """The run's metric over steps.

    Args:
      lines: the evaluations of `metrics.jsonl`.
      path: the PNG file.
      metric: what is drawn.
      ends: name and last step of each phase.
      guarantee: in words, for the title.
    """
    figure, axes = _figure()
    steps = [line["step"] for line in lines]
    values = [(100 if metric.percent else 1) * line[metric.name] for line in lines]
    axes.plot(steps, values, color=_BLUE, linewidth=2, marker="o", markersize=4, label=metric.words)
    if steps:
        axes.annotate(
            f"{values[-1]:.1f} %" if metric.percent else f"{values[-1]:.1f}",
            (steps[-1], values[-1]),
            textcoords="offset points",
            # Below the curve where there is no room above it.
            xytext=(-4, -14 if metric.percent and values[-1] > 95 else 8),
            ha="right",
            color=_BLUE,
        )
    axes.margins(y=0.2)
    if metric.percent:
        low, high = axes.get_ylim()
        axes.set_ylim(max(0.0, low), min(100.0, high))
    unit = " (%)" if metric.percent else ""
    _finish(figure, axes, f"Learning curve ({guarantee})", f"{metric.words}{unit}", ends, path)


def plot_denoising(lines: Sequence[dict[str, Any]], path: Path, *, ends: Sequence[tuple[str, int]]) -> None:
    """How far each denoised gradient stood out of the noise, and in how many directions.

    Args:
      lines: lines of `metrics.jsonl` with `denoise`.
      path: the PNG file.
      ends: name and last step of each phase.
    """
    figure, (above, below) = plt.subplots(2, 1, figsize=(7.2, 6.0), dpi=130, layout="constrained", sharex=True)
    names = list(dict.fromkeys(name for line in lines for name in line["denoise"]))
    colours = plt.get_cmap("viridis")
    for number, name in enumerate(names):
        seen = [(line["step"], *line["denoise"][name]) for line in lines if name in line["denoise"]]
        steps, ratios, ranks = zip(*seen, strict=True)
        # More names than this are no legend any more.
        style = {"label": name} if len(names) <= 8 else {"label": f"{len(names)} matrices" if number == 0 else None}
        style |= {"color": colours(number / max(1, len(names) - 1) * 0.9), "marker": "o", "markersize": 3}
        above.plot(steps, ratios, linewidth=1.2, **style)
        below.plot(steps, ranks, linewidth=1.2, **style)
    above.axhline(1.0, color=_RED, linestyle="--", linewidth=1.2, label="edge of the noise")
    above.set_ylabel("leading singular value / edge")
    above.grid(alpha=0.25)
    above.spines[["top", "right"]].set_visible(False)
    above.legend(loc="best", frameon=False, fontsize=8)
    above.set_title("Noisy gradients, before denoising")
    below.yaxis.get_major_locator().set_params(integer=True)
    _finish(figure, below, "", "singular values kept", ends, path, legend=False)


def plot_spectrum(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Singular values of one gradient before and after denoising, at the first and the last evaluation.

    Args:
      lines: lines of `metrics.jsonl` with `spectrum`.
      path: the PNG file.
    """
    shown = [lines[0]] if len(lines) == 1 else [lines[0], lines[-1]]
    figure, all_axes = plt.subplots(
        1, len(shown), figsize=(4.6 * len(shown), 4.0), dpi=130, layout="constrained", squeeze=False, sharey=True
    )
    for axes, line in zip(all_axes[0], shown, strict=True):
        spectrum = line["spectrum"]
        index = range(1, len(spectrum["before"]) + 1)
        axes.plot(index, spectrum["before"], color=_BLUE, linewidth=1.5, marker=".", label="noisy gradient")
        axes.plot(index, spectrum["after"], color=_RED, linestyle="--", linewidth=1.5, marker=".", label="denoised")
        axes.axhline(spectrum["edge"], color=_GREY, linestyle=":", linewidth=1.2, label="edge of the noise")
        axes.set_xscale("log")
        axes.set_title(f"{spectrum['parameter']}, step {line['step']}", fontsize=9)
        axes.set_xlabel("index of the singular value")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0][0].set_ylabel("singular value")
    # After the last curve: it ends the automatic scaling of all of them.
    all_axes[0][0].set_ylim(bottom=0)
    all_axes[0][0].legend(loc="best", frameon=False)
    figure.savefig(path, format="png", metadata=_MARK)
    plt.close(figure)


def _figure() -> tuple[Any, Axes]:
    return plt.subplots(figsize=(7.2, 4.0), dpi=130, layout="constrained")


def _finish(
    figure: Any,
    axes: Axes,
    title: str,
    ylabel: str,
    ends: Sequence[tuple[str, int]],
    path: Path,
    *,
    legend: bool = True,
) -> None:
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
    if legend:
        axes.legend(loc="best", frameon=False)
    figure.savefig(path, format="png", metadata=_MARK)
    plt.close(figure)


def is_ours(path: Path) -> bool:
    """Whether a file is a plot that was drawn here, which may be drawn again."""
    with path.open("rb") as file:
        begin = file.read(4096)
    return begin.startswith(b"\x89PNG") and b"Software\0jaxdp" in begin
