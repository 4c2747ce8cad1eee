r"""Composition of privacy losses by tilted Fourier transforms, with a bound on its own rounding error.

The loss of a run is the sum of its steps' losses. Step i, taken $T_i$ times, has masses $p_i(x)$ on a common grid.
With $\gamma(y) = (1 - e^{-y})_+$ the run is $(\epsilon, \delta)$-DP for

$$\delta = \iota + \sum_x p(x)\, \gamma(x - \epsilon), \qquad p = p_1^{*T_1} * p_2^{*T_2} * \cdots,$$

where $\iota \le 1 - \prod_i (1 - \iota_i)^{T_i}$ is the mass of infinite losses.

**Tilting.** Let $M_i(\theta) = \sum_x p_i(x) e^{\theta x}$, $K = \sum_i T_i \log M_i$ and $z$ the distribution of the
sum of losses drawn from $p_i(x) e^{\theta x} / M_i$. Then exactly, for every $\theta > 0$,

$$\sum_x p(x) \gamma(x - \epsilon) = e^{K - \theta \epsilon} \sum_x z(x)\, w(x - \epsilon), \qquad
w(y) = \gamma(y) e^{-\theta y}.$$

A plain Fourier transform has errors of the unit roundoff u relative to the *largest* mass, so small deltas drown in it.
Here they are relative to $e^{K - \theta \epsilon}$, the Chernoff bound on delta, for the best theta not far above delta
itself.

**Moments.** As $w \le e^{h}$ with $h(\theta) = \theta \log \theta - (1 + \theta) \log(1 + \theta)$, $\delta \le \iota +
e^{K - \theta \epsilon + h}$: the Rényi bound of the distribution, which needs no transform. It gives theta, and is the
answer where the error below is too large.

**The error of z.** All transforms have length $N = 2^t$ (or $3 \cdot 2^{t'}$, $5 \cdot 2^{t'}$).

1. *Forward.* By Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., theorem 24.2, the computed transform
   of y differs by at most $\tau \|Fy\|_2$, $\tau = t \eta / (1 - t \eta)$, $\eta \approx 7u$. For real input and
   mixed radices the doubled value is used (Brisebarre et al. 2020, https://doi.org/10.1145/3368619, find less). By
   Parseval $\|F y\|_2 = \sqrt N \|y\|_2$. A step with rare large losses is nearly one atom; the few largest masses are
   therefore transformed in closed form, the largest at place zero, with an error of 16u at every frequency.
2. *Powers.* Masses that sum to at most one have transforms in the unit disc; what rounding put outside is moved back
   to it, which brings it nearer to the truth. In the disc, products of factors with errors $e_i$ differ by at most
   $\sum_i T_i |e_i|$. So the product differs in the 2-norm by at most $\tau \sqrt N \sum_i T_i \|p_i\|_2$. Repeated
   squaring makes rounding errors as of $\sum T_i$ products, each at most $\sqrt 5 u$ relatively (Brent et al. 2007).
3. *Backward.* The inverse divides 2-norms by $\sqrt N$ and has an error of its own, $\tau \|z\|_2$. Negative masses are
   raised to zero, which brings them nearer to the truth.

   Together: $\|\hat z - z\|_2 \le \tau (\sum_i T_i \|p_i\|_2 + \|z\|_2) + 3u (\sum_i T_i) \|z\|_2$. By
   Cauchy-Schwarz delta is off by at most $e^{K - \theta\epsilon} \|w\|_2$ times that, where $\|w\|_2^2 \le \int w^2 /
   \Delta + \max w^2$ for a grid of spacing $\Delta$, $\int w^2 = 1 / (\theta (2\theta+1) (2\theta+2))$.
4. *Tilting.* Exponents are rounded: each tilted mass is off by $(|\theta x| + |\log (p / M)| + 16) u$ relatively, which
   changes z by at most the $T_i$-weighted sum of it in the 1-norm, and delta by at most $e^{K - \theta\epsilon + h}$
   times that. $M_i$ may be any number: what was used to divide is what K is made of. It is rounded up, so that masses
   sum to at most one.
5. *Circularity.* Sums outside the window wrap around. Where they are counted, they only add. Those above its end b are
   missed at worst: their probability, at most $e^{K(\theta') - \theta' b}$ for every $\theta' > 0$, is added.

Everything is added to delta. The sums over z are of positive numbers, with a relative error of N u.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import optimize

from jaxdp.accounting._step_loss import ROUNDOFF, Losses, coarser

# Longest transform: 32 MB for each array of double precision.
LARGEST_TRANSFORM = 2**21

# Share of delta for losses of single steps that count as infinite: the first, and more where rounding is too large.
_CUT_SHARES = (1e-6, 1e-4, 1e-2, 1e-1)

# Share of delta for sums beyond the window; probability (tilted) of sums that wrap around.
_TAIL_SHARE, _WRAPPED = 1e-5, math.exp(-15.0)

# Masses larger than this, at most so many, are transformed by themselves, if the 2-norm of the rest is so much smaller.
_ATOM, _MOST_ATOMS, _WORTHWHILE = 0.02, 3, 0.1

# Above this share of delta the rounding error is worth another, better theta.
_LARGE_ERROR = 1e-3

# Products of transforms below this are left out, which is counted as an error.
_DROPPED = 1e-35

# So many of many different steps are looked at to choose theta and windows.
_SAMPLE = 32

# With more steps rounding errors are no longer small.
_MOST_STEPS = 1e13

# Weights farther from the answer than this (in logarithms) do not matter and would overflow.
_FARTHEST = 600.0


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
            epsilon, rounding = self._cut(share * delta).epsilon(delta)
            found = min(found, epsilon)
            # With fewer large losses the moments, and so the rounding error, are smaller.
            if rounding <= _LARGE_ERROR * delta:
                break
        return found

    def epsilon_by_moments(self, delta: float) -> float:
        """The same without a transform, larger."""
        return self._cut(_CUT_SHARES[0] * delta).by_moments(delta)[1]

    def delta(self, epsilon: float) -> float:
        """An upper bound on delta for an epsilon."""
        found = 1.0
        # What may be cut off follows from delta itself: first by moments, which cost little.
        for bound in (_Kept.delta_by_moments, _Kept.delta):
            for _ in range(30):
                before, found = found, min(found, bound(self._cut(_CUT_SHARES[0] * found), epsilon))
                if found > 0.01 * before:
                    break
        return found

    def _cut(self, budget: float) -> "_Kept":
        """The sum without losses of this probability; the last one again if it was made for almost the same."""
        # A power of four, so that deltas that differ little share their sums.
        budget = 4.0 ** math.floor(math.log(max(budget, 1e-300), 4))
        if self._kept is None or budget != self._budget:
            with np.errstate(over="ignore"):
                each = budget / sum(float(count) for _, count in self._steps)
            self._kept = _Kept([(_cut(losses, each), count) for losses, count in self._steps], self._interval)
            self._budget = budget
        return self._kept


def _cut(losses: Losses, budget: float) -> Losses:
    """Losses whose largest, of at most this mass together, are infinite."""
    tails = np.cumsum(losses.masses[::-1])
    dropped = min(int(np.searchsorted(tails, budget * (1 - 1e-9), side="right")), len(tails) - 1)
    if dropped == 0:
        return losses
    size = len(tails) - dropped
    infinite = losses.infinite + float(tails[dropped - 1]) * (1 + 1e-9)
    return Losses(losses.places[:size], losses.masses[:size], infinite)


class _Kept:
    """A sum of losses: bounds by moments and by a tilted transform."""

    def __init__(self, steps: Sequence[tuple[Losses, int]], interval: float):
        self._steps, self._interval = steps, interval
        self._counts = np.array([float(count) for _, count in steps])
        self._sizes = np.array([len(losses.places) for losses, _ in steps])
        self._starts = np.append(0, np.cumsum(self._sizes)[:-1])
        self._x = np.concatenate([losses.places for losses, _ in steps]) * interval
        with np.errstate(divide="ignore"):
            self._log_masses = np.log(np.concatenate([losses.masses for losses, _ in steps]))
        infinite = np.array([losses.infinite for losses, _ in steps])
        excess = np.array([max(0.0, losses.masses.sum() + losses.infinite - 1) for losses, _ in steps])
        with np.errstate(divide="ignore", over="ignore"):
            lost = -np.expm1(np.sum(self._counts * np.log1p(-np.minimum(infinite, 1.0))))
            # Masses that sum to more than one count as often as they are used.
            self.infinite = float(min(1.0, lost * np.exp(self._counts @ excess) * (1 + 1e-9)))
        self._tilted: _Tilted | None = None
        self._sampled: _Kept | None = None

    def by_moments(self, delta: float) -> tuple[float, float]:
        """Theta and the epsilon that its moments give for a delta."""
        if not delta > self.infinite:
            return 1.0, math.inf
        left = math.log(delta - self.infinite)
        theta, epsilon = self._best(lambda kept, theta: (kept._moments(theta) - left) / theta, -left)
        return theta, max(0.0, epsilon * (1 + 1e-12))

    def epsilon(self, delta: float) -> tuple[float, float]:
        """Smallest epsilon found for a delta, and what rounding had of delta."""
        theta, epsilon = self.by_moments(delta)
        if epsilon == 0.0 or math.isinf(epsilon):
            return epsilon, 0.0
        log_delta = math.log(delta - self.infinite)
        tilted = self._tilt(theta, epsilon, log_delta)
        found = min(epsilon, tilted.epsilon(delta))
        rounding = tilted.error(found)
        if rounding > _LARGE_ERROR * delta:
            # Theta was best for a larger epsilon, that of moments.
            theta, _ = self._best(lambda kept, theta: kept._moments(theta) - theta * found, 20.0)
            if abs(math.log(theta / tilted.theta)) > 0.02:
                tilted = _Tilted(self, theta, found, log_delta)
                found, rounding = min(found, tilted.epsilon(delta)), tilted.error(found)
        return found, rounding

    def delta_by_moments(self, epsilon: float) -> float:
        """The delta that moments give for an epsilon."""
        return self._best_delta(epsilon)[2]

    def delta(self, epsilon: float) -> float:
        """Smallest delta found for an epsilon."""
        theta, left, found = self._best_delta(epsilon)
        if self.infinite >= 1 or not left > -690:
            return found
        return min(found, self._tilt(theta, epsilon, min(left, 0.0)).delta(epsilon))

    def _best_delta(self, epsilon: float) -> tuple[float, float, float]:
        """Theta, the logarithm of what its moments give for delta, and delta with infinite losses."""
        theta, left = self._best(lambda kept, theta: kept._moments(theta) - theta * epsilon, 20.0)
        return theta, left, min(1.0, self.infinite + math.exp(min(left, 0.0)) * (1 + 1e-9))

    def _moments(self, theta: float) -> float:
        """Logarithm of the bound on delta at epsilon 0 that the moments of order theta give, rounded up."""
        return self.log_moments(theta) + _log_largest_weight(theta)

    def log_moments(self, theta: float) -> float:
        """K, rounded up."""
        with np.errstate(over="ignore", invalid="ignore"):
            found = float(self._counts @ self._log_each(theta)[0])
        return math.inf if math.isnan(found) else found

    def _log_each(self, theta: float) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of M of every step, rounded up, and the exponents they come from."""
        exponents = self._log_masses + theta * self._x
        largest = np.maximum.reduceat(exponents, self._starts)
        sums = np.add.reduceat(np.exp(exponents - np.repeat(largest, self._sizes)), self._starts)
        found = largest + np.log(sums)
        span = np.maximum.reduceat(np.abs(theta * self._x), self._starts)
        # Masses below e^-40 of the sum may have exponents that are off by more, and do not matter.
        return found + (self._sizes + 64 + 4 * np.minimum(span, 800)) * ROUNDOFF, exponents

    def _best(self, bound: Callable[["_Kept", float], float], log_inverse: float) -> tuple[float, float]:
        """Theta with the smallest bound: on a grid about where it is for normal losses, then between its points."""
        # Any theta will do; where there are many different steps, some of them show where it is best.
        kept = self._sample()
        guess = math.log(math.sqrt(2 * max(log_inverse, 1.0)) / kept.deviation())
        grid = guess + np.linspace(-16.0, 6.0, 23)
        with np.errstate(over="ignore", invalid="ignore"):
            values = [bound(kept, math.exp(log_theta)) for log_theta in grid]
            at = int(np.argmin([math.inf if math.isnan(value) else value for value in values]))
            low, high = grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)]
            found: Any = optimize.minimize_scalar(
                lambda log_theta: bound(kept, math.exp(log_theta)),
                bounds=(low, high),
                method="bounded",
                options={"xatol": 0.01, "maxiter": 12},
            )
            theta = math.exp(float(found.x if found.fun <= values[at] else grid[at]))
            return theta, bound(self, theta)

    def _sample(self) -> "_Kept":
        """Every so many steps of many different ones, by how much they lose, each for its neighbours."""
        if len(self._steps) <= 2 * _SAMPLE:
            return self
        if self._sampled is None:
            order = np.argsort(self._counts * np.add.reduceat(np.exp(self._log_masses) * self._x**2, self._starts))
            parts = np.array_split(order, _SAMPLE)
            steps = [(self._steps[part[len(part) // 2]][0], int(self._counts[part].sum())) for part in parts]
            self._sampled = _Kept(steps, self._interval)
        return self._sampled

    def deviation(self) -> float:
        """Root mean square of the sum, about."""
        with np.errstate(over="ignore"):
            second = np.add.reduceat(np.exp(self._log_masses) * self._x**2, self._starts)
            found = math.sqrt(float(self._counts @ second))
        return found if 0 < found < math.inf else self._interval

    def _tilt(self, theta: float, near: float, log_delta: float) -> "_Tilted":
        """The tilted sum; the last one again if it was made for almost the same."""
        last = self._tilted
        if last is None or abs(math.log(theta / last.theta)) > 0.1 or log_delta < last.log_delta - 3:
            self._tilted = last = _Tilted(self, theta, near, log_delta)
        return last


class _Tilted:
    """The tilted distribution of a sum on a window, and what is known of its error."""

    def __init__(self, whole: _Kept, theta: float, near: float, log_delta: float):
        self.theta, self.log_delta, self._infinite = theta, log_delta, whole.infinite
        counts, starts, sizes = whole._counts, whole._starts, whole._sizes
        log_each, exponents = whole._log_each(theta)
        self._useful = float(counts.sum()) < _MOST_STEPS
        if not self._useful:
            return
        tilted = np.exp(exponents - np.repeat(log_each, sizes))
        mean = np.add.reduceat(tilted * whole._x, starts)
        variance = float(counts @ np.add.reduceat(tilted * (whole._x - np.repeat(mean, sizes)) ** 2, starts))
        low, high = _window(whole, theta, math.sqrt(max(variance, 0.0)), log_delta)
        interval, factor = whole._interval, 1
        while (high - low) / (factor * interval) > LARGEST_TRANSFORM - 8:
            factor *= 2
        self._spacing = factor * interval
        # K is a sum of what was used to divide.
        self._log_scale = float(counts @ log_each)
        scale_error = 8 * ROUNDOFF * float(counts @ np.abs(log_each))
        size = _length((high - low) / self._spacing + 8)
        spectrum, offset, errors, tilting = np.ones(size // 2 + 1, dtype=np.complex128), 0, 0.0, 0.0
        for number, (losses, count) in enumerate(whole._steps):
            if factor > 1:
                losses = coarser(losses, interval, factor)
                with np.errstate(divide="ignore"):
                    exponent = np.log(losses.masses) + theta * (losses.places * self._spacing) - log_each[number]
                # Coarser losses have larger moments: M is adjusted to them.
                more = float(np.log(np.exp(np.minimum(exponent, 700.0)).sum())) + len(exponent) * ROUNDOFF
                more = max(more, 0.0) + 1e3 * ROUNDOFF
                self._log_scale += count * more
                exponent = exponent - more
            else:
                part = slice(starts[number], starts[number] + sizes[number])
                exponent = exponents[part] - log_each[number]
            masses = np.exp(exponent)
            span = np.abs(theta * losses.places * self._spacing)
            tilting += count * float(masses @ (span + np.abs(exponent) + 16).clip(0, 1e6)) * ROUNDOFF
            first = int(losses.places[int(np.argmax(masses))])
            transformed, error = _transform(losses.places - first, masses, size)
            errors += count * error
            offset += count * first
            _multiply(spectrum, _into_disc(transformed), count)
            errors += _DROPPED
        z = np.maximum(np.fft.irfft(spectrum, size), 0.0)
        norm = _norm(z)
        steps = float(counts.sum()) + len(counts)
        # Bounds in terms of computed norms, hence the little more.
        off = 1.01 * (errors + _transform_error(size) * 2 * norm + 3 * ROUNDOFF * steps * 2 * norm)
        largest = math.exp(_log_largest_weight(theta))
        square = 1 / (theta * (2 * theta + 1) * (2 * theta + 2)) / self._spacing + largest**2
        self._error = math.sqrt(square) * off + largest * tilting
        # Places of the window, in order.
        start = math.floor(low / self._spacing)
        self._places = np.arange(size, dtype=np.float64) + start
        self._z = np.roll(z, -((start - offset) % size))
        end = (start + size) * self._spacing
        self._beyond = math.exp(min(0.0, _log_tail(whole, theta, end))) + 0.0
        self._near = near
        self._log_scale += scale_error + 8 * ROUNDOFF * abs(theta * near)
        self._sum_up(size)

    def _sum_up(self, size: int) -> None:
        """Suffix sums of the masses above every place, for P and for the smaller side, relative to `near`."""
        kept = (self._near - self._places * self._spacing) * (1 + self.theta) < _FARTHEST
        self._places, z = self._places[kept], self._z[kept]
        distance = self._places * self._spacing - self._near
        masses = np.exp(-self.theta * distance) * z
        self._above = np.append(np.cumsum(masses[::-1])[::-1], 0.0)
        self._smaller = np.append(np.cumsum((np.exp(-distance) * masses)[::-1])[::-1], 0.0)
        self._distance = distance
        self._summing = 2 * (size + 1000) * ROUNDOFF
        self._z = self._z[:0]

    def _bound(self, epsilon, above, smaller):
        """Upper bound on delta where the masses above epsilon have these sums."""
        away = epsilon - self._near
        with np.errstate(over="ignore", invalid="ignore"):
            exact = np.maximum(above - np.exp(np.minimum(away, 700.0)) * smaller, 0.0) + self._summing * above
            scale = np.exp(self._log_scale - self.theta * self._near)
            error = np.exp(self._log_scale - self.theta * epsilon) * self._error
            return (scale * exact + error) * (1 + 1e-12) + self._beyond + self._infinite

    def epsilon(self, delta: float) -> float:
        """Smallest epsilon whose bound is below delta: the grid point, then within its interval."""
        if not self._useful:
            return math.inf
        x = self._distance + self._near
        enough = self._bound(x, self._above[1:], self._smaller[1:]) <= delta
        failing = np.flatnonzero(~enough)
        last = int(failing[-1]) if len(failing) else -1
        if last + 1 == len(x):
            return math.inf
        # Below the window the masses above it are the same.
        high = float(x[last + 1])
        low = float(x[last]) if last >= 0 else min(0.0, high)
        above, smaller = float(self._above[last + 1]), float(self._smaller[last + 1])
        for _ in range(60):
            middle = (low + high) / 2
            if self._bound(middle, above, smaller) <= delta:
                high = middle
            else:
                low = middle
        return max(0.0, high * (1 + 1e-14))

    def error(self, epsilon: float) -> float:
        """What rounding adds to delta."""
        if not self._useful:
            return math.inf
        return math.exp(min(self._log_scale - self.theta * epsilon, 700.0)) * self._error

    def delta(self, epsilon: float) -> float:
        """Bound on delta."""
        if not self._useful:
            return 1.0
        x = self._distance + self._near
        at = int(np.searchsorted(x, epsilon, side="right"))
        found = float(self._bound(epsilon, self._above[at], self._smaller[at]))
        return found if math.isfinite(found) else 1.0


def _log_largest_weight(theta: float) -> float:
    """h: the logarithm of the largest (1 - e^-y) e^(-theta y)."""
    # Written so that nothing cancels: log(theta / (1 + theta)) * theta - log(1 + theta).
    return -theta * math.log1p(1 / theta) - math.log1p(theta)


# Multiples of theta whose moments bound tails.
_FACTORS = (1.0, 1.2, 1.5, 2.0, 3.0, 6.0)


def _log_tail(whole: _Kept, theta: float, end: float) -> float:
    """Logarithm of a bound on the probability that the sum is at least `end`."""
    kept = whole._sample()
    with np.errstate(over="ignore", invalid="ignore"):
        best = min((kept.log_moments(f * theta) - f * theta * end, f) for f in _FACTORS)[1] * theta
        return whole.log_moments(best) - best * end


def _window(whole: _Kept, theta: float, deviation: float, log_delta: float) -> tuple[float, float]:
    """Where the tilted sum lies, up to tails that do not matter."""
    whole = whole._sample()
    log_tail = log_delta + math.log(_TAIL_SHARE)
    with np.errstate(over="ignore", invalid="ignore"):
        high = min((whole.log_moments(f * theta) - log_tail) / (f * theta) for f in _FACTORS)
        here = whole.log_moments(theta)
        deviation = max(deviation, whole._interval)
        steps = [f / deviation for f in (1.0, 3.0, 6.0, 9.0)] + [f * theta for f in (0.1, 0.3, 0.6)]
        wrapped = math.log(_WRAPPED)
        # Sums that wrap around only add, but must not add much.
        highs = [(whole.log_moments(theta + more) - here - wrapped) / more for more in steps]
        lows = [(wrapped + here - whole.log_moments(theta - less)) / less for less in steps]
    high = max(high, min([value for value in highs if math.isfinite(value)], default=high))
    low = max([value for value in lows if math.isfinite(value)], default=high - 1e3 * deviation)
    return min(low, high - 32 * whole._interval), high + 2 * whole._interval


def _length(points: float) -> int:
    """The shortest length, of few small factors, that holds so many points."""
    power = 2 ** max(4, math.ceil(math.log2(points)))
    return min(length for length in (power * 5 // 8, power * 3 // 4, power) if length >= points)


def _norm(values: np.ndarray) -> float:
    """The 2-norm."""
    return math.sqrt(float(np.add.reduce(np.square(values))))


def _transform_error(size: int) -> float:
    """tau: the error of a transform relative to the 2-norm, doubled."""
    return 2 * 7 * ROUNDOFF * math.log2(size) * 1.01


def _transform(places: np.ndarray, masses: np.ndarray, size: int) -> tuple[np.ndarray, float]:
    """The transform of masses and a bound on the 2-norm of its error, divided by the root of its length."""
    atoms = np.argpartition(masses, -min(_MOST_ATOMS, len(masses)))[-_MOST_ATOMS:]
    atoms = atoms[masses[atoms] > _ATOM]
    rest = masses.copy()
    rest[atoms] = 0.0
    if _norm(rest) > _WORTHWHILE * _norm(masses):
        rest, atoms = masses, atoms[:0]
    folded = np.bincount(places % size, rest, minlength=size)
    values = np.fft.rfft(folded)
    for atom in atoms:
        if places[atom] == 0:
            values += masses[atom]
            continue
        # Whole turns are left out before there is anything to round.
        turns = (np.arange(size // 2 + 1) * int(places[atom])) % size
        values += masses[atom] * np.exp(turns * (-2j * math.pi / size))
    # Masses of different places add up only where they wrap around.
    norm = _norm(rest if places.max() - places.min() < size else folded)
    return values, _transform_error(size) * norm + 16 * ROUNDOFF * len(atoms)


def _into_disc(values: np.ndarray) -> np.ndarray:
    """Values outside the unit disc moved to its edge."""
    outside = np.square(np.real(values)) + np.square(np.imag(values)) > 1.0
    values[outside] /= np.abs(values[outside])
    return values


def _multiply(spectrum: np.ndarray, values: np.ndarray, count: int) -> None:
    """Multiply by a power, in place; what becomes too small to matter is zero."""
    if count == 1:
        np.multiply(spectrum, values, out=spectrum)
        return
    with np.errstate(divide="ignore"):
        kept = np.flatnonzero((np.log(np.abs(values)) * float(count) > math.log(_DROPPED)) & (spectrum != 0))
    powers = _power(values[kept], count) * spectrum[kept]
    spectrum[:] = 0
    spectrum[kept] = powers


def _power(values: np.ndarray, count: int) -> np.ndarray:
    """Power by repeated squaring; what underflows is zero."""
    result = None
    with np.errstate(under="ignore"):
        while True:
            if count & 1:
                result = values.copy() if result is None else np.multiply(result, values, out=result)
            count >>= 1
            if not count:
                return values if result is None else result
            np.multiply(values, values, out=values)
