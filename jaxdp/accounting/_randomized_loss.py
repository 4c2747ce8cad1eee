r"""Privacy loss of one release whose clipping norms were estimated, as a pessimistic distribution on a grid.

With the record the release is $N(Z / \sigma, 1)$ where the record was drawn (probability q) and $N(0, 1)$ where it
was not; without it, $N(0, 1)$. Z is the factor of `jaxdp.accounting._inflation`.

* *revealed*: an observer may know Z, which is necessary where the probes are shared by the batch: other records'
  contributions then depend on them too. The pair is $(Z, (1-q) N(0,1) + q N(Z/\sigma, 1))$ against $(Z, N(0,1))$,
  whose hockey-stick divergence is the mean over Z of that of a sampled Gaussian mechanism.
* *hidden*: with probes of each record's own, Z is part of the mechanism's noise: the scalar mixture
  $(1-q) N(0,1) + q E N(Z/\sigma, 1)$ against $N(0,1)$. Its likelihood ratio increases, so half-lines are the worst
  events.

**Why it is an upper bound.** Both divergences increase with Z in the stochastic order (revealed: a smaller Z is a
post-processing of a larger one; hidden: half-lines are the worst events, and their probabilities are monotone in
Z), so atoms above the true law are pessimistic. As a function of $e^\epsilon$ the divergence $\delta(\epsilon)$ is
convex, so straight lines between its exact values at chosen epsilons lie above it, and the distribution whose curve
those lines are dominates the pair, alone and composed (Doroshenko et al. 2022, https://arxiv.org/abs/2207.04380).
The curve's value at the largest epsilon is the mass of an infinite loss, which goes into delta whole.
"""

import math
from collections.abc import Callable

import numpy as np
from dp_accounting.pld import pld_pmf
from dp_accounting.pld import privacy_loss_distribution as pld
from scipy.special import ndtr

from jaxdp.accounting._inflation import Inflation

# Hockey-stick divergences of one release for an increasing array of epsilons: with the record against without, and
# without against with.
Curves = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

# Losses above this count as infinite: no useful budget is so large. (Where noise is so small that exact norms lose
# more, the limit is higher.)
_LARGEST_LOSS = 80.0

# Divergences below this are not worth a grid.
_NEGLIGIBLE = 1e-16

# Distance of the epsilons at which the curve is evaluated, relative to epsilon, once that is above the grid's.
# Chosen with the atoms so that noise multipliers are within 0.1% of those of much finer ones.
GAP = 0.005

# Where the normal distribution function is zero in double precision.
_FARTHEST = 38.5


def loss_distribution(curves: Curves, largest: float, interval: float, gap: float = GAP) -> pld.PrivacyLossDistribution:
    """The distribution on multiples of `interval` up to `largest` whose curves are straight lines above the given."""
    knots = _knots(math.ceil(largest / interval), gap)
    remove, add = curves(knots * interval)
    return pld.PrivacyLossDistribution(
        _connected(knots, remove, add, interval), _connected(knots, add, remove, interval)
    )


def largest_loss(curves: Curves, with_exact_norms: float) -> float:
    """The loss beyond which hardly any mass lies, within limits."""
    limit = max(_LARGEST_LOSS, min(2 * with_exact_norms, 500.0))
    epsilons = np.geomspace(1e-7, limit, 150)
    # What is left at the limit is lost whatever the grid.
    excess = [curve - curve[-1] for curve in curves(epsilons)]
    return float(epsilons[np.argmax(np.maximum(*excess) <= _NEGLIGIBLE)])


