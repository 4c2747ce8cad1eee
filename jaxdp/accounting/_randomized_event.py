"""The event of a release whose clipping norms were estimated by random probes."""

import itertools
import math
import warnings
from collections.abc import Iterable
from typing import Literal

import attr
from dp_accounting import DpEvent

FEWEST_PROBES = 8
_COSTLY_PROBES = 16

# Noise multiplier relative to exact norms for one group, at epsilon 8, delta 1e-5, 2000 steps and sampling
# probability 0.01, by benchmarks/randomized_noise.py.
PRICES: dict[str, dict[int, float]] = {
    "batch": {8: 2.84, 9: 2.40, 10: 2.10, 11: 1.89, 12: 1.74, 13: 1.62, 14: 1.53, 15: 1.46, 16: 1.40},
    "example": {8: 1.95, 9: 1.66, 10: 1.46, 11: 1.34, 12: 1.26, 13: 1.22, 14: 1.19, 15: 1.17, 16: 1.16},
}


def _sorted_floats(shares: Iterable[float | int]) -> tuple[float, ...]:
    return tuple(sorted(map(float, shares), reverse=True))


def _shares_text(shares: tuple[float, ...]) -> str:
    """A Python expression of the same value, short where many shares are equal."""
    runs = [(share, len(list(run))) for share, run in itertools.groupby(shares)]
    return " + ".join(f"({share!r},)" + (f" * {count}" if count > 1 else "") for share, count in runs)


@attr.s(frozen=True, slots=True, auto_attribs=True)
class RandomizedGaussianDpEvent(DpEvent):
    r"""One release of a sum, clipped by *estimated* norms, plus Gaussian noise.

    With $k$ Gaussian probes the estimate of a norm can be too small, so that a record's contribution exceeds the
    clipping norm. It is at most $S \sqrt{\sum_m s_m \bar Z_m^2}$ in the stochastic order, where $S^2 = \sum_m R_m^2 /
    \gamma_m^2$ is the sensitivity that exact norms would give, $s_m = R_m^2 / (\gamma_m^2 S^2)$ is the share of group m
    and the $\bar Z_m = \max(1, \sqrt{k / \chi^2_k})$ are independent. That holds for every gradient, for groups of
    several layers, some of them exact, and with k the smallest number of probes in use.

    Its Rényi divergence is infinite at every order; `jaxdp.accounting` analyses it by privacy loss distributions,
    alone (full batches), in a `dp_accounting.PoissonSampledDpEvent` or in a `TruncatedPoissonDpEvent`.

    Attributes:
        noise_multiplier: standard deviation of the noise divided by $S$; at least 0.
        probes: $k$, at least 8: Gaussian, of float32, fresh in every step, independent between groups.
        shares: $s_m$ of the clipping groups, above 0, with sum 1; kept in descending order.
        sharing: `"batch"` if the examples of a batch share their probes, `"example"` if each has its own, which
            needs less noise. With several groups both are analysed as `"batch"`.

    Raises:
        ValueError: a field out of range.

    Example:
        >>> import dp_accounting
        >>> from jaxdp.accounting import epsilon_of
        >>> step = RandomizedGaussianDpEvent(noise_multiplier=0.7, probes=64)
        >>> run = dp_accounting.SelfComposedDpEvent(dp_accounting.PoissonSampledDpEvent(0.01, step), 2000)
        >>> round(epsilon_of(run, delta=1e-5), 1)
        7.5

    References:
        Ullah et al., Efficient DP-SGD for LLMs with Randomized Clipping, ICML 2026, https://arxiv.org/abs/2605.24879
    """

    noise_multiplier: float
    probes: int
    shares: tuple[float, ...] = attr.ib(default=(1.0,), converter=_sorted_floats, repr=_shares_text)
    sharing: Literal["batch", "example"] = "batch"

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.noise_multiplier < math.inf:
            raise ValueError(f"noise_multiplier must be at least 0 and finite, got {self.noise_multiplier}.")
        if not self.probes >= FEWEST_PROBES or self.probes != int(self.probes):
            raise ValueError(
                f"probes must be a whole number of at least {FEWEST_PROBES}, got {self.probes}: with fewer, estimates "
                "that are far too small are too frequent for any useful guarantee; use 64."
            )
        if not self.shares or not self.shares[-1] > 0 or not abs(math.fsum(self.shares) - 1) <= 1e-6:
            raise ValueError(
                f"shares must be above 0 and sum to 1, got {len(self.shares)} with sum {math.fsum(self.shares)}; "
                "divide each group's squared sensitivity by their sum."
            )
        if self.sharing not in ("batch", "example"):
            raise ValueError(f"sharing must be 'batch' or 'example', got {self.sharing!r}.")
        if self.probes <= _COSTLY_PROBES and len(self.shares) == 1:
            price = PRICES[self.sharing][self.probes]
            warnings.warn(
                f"{self.probes} probes for a single clipping group need {price:.2f} times the noise of exact norms (at "
                "epsilon 8, delta 1e-5, 2000 steps and sampling probability 0.01); use 64 probes, which need 1.06 "
                "times the noise, or clip in groups.",
                stacklevel=3,
            )

    @property
    def hidden(self) -> bool:
        """Whether the probes count as unknown to the observer."""
        return self.sharing == "example" and len(self.shares) == 1

    def analysis(self) -> str:
        """How the event is accounted for, in words."""
        groups = f"{len(self.shares)} clipping groups" if len(self.shares) > 1 else "one clipping group"
        owner = "shared by the batch" if self.sharing == "batch" else "of each example's own"
        pair = (
            "privacy loss of the Gaussian mixture in which the probes stay hidden"
            if self.hidden
            else "privacy loss as if the probes were published"
        )
        return (
            f"the norms of {groups} are estimated with {self.probes} Gaussian probes {owner}, so one contribution can "
            "exceed its clipping norm by a random factor, bounded for every gradient by a chi-squared law; "
            f"{pair} (no Rényi divergence is finite); the noise multiplier is relative to the sensitivity that exact "
            "norms would give"
        )
