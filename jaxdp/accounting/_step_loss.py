r"""Privacy loss of one Poisson-sampled Gaussian release as masses on a grid, never below the true one.

With the record a release is $P = (1-q) N(0,1) + q N(s,1)$, without it $N = N(0,1)$, where $s$ is the inverse of the
noise multiplier. At outcome t the loss is $\ell(t) = \log(1 - q + q r(t))$, $r(t) = e^{st - s^2/2}$, increasing in t.

**Construction.** Grid losses $x_j$ belong to outcomes $t_j$. The mass that N has between two of them is moved to the
two ends so that N's and P's mass both stay the same: the share $(r - r_j)/(r_{j+1} - r_j)$ goes to the upper end. That
spreads $e^{\ell}$ about its mean, so every convex function of it grows, all hockey-stick divergences among them: the
masses dominate the pair, in both directions, alone and composed (Doroshenko et al. 2022,
https://arxiv.org/abs/2207.04380). If $n_j$ is the mass that N gets at j, P has $n_j e^{x_j}$ there. Mass above the
last grid loss is an infinite loss; mass below the first one is moved up to it.

**Rounding.** No mass is a difference. Each is an integral of something positive, by Gauss-Legendre rules of 12 points
on panels so short that the integrand, an entire function, grows by less than a factor of ten on the Bernstein
ellipse with rho = 8; their error is below $10^3 \cdot 8^{-22}$ relatively (Trefethen, *Approximation Theory and
Approximation Practice*, theorem 19.3). The floating-point numbers $t_j$ *define* the intervals. That their losses
are not quite $x_j$, by at most $e_j$ (the rounding of their computation, bounded from below by nothing but the unit
roundoff times the terms that make it up), is paid for by moving the share $e_j / (x_{j+1} - x_j)$ of the mass at j to
j + 1; relative errors of the masses are paid for by enlarging them. Measures that sum to more than one still
dominate: composition is linear in each factor, and the hockey-stick divergence of a product is the mean over one
factor of that of the other.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

# Relative error of a rounded operation in double precision.
ROUNDOFF = 2.0**-53

# A step whose loss can be larger than this protects nobody: such losses count as infinite.
LARGEST_LOSS = 1e4

# More noise than this, and less, makes numbers that double precision cannot hold. Less noise is never less loss.
MOST_NOISE, LEAST_NOISE = 1e150, 1e-2

# Places are this far apart relative to their loss, where that is more than one interval: far losses are rare. But
# there are so many for every standard deviation of the loss of a drawn record.
GAP, _PER_DEVIATION = 0.002, 32

# Probability (per release) of losses beyond the grid.
_SMALLEST_TAIL = 1e-24

# Mass too small for double precision is lost to infinity.
_UNDERFLOW = 1e-300

# Below this N has no mass to speak of (2e-33), which is counted at both ends of its interval.
_LOWEST = -12.0

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2


class Losses(NamedTuple):
    """Masses at multiples of the interval (places, ascending), and the mass of an infinite loss."""

    places: np.ndarray
    masses: np.ndarray
    infinite: float


class StepLoss(NamedTuple):
    """A record more against without, and the other way round."""

    remove: Losses
    add: Losses


def sampled_gaussian(noise_multiplier: float, sampling_probability: float, interval: float) -> StepLoss:
    """Dominating losses of a Poisson-sampled Gaussian release on multiples of `interval`, a power of two."""
    q = sampling_probability
    if noise_multiplier < LEAST_NOISE:
        return _disclosure(q, interval)
    # Enlarged for the rounding of the division.
    s = 1 / min(noise_multiplier, MOST_NOISE) * (1 + 8 * ROUNDOFF)
    places = _places(s, q, interval)
    x = places * interval
    t, log_ratio = _outcomes(x, s, q)
    upward, downward, up_at_ends, down_at_ends = _shares(x, t, log_ratio, s, q)
    without = np.append(downward, 0.0) + np.append(0.0, upward)
    having = np.append(down_at_ends, 0.0) + np.append(0.0, up_at_ends)
    below, above = float(ndtr(t[0])), float(ndtr(-t[-1]))
    having_below = (1 - q) * below + q * float(ndtr(t[0] - s))
    having_above = (1 - q) * above + q * float(ndtr(s - t[-1]))
    having[0] += having_below
    without[-1] += above
    # Exponents of up to t^2/2 and x are rounded.
    largest = np.minimum(np.abs(t), 40 + s)
    growth = 1 + 8 * ROUNDOFF * (40 + largest**2 + np.abs(x))
    error = _loss_error(x, log_ratio, s, q)
    remove = _moved_up(places, having * growth, error, interval, having_above)
    add = _moved_up(-places[::-1], (without * growth)[::-1], error[::-1], interval, below)
    return StepLoss(remove, add)


def _places(s: float, q: float, interval: float) -> np.ndarray:
    """Multiples of the interval that hold the losses: every one near zero, ever fewer far from it."""
    reach = -float(ndtri(min(0.4, _SMALLEST_TAIL / q)))
    high = min(sampled_loss(reach + s, s, q), LARGEST_LOSS)
    low = max(math.log1p(-q) if q < 1 else -math.inf, sampled_loss(float(ndtri(_SMALLEST_TAIL)), s, q))
    largest_gap = s / (_PER_DEVIATION * interval)
    below = _spaced(math.ceil(-low / interval), largest_gap)
    above = _spaced(max(1, math.ceil(high / interval)), largest_gap)
    return np.concatenate((-below[:0:-1], above))


def _spaced(last: int, largest_gap: float) -> np.ndarray:
    """0, 1, 2, ... with gaps that grow up to the largest, to exactly `last`."""
    # The gap is one up to here, and the largest from there on.
    dense = min(last, math.ceil(2 / GAP))
    geometric = max(dense, min(last, largest_gap / GAP))
    parts = [np.arange(dense + 1.0)]
    if geometric > dense:
        parts.append(np.geomspace(dense, geometric, math.ceil(math.log(geometric / dense) / GAP) + 1))
    if last > geometric:
        parts.append(np.linspace(geometric, last, math.ceil((last - geometric) / max(1, int(largest_gap))) + 1))
    return np.unique(np.concatenate(parts).round().astype(np.int64))


def sampled_loss(t: float, s: float, q: float) -> float:
    """The loss at an outcome."""
    exponent = s * t - s * s / 2
    if exponent > 500:
        return exponent + math.log(q)
    return math.log1p(q * math.expm1(exponent)) if q < 1 else exponent


def _outcomes(x: np.ndarray, s: float, q: float) -> tuple[np.ndarray, np.ndarray]:
    """The outcome of each loss and the logarithm of r there, minus infinity where no outcome loses so little."""
    with np.errstate(divide="ignore"):
        log_ratio = np.log1p(np.maximum(np.expm1(np.minimum(x, 1.0)) / q, -1.0)) if q < 1 else x.copy()
    far = _is_far(x)
    with np.errstate(divide="ignore"):
        log_ratio[far] = x[far] + np.log1p(-np.minimum((1 - q) * np.exp(-x[far]), 1.0)) - math.log(q)
    return log_ratio / s + s / 2, log_ratio


def _is_far(x: np.ndarray) -> np.ndarray:
    """Losses whose exponential is better not taken first."""
    return (x > 1) | (x < -0.5)


def _shares(
    x: np.ndarray, t: np.ndarray, log_ratio: np.ndarray, s: float, q: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of every interval: what N has moved to its upper and to its lower end, and the same for P."""
    step = 1 / (12 + 2 * s)
    # Above there is no mass left that double precision could hold.
    lattice = np.arange(_LOWEST, min(t[-1], 40 + s), step)
    inner = np.clip(t, _LOWEST, None)
    edges = np.unique(np.concatenate((lattice[lattice > inner[0]], inner)))
    left, right = edges[:-1], edges[1:]
    cell = np.searchsorted(t, left, side="right") - 1
    width = right - left
    # Distances from the ends of the interval, without cancellation.
    risen = (left - t[cell])[:, None] + width[:, None] * _NODES
    to_go = (t[cell + 1] - right)[:, None] + width[:, None] * (1 - _NODES)
    whole = -np.expm1(-s * (t[cell + 1] - t[cell]))[:, None]
    up = np.exp(-s * to_go) * -np.expm1(-s * risen) / whole
    down = -np.expm1(-s * to_go) / whole
    if math.isinf(t[0]):
        # The first grid loss lies below all losses: its r would be negative.
        lowest, first = -(math.expm1(x[0]) + q) / q, math.exp(log_ratio[1])
        share = max(lowest, 0.0) / (max(lowest, 0.0) + first)
        up[cell == 0] = share + (1 - share) * up[cell == 0]
        down[cell == 0] *= 1 - share
    at = left[:, None] + width[:, None] * _NODES
    scale = width[:, None] * _WEIGHTS / math.sqrt(2 * math.pi)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(cell, values.sum(axis=1), minlength=len(t) - 1)

    density = scale * np.exp(-(at**2) / 2)
    parts = (
        total(density * up),
        total(density * down),
        total(scale * np.exp(x[cell + 1][:, None] - at**2 / 2) * up),
        total(scale * np.exp(x[cell][:, None] - at**2 / 2) * down),
    )
    if t[0] < _LOWEST:
        for part in parts:
            part[cell[0]] += float(ndtr(_LOWEST))
    return parts