def revealed_curves(law: Inflation, noise_multiplier: float, sampling_probability: float) -> Curves:
    """The mean over Z of the closed form for a sampled Gaussian mechanism."""
    q, shifts = sampling_probability, law.factors / noise_multiplier

    def curves(epsilons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        factor = (np.expm1(epsilons) + q)[:, None] / q
        cut = np.log(factor) / shifts + shifts / 2
        remove = q * ((ndtr(shifts - cut) - factor * ndtr(-cut)) @ law.weights + law.lost)
        add = np.zeros_like(epsilons)
        some = np.expm1(-epsilons) + q > 0
        factor = (np.expm1(-epsilons[some]) + q)[:, None] / q
        cut = np.log(factor) / shifts + shifts / 2
        inside = (factor * ndtr(cut) - ndtr(cut - shifts)) @ law.weights + factor[:, 0] * law.lost
        add[some] = np.exp(epsilons[some]) * q * inside
        return np.maximum(remove, 0.0), np.maximum(add, 0.0)

    return curves


def hidden_curves(law: Inflation, noise_multiplier: float, sampling_probability: float) -> Curves:
    """Half-lines of the scalar mixture, each cut where the likelihood ratio is e^epsilon."""
    q, shifts = sampling_probability, law.factors / noise_multiplier
    log_weights = np.log(law.weights) - shifts**2 / 2

    def ratio(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logarithm of the likelihood ratio of the mixture to N(0, 1), and its derivative: convex, increasing."""
        exponents = x[:, None] * shifts + log_weights
        largest = exponents.max(axis=1)
        terms = np.exp(exponents - largest[:, None])
        drawn = math.log(q) + largest + np.log(terms.sum(axis=1))
        value = drawn if q == 1 else np.logaddexp(math.log1p(-q), drawn)
        return value, np.exp(drawn - value) * (terms @ shifts) / terms.sum(axis=1)

    def cuts(values: np.ndarray) -> np.ndarray:
        """Where the logarithm of the ratio has these values, at least -_FARTHEST."""
        right = _FARTHEST
        while ratio(np.array([right]))[0][0] < values.max():
            right *= 2
        table = np.linspace(-_FARTHEST, right, 1000)
        x = np.interp(values, ratio(table)[0], table)
        for _ in range(200):
            # On a convex function each step ends to the right of the solution, the next ones approach it from there.
            value, slope = ratio(x)
            error = value - values
            with np.errstate(divide="ignore"):
                step = error / slope
            x = np.clip(x - step, -_FARTHEST, right)
            # A half-line that is off by little has a divergence that is off by the product of the two errors.
            if np.all((np.abs(step) < 1e-9) | (np.abs(error) < 1e-13) | (x == -_FARTHEST)):
                return x
        raise ArithmeticError("the likelihood ratio of a release with estimated norms could not be inverted.")

    def curves(epsilons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cut = cuts(epsilons)
        drawn = ndtr(shifts - cut[:, None]) @ law.weights + law.lost
        remove = q * drawn + (1 - q - np.exp(epsilons)) * ndtr(-cut)
        add = np.zeros_like(epsilons)
        some = np.expm1(-epsilons) + q > 0
        if some.any():
            cut, growth = cuts(-epsilons[some]), np.exp(epsilons[some])
            add[some] = (1 - growth * (1 - q)) * ndtr(cut) - growth * q * (ndtr(cut[:, None] - shifts) @ law.weights)
        return np.maximum(remove, 0.0), np.maximum(add, 0.0)

    return curves


def _knots(last: int, gap: float) -> np.ndarray:
    """Grid positions from 0 to at least `last`, ever farther apart."""
    knots = [0]
    while knots[-1] < last:
        knots.append(knots[-1] + max(1, int(gap * knots[-1])))
    return np.array(knots)


def _connected(knots: np.ndarray, forward: np.ndarray, backward: np.ndarray, interval: float) -> pld_pmf.DensePLDPmf:
    """The distribution whose curve connects the values at knots on both sides of zero.

    `forward` is the curve at epsilon >= 0, `backward` that of the reversed pair, which gives the rest by
    delta(-epsilon) = 1 - e^-epsilon + e^-epsilon backward(epsilon). The first two terms are the curve of a loss of
    zero; what exceeds it is handled alone, so that nothing cancels.
    """
    falling = np.exp(-knots * interval)
    below, above = _needed(falling * backward), _needed(forward)
    positions = np.concatenate((-knots[below:0:-1], knots[: above + 1]))
    excess = np.concatenate(((falling * backward)[below:0:-1], forward[: above + 1]))
    growth = np.exp(positions * interval)
    # The curve starts at epsilon = -infinity, where nothing exceeds, and is level beyond the last knot.
    slopes = np.append(np.diff(excess, prepend=0.0) / np.diff(growth, prepend=0.0), 0.0)
    masses = growth * np.diff(slopes)
    masses[below] += 1.0
    probabilities = np.zeros(positions[-1] - positions[0] + 1)
    # Rounding can leave masses of zero slightly negative; raising them only adds to the curve.
    probabilities[positions - positions[0]] = np.maximum(masses, 0.0)
    return pld_pmf.DensePLDPmf(interval, int(positions[0]), probabilities, float(excess[-1]), True)


def _needed(values: np.ndarray) -> int:
    """Index of the first knot from which on all values are negligible, at least 1."""
    return min(len(values) - 1, int(np.flatnonzero(np.append(True, values[1:] > 1e-2 * _NEGLIGIBLE))[-1]) + 1)
