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

import numpy as np

from jaxdp.accounting._moments import Moments, log_largest_weight
from jaxdp.accounting._step_loss import ROUNDOFF

# Longest transform: 32 MB for each array of complex numbers.
LARGEST_TRANSFORM = 2**21

# Share of delta for sums beyond the window; probability (tilted) of sums that wrap around.
_TAIL_SHARE, _WRAPPED = 1e-5, math.exp(-15.0)

# How far below the epsilon of moments, in units of 1/theta, the answer is looked for.
_BELOW = 25.0

# Multiples of theta whose moments bound tails.
_FACTORS = (1.0, 1.2, 1.5, 2.0, 3.0, 6.0)

# Masses larger than this, at most so many, are transformed by themselves, if the 2-norm of the rest is so much smaller.
_ATOM, _MOST_ATOMS, _WORTHWHILE = 0.02, 3, 0.1

# Products of transforms below this are left out, which is counted as an error.
_DROPPED = 1e-35

# With more steps rounding errors are no longer small.
_MOST_STEPS = 1e13

# Weights farther from the answer than this (in logarithms) do not matter and would overflow.
_FARTHEST = 600.0


class Tilted:
    """The tilted distribution of a sum on a window, and what is known of its error."""

    def __init__(self, whole: Moments, theta: float, near: float, log_delta: float):
        self.theta, self._near, self._log_delta, self._infinite = theta, near, log_delta, whole.infinite
        self.useful = float(whole.counts.sum()) < _MOST_STEPS
        if not self.useful:
            return
        low, high = _window(whole, theta, near, log_delta)
        factor = 1
        while (high - low) / (factor * whole.interval) > LARGEST_TRANSFORM - 8:
            factor *= 2
        if factor > 1:
            whole = whole.coarser(factor)
        size = _length((high - low) / whole.interval + 8)
        start = math.floor(low / whole.interval)
        log_each, exponents = whole.log_each(theta)
        z, self._error = _tilted_sum(whole, theta, start, size, log_each, exponents)
        # K is a sum of what was used to divide.
        self._log_scale = float(whole.counts @ log_each) + whole.rounding(log_each) + 8 * ROUNDOFF * abs(theta * near)
        self._beyond = math.exp(min(0.0, _log_tail(whole, theta, (start + size) * whole.interval)))
        self._sum_up((np.arange(size, dtype=np.float64) + start) * whole.interval, z)

    def _sum_up(self, x: np.ndarray, z: np.ndarray) -> None:
        """Suffix sums of the masses above every place, for P and for the smaller side, relative to `near`."""
        kept = (self._near - x) * (1 + self.theta) < _FARTHEST
        self._x, distance = x[kept], x[kept] - self._near
        masses = np.exp(-self.theta * distance) * z[kept]
        self._above = np.append(np.cumsum(masses[::-1])[::-1], 0.0)
        self._smaller = np.append(np.cumsum((np.exp(-distance) * masses)[::-1])[::-1], 0.0)
        self._summing = 2 * (len(x) + 1000) * ROUNDOFF

    def serves(self, theta: float, near: float, log_delta: float) -> bool:
        """Whether it does for what another would be made for."""
        if not self.useful:
            return True
        close = abs(math.log(theta / self.theta)) <= 0.1 and log_delta >= self._log_delta - 3
        return close and near >= float(self._x[0])

    def is_lowest(self, epsilon: float) -> bool:
        """Whether an epsilon is positive and as small as the window allows, so that another may find less."""
        return self.useful and 0 < epsilon <= float(self._x[0]) * (1 + 1e-9)

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
        if not self.useful:
            return math.inf
        failing = np.flatnonzero(~(self._bound(self._x, self._above[1:], self._smaller[1:]) <= delta))
        last = int(failing[-1]) if len(failing) else -1
        if last + 1 == len(self._x):
            return math.inf
        # Nothing is known of masses below the window.
        high = float(self._x[last + 1])
        low = float(self._x[max(last, 0)])
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
        if not self.useful:
            return math.inf
        return math.exp(min(self._log_scale - self.theta * epsilon, 700.0)) * self._error

    def delta(self, epsilon: float) -> float:
        """Bound on delta."""
        if not self.useful or epsilon < self._x[0]:
            return 1.0
        at = int(np.searchsorted(self._x, epsilon, side="right"))
        found = float(self._bound(epsilon, self._above[at], self._smaller[at]))
        return found if math.isfinite(found) else 1.0