def _loss_error(x: np.ndarray, log_ratio: np.ndarray, s: float, q: float) -> np.ndarray:
    """How far the loss at the rounded outcome can be from the grid loss it belongs to."""
    finite = np.where(np.isinf(log_ratio), 0.0, np.abs(log_ratio))
    drawn = 1 - np.minimum((1 - q) * np.exp(-x), 1.0)
    # How r's logarithm moves the loss; written so that it is not lost in rounding where the loss is small.
    moves = np.minimum(np.maximum(drawn, q * np.exp(log_ratio.clip(-700, 0))), 1.0)
    far, undrawn = _is_far(x), np.minimum((1 - q) * np.exp(-x), 1.0)
    ratio = np.where(far, undrawn * (np.abs(x) + 4), np.abs(np.expm1(x.clip(-1, 1))) * np.exp(-x.clip(-1, 1)))
    large = np.where(far, np.abs(x) - math.log(q) + 1, 0.0)
    bottom = np.where(np.isinf(log_ratio), np.abs(x) + q, 0.0)
    return 16 * ROUNDOFF * (ratio + bottom + moves * (finite + s * s + large))


def _moved_up(places: np.ndarray, masses: np.ndarray, error: np.ndarray, interval: float, infinite: float) -> Losses:
    """The losses after each mass has paid for losses larger than its own by `error`."""
    # One place more, so that the largest loss has somewhere to go.
    places = np.append(places, places[-1] + 1)
    gaps = np.diff(places) * interval
    moved = masses * np.minimum(-np.expm1(-error) / -np.expm1(-gaps), 1.0) * (1 + 8 * ROUNDOFF)
    kept = np.append(np.maximum(masses - moved, 0.0), 0.0) + np.append(0.0, moved)
    return Losses(places, kept * (1 + 8 * ROUNDOFF), infinite * (1 + 1e-9) + _UNDERFLOW)


