r"""Exponential moments of a sum of privacy losses, and the bounds that they give without a transform.

With $K(\theta) = \sum_i T_i \log \sum_x p_i(x) e^{\theta x}$, delta is at most $\iota + e^{K - \theta \epsilon + h}$
for every theta (see `jaxdp.accounting._fourier`). Everything is a sum of positive numbers and rounded up.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import optimize

from jaxdp.accounting._step_loss import ROUNDOFF, Losses, coarser

# So many of many different steps are looked at to choose theta and windows.
_SAMPLE = 32

# Exponents of masses below this share (in logarithms) of a sum do not matter to it.
_NEGLIGIBLE = 60.0


class Moments:
    """The moments of losses, each taken as often as its count says."""

    def __init__(self, steps: Sequence[tuple[Losses, int]], interval: float):
        self.steps, self.interval = steps, interval
        self.counts = np.array([float(count) for _, count in steps])
        self.sizes = np.array([len(losses.places) for losses, _ in steps])
        self.starts = np.append(0, np.cumsum(self.sizes)[:-1])
        self.x = np.concatenate([losses.places for losses, _ in steps]) * interval
        with np.errstate(divide="ignore"):
            self._log_masses = np.log(np.concatenate([losses.masses for losses, _ in steps]))
        infinite = np.array([losses.infinite for losses, _ in steps])
        excess = np.array([max(0.0, losses.masses.sum() + losses.infinite - 1) for losses, _ in steps])
        with np.errstate(divide="ignore", over="ignore"):
            lost = -np.expm1(np.sum(self.counts * np.log1p(-np.minimum(infinite, 1.0))))
            # Masses that sum to more than one count as often as they are used.
            self.infinite = float(min(1.0, lost * np.exp(self.counts @ excess) * (1 + 1e-9)))

    def log_each(self, theta: float) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of M of every step, rounded up, and the exponents that it sums."""
        exponents = self._log_masses + theta * self.x
        largest = np.maximum.reduceat(exponents, self.starts)
        sums = np.add.reduceat(np.exp(exponents - np.repeat(largest, self.sizes)), self.starts)
        found = largest + np.log(sums)
        # What theta x can be where the exponent matters: logarithms of masses are above -745.
        span = np.maximum.reduceat(np.abs(theta * self.x), self.starts)
        span = np.minimum(span, np.abs(largest) + 745 + _NEGLIGIBLE)
        return found + (self.sizes + 64 + 4 * span + 2 * np.abs(found)) * ROUNDOFF, exponents

    def log(self, theta: float) -> float:
        """K, rounded up."""
        with np.errstate(over="ignore", invalid="ignore"):
            each = self.log_each(theta)[0]
            found = float(self.counts @ each) + self.rounding(each)
        return math.inf if math.isnan(found) else found

    def rounding(self, each: np.ndarray) -> float:
        """How far K can be from the sum of these logarithms."""
        return (16 + len(each)) * ROUNDOFF * float(self.counts @ np.abs(each))

    def log_delta(self, theta: float) -> float:
        """Logarithm of the bound on delta at epsilon 0."""
        return self.log(theta) + log_largest_weight(theta)

    def best_epsilon(self, delta: float) -> tuple[float, float]:
        """Theta and the epsilon that its moments give for a delta."""
        if not delta > self.infinite:
            return 1.0, math.inf
        left = math.log(delta - self.infinite)
        theta, epsilon = self._best(lambda some, theta: (some.log_delta(theta) - left) / theta, -left)
        return theta, max(0.0, epsilon * (1 + 1e-12) + 8 * ROUNDOFF * abs(left) / theta)

    def best_delta(self, epsilon: float) -> tuple[float, float, float]:
        """Theta, the logarithm of what its moments give for delta, and delta with infinite losses."""
        theta, found = self._best(lambda some, theta: some.log_delta(theta) - theta * epsilon, 20.0)
        found = found + 8 * ROUNDOFF * theta * epsilon
        return theta, found, min(1.0, self.infinite + math.exp(min(found, 0.0)) * (1 + 1e-9))

    def _best(self, bound: Callable[["Moments", float], float], log_inverse: float) -> tuple[float, float]:
        """Theta with the smallest bound: on a grid about where it is for normal losses, then between its points."""
        # Any theta will do; where there are many different steps, some of them show where it is best.
        some = self.sample
        guess = math.log(math.sqrt(2 * max(log_inverse, 1.0)) / some._deviation())
        grid = guess + np.linspace(-16.0, 6.0, 23)
        with np.errstate(over="ignore", invalid="ignore"):
            values = [bound(some, math.exp(log_theta)) for log_theta in grid]
            at = int(np.argmin([math.inf if math.isnan(value) else value for value in values]))
            low, high = grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)]
            found: Any = optimize.minimize_scalar(
                lambda log_theta: bound(some, math.exp(log_theta)),
                bounds=(low, high),
                method="bounded",
                options={"xatol": 0.01, "maxiter": 12},
            )
            theta = math.exp(float(found.x if found.fun <= values[at] else grid[at]))
            return theta, bound(self, theta)

    @functools.cached_property
    def sample(self) -> "Moments":
        """Every so many steps of many different ones, by how much they lose, each for its neighbours."""
        if len(self.steps) <= 2 * _SAMPLE:
            return self
        order = np.argsort(self.counts * self._squares())
        parts = np.array_split(order, _SAMPLE)
        steps = [(self.steps[part[len(part) // 2]][0], int(self.counts[part].sum())) for part in parts]
        return Moments(steps, self.interval)

    def _squares(self) -> np.ndarray:
        """Mean square loss of each step."""
        return np.add.reduceat(np.exp(self._log_masses) * self.x**2, self.starts)

    def _deviation(self) -> float:
        """Root mean square of the sum, about."""
        found = math.sqrt(float(self.counts @ self._squares()))
        return found if 0 < found < math.inf else self.interval

    def coarser(self, factor: int) -> "Moments":
        """Those of losses on multiples of so many intervals, which dominate these."""
        steps = [(coarser(losses, self.interval, factor), count) for losses, count in self.steps]
        return Moments(steps, factor * self.interval)


def log_largest_weight(theta: float) -> float:
    """h: the logarithm of the largest (1 - e^-y) e^(-theta y)."""
    # Written so that nothing cancels: log(theta / (1 + theta)) * theta - log(1 + theta).
    return -theta * math.log1p(1 / theta) - math.log1p(theta)


def cut(losses: Losses, budget: float) -> Losses:
    """Losses whose largest, of at most this mass together, are infinite."""
    tails = np.cumsum(losses.masses[::-1])
    dropped = min(int(np.searchsorted(tails, budget * (1 - 1e-9), side="right")), len(tails) - 1)
    if dropped == 0:
        return losses
    size = len(tails) - dropped
    infinite = losses.infinite + float(tails[dropped - 1]) * (1 + 1e-9)
    return Losses(losses.places[:size], losses.masses[:size], infinite)
