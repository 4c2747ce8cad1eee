"""Noise that clipping by estimated norms needs, beside the numbers of another script: the accountant's own check.

python benchmarks/randomized_noise.py --help
"""

import dataclasses
import json
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import dp_accounting
import tyro
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from jaxdp.accounting import RandomizedGaussianDpEvent, calibrate_noise_multiplier
from jaxdp.accounting._accountant import _cached_epsilon
from jaxdp.accounting._composition import _randomized_curves, _step_distribution
from jaxdp.accounting._inflation import inflation

EPSILONS = (8.0, 3.0)
GROUPS = 24
PLAN: dict[str, Any] = {"delta": 1e-5, "sampling_probability": 0.01, "num_steps": 2000}

# (probes, groups, sharing) -> noise multipliers at epsilon 8 and 3, by an independent script on the same plan.
REFERENCE: dict[tuple[int | None, int, str], tuple[float, float]] = {
    (None, 1, "batch"): (0.643, 0.930),
    (8, 1, "batch"): (1.829, 2.510),
    (8, 1, "example"): (1.257, 1.475),
    (16, 1, "batch"): (0.904, 1.284),
    (16, 1, "example"): (0.745, 1.050),
    (32, 1, "batch"): (0.729, 1.040),
    (32, 1, "example"): (0.696, 0.999),
    (64, 1, "batch"): (0.685, 0.984),
    (64, 1, "example"): (0.675, 0.973),
    (128, 1, "batch"): (0.668, 0.963),
    (128, 1, "example"): (0.664, 0.958),
    (8, GROUPS, "batch"): (0.794, 1.139),
    (16, GROUPS, "batch"): (0.719, 1.039),
    (32, GROUPS, "batch"): (0.689, 0.995),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Calibrate the noise multiplier for estimated norms at epsilon 8 and 3, delta 1e-5, q = 0.01, 2000 steps.

    Prints the noise multipliers, those of an independent script where it has one, the noise relative to exact norms
    and the time of each calibration (nothing kept from the one before), and writes them as JSON.
    """

    probes: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Numbers of probes, each at least 8."""
    output: Path = Path("runs/randomized_noise")
    """Where randomized_noise.json goes."""


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clipping that is described by its numbers only; no probes are exact norms."""

    probes: int | None
    groups: int
    sharing: Literal["batch", "example"]

    def dp_event(self, noise_multiplier: float) -> dp_accounting.DpEvent:
        if self.probes is None:
            return dp_accounting.GaussianDpEvent(noise_multiplier)
        shares = (1 / self.groups,) * self.groups
        return RandomizedGaussianDpEvent(noise_multiplier, self.probes, shares, self.sharing)


def cases(probes: tuple[int, ...]) -> Iterator[Clip]:
    """Exact norms, one group with either sharing, many groups."""
    yield Clip(None, 1, "batch")
    for number in probes:
        yield Clip(number, 1, "batch")
        yield Clip(number, 1, "example")
    for number in probes:
        yield Clip(number, GROUPS, "batch")


def measure(clip: Clip, epsilon: float) -> tuple[float, float]:
    """Noise multiplier and seconds of one calibration from nothing."""
    for kept in (inflation, _randomized_curves, _step_distribution, _cached_epsilon):
        kept.cache_clear()
    start = time.perf_counter()
    noise = calibrate_noise_multiplier(clip=clip, target_epsilon=epsilon, **PLAN)
    return noise, time.perf_counter() - start


def main(settings: Settings) -> None:
    console = Console()
    table = Table("probes", "groups", "sharing", "eps", "noise", "script", "off by", "/ exact", "seconds", box=SIMPLE)
    rows: list[dict[str, Any]] = []
    exact: dict[float, float] = {}
    # The price of few probes is what the table shows.
    warnings.filterwarnings("ignore", message=".* probes for a single clipping group")
    for clip in cases(settings.probes):
        references = REFERENCE.get((clip.probes, clip.groups, clip.sharing), (None, None))
        for epsilon, reference in zip(EPSILONS, references, strict=True):
            noise, seconds = measure(clip, epsilon)
            exact.setdefault(epsilon, noise)
            row = dataclasses.asdict(clip) | {"epsilon": epsilon, "noise_multiplier": noise, "seconds": seconds}
            rows.append(row | {"reference": reference, "relative_to_exact": noise / exact[epsilon]})
            table.add_row(
                "exact" if clip.probes is None else str(clip.probes),
                str(clip.groups),
                "" if clip.probes is None else clip.sharing,
                f"{epsilon:g}",
                f"{noise:.4f}",
                "" if reference is None else f"{reference:.3f}",
                "" if reference is None else f"{100 * (noise / reference - 1):+.2f}%",
                f"{noise / exact[epsilon]:.3f}",
                f"{seconds:.1f}",
            )
    console.print(table)
    settings.output.mkdir(parents=True, exist_ok=True)
    path = settings.output / "randomized_noise.json"
    path.write_text(json.dumps({"plan": PLAN, "machine": machine.facts("float64"), "rows": rows}, indent=1) + "\n")
    print(f"results: {path}")


if __name__ == "__main__":
    main(tyro.cli(Settings, config=(tyro.conf.AvoidSubcommands,)))