def _disclosure(q: float, interval: float) -> StepLoss:
    """Whoever is drawn is disclosed, whoever is not loses log(1 - q): dominates any noise."""
    if q == 1:
        nothing = Losses(np.zeros(1, dtype=np.int64), np.zeros(1), 1.0)
        return StepLoss(nothing, nothing)
    low = math.floor(math.log1p(-q) / interval)
    inside = math.log1p(-q) - low * interval
    error = 8 * ROUNDOFF * (abs(low) + 1)
    up = math.expm1(inside) / math.expm1(interval)
    places = np.array([low, low + 1], dtype=np.int64)
    having = np.array([1 - up, min(up + error, 1.0)]) * np.exp(places * interval) * (1 + 64 * ROUNDOFF)
    without = np.array([min(up, 1.0), min(1 - up + error, 1.0)]) * (1 + 64 * ROUNDOFF)
    return StepLoss(Losses(places, having, q + _UNDERFLOW), Losses(-places[::-1], without, _UNDERFLOW))


def coarser(losses: Losses, interval: float, factor: int) -> Losses:
    """The same losses on multiples of `factor` intervals, each mass split between its neighbours: dominates."""
    below = losses.places // factor
    rest = (losses.places - below * factor) * interval
    whole = -math.expm1(-factor * interval)
    up = -np.expm1(-rest) / whole
    down = np.exp(-rest) * -np.expm1(rest - factor * interval) / whole
    first = int(below[0])
    size = int(below[-1]) - first + 2
    if size > 8 * len(below):
        places, inverse = np.unique(np.concatenate((below, below + 1)), return_inverse=True)
    else:
        places, inverse = np.arange(size) + first, np.concatenate((below, below + 1)) - first
    masses = np.bincount(inverse, np.concatenate((losses.masses * down, losses.masses * up)), minlength=len(places))
    kept = masses > 0
    kept[0] = True
    return Losses(places[kept], masses[kept] * (1 + 64 * ROUNDOFF), losses.infinite)