def _tilted_sum(
    whole: Moments, theta: float, start: int, size: int, log_each: np.ndarray, exponents: np.ndarray
) -> tuple[np.ndarray, float]:
    """z at the places from `start` on, and what its error adds to delta, relative to e^(K - theta epsilon)."""
    spectrum, offset, errors, tilting = np.ones(size // 2 + 1, dtype=np.complex128), 0, 0.0, 0.0
    for number, (losses, count) in enumerate(whole.steps):
        part = slice(whole.starts[number], whole.starts[number] + whole.sizes[number])
        exponent = exponents[part] - log_each[number]
        masses = np.exp(exponent)
        terms = 3 * np.abs(theta * whole.x[part]) + 3 * np.abs(exponent) + abs(log_each[number]) + 16
        tilting += count * float(masses @ np.where(masses > 0, terms, 0.0)) * ROUNDOFF
        first = int(losses.places[int(np.argmax(masses))])
        transformed, error = transform(losses.places - first, masses, size)
        errors += count * error + _DROPPED
        offset += count * first
        _multiply(spectrum, _into_disc(transformed), count)
    z = np.maximum(np.fft.irfft(spectrum, size), 0.0)
    norm = _norm(z)
    steps = float(whole.counts.sum()) + len(whole.counts)
    # Bounds in terms of computed norms, hence the little more.
    off = 1.01 * (errors + _transform_error(size) * 2 * norm + 3 * ROUNDOFF * steps * 2 * norm)
    largest = math.exp(log_largest_weight(theta))
    square = 1 / theta / whole.interval / (2 * theta + 1) / (2 * theta + 2) + largest**2
    return np.roll(z, -((start - offset) % size)), math.sqrt(square) * off + largest * tilting


def _log_tail(whole: Moments, theta: float, end: float) -> float:
    """Logarithm of a bound on the probability that the sum is at least `end`."""
    with np.errstate(over="ignore", invalid="ignore"):
        best = min((whole.sample.log(f * theta) - f * theta * end, f) for f in _FACTORS)[1] * theta
        return whole.log(best) - best * end * (1 - 8 * ROUNDOFF)


def _window(whole: Moments, theta: float, near: float, log_delta: float) -> tuple[float, float]:
    """Where the tilted sum lies, up to tails that do not matter, and where the answer may be."""
    whole = whole.sample
    log_tail = log_delta + math.log(_TAIL_SHARE)
    with np.errstate(over="ignore", invalid="ignore"):
        log_each, exponents = whole.log_each(theta)
        tilted = np.exp(exponents - np.repeat(log_each, whole.sizes))
        mean = np.add.reduceat(tilted * whole.x, whole.starts)
        squares = np.add.reduceat(tilted * (whole.x - np.repeat(mean, whole.sizes)) ** 2, whole.starts)
        deviation = max(math.sqrt(float(whole.counts @ squares)), whole.interval)
        high = min((whole.log(f * theta) - log_tail) / (f * theta) for f in _FACTORS)
        here, wrapped = whole.log(theta), math.log(_WRAPPED)
        steps = [f / deviation for f in (1.0, 3.0, 6.0, 9.0)] + [f * theta for f in (0.1, 0.3, 0.6)]
        # Sums that wrap around only add, but must not add much.
        highs = [(whole.log(theta + more) - here - wrapped) / more for more in steps]
        lows = [(wrapped + here - whole.log(theta - less)) / less for less in steps]
    high = max(high, min([value for value in highs if math.isfinite(value)], default=high), near)
    low = max([value for value in lows if math.isfinite(value)], default=high - 1e3 * deviation)
    low = min(low, near - _BELOW / theta, high - 32 * whole.interval)
    return low - whole.interval, high + 2 * whole.interval


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


def transform(places: np.ndarray, masses: np.ndarray, size: int) -> tuple[np.ndarray, float]:
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
