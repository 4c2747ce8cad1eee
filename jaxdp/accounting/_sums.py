"""Sums of privacy losses in one direction: the smallest epsilon and delta that moments and transforms give."""

import math
from collections.abc import Sequence

import numpy as np

from jaxdp.accounting._fourier import Tilted
from jaxdp.accounting._moments import Moments, cut
from jaxdp.accounting._step_loss import Losses

# Share of delta for losses of single steps that count as infinite: the first, and more where rounding is too large.
_CUT_SHARES = (1e-6, 1e-4, 1e-2, 1e-1)

# Above this share of delta the rounding error is worth another, better theta.
_LARGE_ERROR = 1e-3

# So many tries, where the first window was too high.
_MOST_TILTS = 6


def largest_epsilon(first: "Sum", second: "Sum", delta: float) -> float:
    """The larger epsilon of two sums; the second is transformed only where its moments leave it open."""
    epsilon = first.epsilon(delta)
    return epsilon if second.epsilon_by_moments(delta) <= epsilon else max(epsilon, second.epsilon(delta))


class Sum:
    """The sum of many losses in one direction, with losses cut off where they are too rare to matter."""

    def __init__(self, steps: Sequence[tuple[Losses, int]], interval: float):
        self._steps, self._interval = steps, interval
        self._budget, self._kept = -1.0, None

    def epsilon(self, delta: float) -> float:
        """An upper bound on epsilon for a delta."""
        found = math.inf
        for share in _CUT_SHARES:
            epsilon, rounding = self.without_rare(share * delta).epsilon(delta)
            better, found = epsilon < 0.999 * found, min(found, epsilon)
            # With fewer large losses the moments, and so the rounding error, are smaller.
            if rounding <= _LARGE_ERROR * delta or not better:
                break
        return found

    def epsilon_by_moments(self, delta: float) -> float:
        """The same without a transform, larger."""
        return self.without_rare(_CUT_SHARES[0] * delta).moments.best_epsilon(delta)[1]

    def delta(self, epsilon: float) -> float:
        """An upper bound on delta for an epsilon."""
        found = 1.0
        # What may be cut off follows from delta itself: first by moments, which cost little.
        for by_moments in (True, False):
            for _ in range(30):
                kept, before = self.without_rare(_CUT_SHARES[0] * found), found
                found = min(found, kept.moments.best_delta(epsilon)[2] if by_moments else kept.delta(epsilon))
                if found > 0.01 * before:
                    break
        return found

    def without_rare(self, budget: float) -> "Kept":
        """The sum without losses of this probability; the last one again if it was made for almost the same."""
        # A power of four, so that deltas that differ little share their sums.
        budget = 4.0 ** math.floor(math.log(max(budget, 1e-300), 4))
        if self._kept is None or budget != self._budget:
            with np.errstate(over="ignore"):
                each = budget / sum(float(count) for _, count in self._steps)
            self._kept = Kept([(cut(losses, each), count) for losses, count in self._steps], self._interval)
            self._budget = budget
        return self._kept


class Kept:
    """What is left of a sum."""

    def __init__(self, steps: Sequence[tuple[Losses, int]], interval: float):
        self.moments = Moments(steps, interval)
        self.tilted: Tilted | None = None

    def epsilon(self, delta: float) -> tuple[float, float]:
        """Smallest epsilon found for a delta, and what rounding had of delta."""
        theta, epsilon = self.moments.best_epsilon(delta)
        if epsilon == 0.0 or math.isinf(epsilon):
            return epsilon, 0.0
        log_delta = math.log(delta - self.moments.infinite)
        tilted = self._tilt(theta, epsilon, log_delta)
        found = min(epsilon, tilted.epsilon(delta))
        rounding = tilted.error(found)
        for _ in range(_MOST_TILTS):
            # Theta was best for a larger epsilon, that of moments.
            better = self.moments.best_delta(found)[0]
            if not tilted.is_lowest(found) and (
                rounding <= _LARGE_ERROR * delta or abs(math.log(better / tilted.theta)) < 0.02
            ):
                break
            tilted = Tilted(self.moments, better, found, log_delta)
            before, found = found, min(found, tilted.epsilon(delta))
            rounding = tilted.error(found)
            if found == 0 or found > 0.999 * before:
                break
        return found, rounding

    def delta(self, epsilon: float) -> float:
        """Smallest delta found for an epsilon."""
        theta, left, found = self.moments.best_delta(epsilon)
        if self.moments.infinite >= 1 or not left > -690:
            return found
        return min(found, self._tilt(theta, epsilon, min(left, 0.0)).delta(epsilon))

    def _tilt(self, theta: float, near: float, log_delta: float) -> Tilted:
        """The tilted sum; the last one again if it was made for almost the same."""
        last = self.tilted
        if last is None or not last.serves(theta, near, log_delta):
            self.tilted = last = Tilted(self.moments, theta, near, log_delta)
        return last
