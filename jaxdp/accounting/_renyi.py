r"""Rényi divergences of one release at many orders, rounded up, and what they say about a run.

For a Poisson-sampled Gaussian release with $A_\alpha = E_{N}[(1 - q + q r)^\alpha]$, $r = e^{st - s^2/2}$, the
divergence is $\log A_\alpha / (\alpha - 1)$ in both directions (Mironov et al. 2019,
https://arxiv.org/abs/1908.10530). A computed $A_\alpha$ near one has lost what it exceeds one by: over 1e9 steps it
means nothing, and it may even be one. So:

* *Whole orders.* $A_\alpha - 1 = \sum_{i \ge 2} \binom{\alpha}{i} q^i (1-q)^{\alpha-i} (e^{(i^2-i) s^2/2} - 1)$ has
  positive terms only, so its relative error is small, whatever its size.
* *Orders between them*, up to 11: the integral, of a positive function, by Gauss-Legendre rules; a bound on its error
  in $\log A$ is added. Where it is not worth its time, $\log A$, convex in alpha, is interpolated.
* *Very large orders*, for very much noise: a coin's moments, $1 - q + q e^y \le e^{q y + c y^2}$, $c = (1-2q) /
  (4 \log((1-q)/q))$ (Kearns & Saul 1998, https://arxiv.org/abs/1301.7392; 1/8 at q = 1/2), leave a Gaussian integral:
  $\log A_\alpha \le -\tfrac12 \log(1 - 2bs^2) + (-a s^2/2 + b s^4/4 + a^2 s^2/2) / (1 - 2 b s^2)$ with $a = \alpha q$
  and $b = \alpha c$. And sampling never hurts: $\alpha s^2 / 2$ is a bound as well.

Other events have the divergences of `dp_accounting`, with an allowance for their rounding.
"""

import functools
import math
from collections.abc import Sequence

import dp_accounting
import numpy as np
from dp_accounting import DpEvent
from dp_accounting.rdp import RdpAccountant
from dp_accounting.rdp.rdp_privacy_accountant import DEFAULT_RDP_ORDERS
from scipy.special import gammaln, logsumexp

from jaxdp.accounting._step_loss import MOST_NOISE, ROUNDOFF

# Largest order that is summed.
_LONGEST = 2.0**15

_SHORT = np.unique(np.array(DEFAULT_RDP_ORDERS, dtype=np.float64))
_LONG = np.unique(np.round(np.geomspace(64, _LONGEST, 48)))
_FAR = np.geomspace(_LONGEST, 1e160, 1800)[1:]
ORDERS = np.unique(np.concatenate((_SHORT, _LONG, _FAR)))
_WHOLE = np.round(ORDERS) == ORDERS

# With less noise divergences count as infinite.
_LEAST_NOISE = 1e-100

_SMALLEST = 1e-300

# Rounding of log A: of the integral, and of what dp_accounting computes.
_INTEGRAL_ERROR, _THEIR_ERROR = 4e-12, 1e-12

# Relative rounding of divergences with positive terms: differences of log-gammas of up to 1e6.
_RELATIVE_ERROR = 1e-8

# With more different releases than this, orders between whole ones are interpolated and sums stay short.
_MANY = 16
_LONGEST_OF_MANY = 4096

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2


class Divergences:
    """The Rényi divergences of a run at `ORDERS`; `epsilon` and `delta` are upper bounds."""

    def __init__(self, leaves: Sequence[tuple[DpEvent, int]]):
        many = len(leaves) > _MANY
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            total = sum(float(count) * _divergences(leaf, many) for leaf, count in leaves)
        self._values = np.where(np.isnan(total), math.inf, total) * (1 + 1e-12)

    def epsilon(self, delta: float) -> float:
        r"""The best of $D + \log(1 - 1/\alpha) - \log(\delta \alpha) / (\alpha - 1)$ (Canonne et al. 2020)."""
        with np.errstate(over="ignore"):
            # Total variation is at most sqrt(1 - e^-KL), and KL is below every order.
            if float(np.min(-np.expm1(-self._values))) < delta**2 * (1 - 1e-9):
                return 0.0
            values = self._values + np.log1p(-1 / ORDERS) - (math.log(delta) + np.log(ORDERS)) / (ORDERS - 1)
        best = float(np.min(values))
        return max(0.0, best + 1e-14 * abs(best))

    def delta(self, epsilon: float) -> float:
        """The best delta of the same formula."""
        with np.errstate(over="ignore", invalid="ignore"):
            exponents = (ORDERS - 1) * (self._values - epsilon + np.log1p(-1 / ORDERS)) - np.log(ORDERS)
            exponents += (ORDERS - 1) * (self._values + epsilon) * (4 * ROUNDOFF)
            by_divergence = float(np.sqrt(np.min(-np.expm1(-self._values))))
        found = math.exp(min(float(np.min(np.where(np.isnan(exponents), math.inf, exponents))), 0.0))
        # Never zero: what underflows is not nothing.
        return min(1.0, max(found, _SMALLEST) * (1 + 1e-9), max(by_divergence, _SMALLEST) * (1 + 1e-9))


def _divergences(leaf: DpEvent, many: bool) -> np.ndarray:
    """Those of one release, at all orders."""
    if isinstance(leaf, dp_accounting.GaussianDpEvent):
        return ORDERS * (_scale(leaf.noise_multiplier) ** 2 / 2)
    if isinstance(leaf, dp_accounting.PoissonSampledDpEvent) and isinstance(leaf.event, dp_accounting.GaussianDpEvent):
        return _sampled(float(leaf.sampling_probability), _scale(leaf.event.noise_multiplier), many)
    theirs = RdpAccountant(orders=_SHORT.tolist())
    theirs.compose(leaf, 1)
    found = np.full(len(ORDERS), math.inf)
    with np.errstate(invalid="ignore"):
        allowed = np.maximum(theirs.rdp, 0.0) * (1 + _THEIR_ERROR) + _THEIR_ERROR / (_SHORT - 1)
    found[np.searchsorted(ORDERS, _SHORT)] = allowed
    return found


def _scale(noise_multiplier: float) -> float:
    """The inverse, rounded up; infinite where divergences would overflow."""
    return 1 / min(noise_multiplier, MOST_NOISE) * (1 + 8 * ROUNDOFF) if noise_multiplier > _LEAST_NOISE else math.inf


@functools.lru_cache(maxsize=256)
def _sampled(q: float, s: float, many: bool) -> np.ndarray:
    """Poisson-sampled Gaussian release: the smallest bound at every order."""
    unsampled = ORDERS * (s**2 / 2)
    if s > 1e4:
        return unsampled
    # Beyond, sampling no longer helps.
    useful = 4 * (40 - math.log(q)) / s**2
    longest = min(_LONGEST_OF_MANY if many else _LONGEST, useful)
    whole = _WHOLE & (max(longest, 64) >= ORDERS)
    log_moments = np.full(len(ORDERS), math.inf)
    log_moments[whole] = _whole_orders(ORDERS[whole], q, s)
    log_moments = np.minimum(log_moments, _kearns_saul(q, s))
    # Convex in the order and zero at one.
    known = np.flatnonzero(whole)
    between = ~whole & (ORDERS[known[-1]] > ORDERS)
    log_moments[between] = np.minimum(
        log_moments[between],
        np.interp(ORDERS[between], np.append(1.0, ORDERS[known]), np.append(0.0, log_moments[known])),
    )
    orders = between & (min(11.0, max(useful, 2.0)) > ORDERS)
    if not many and s < 40:
        log_moments[orders] = np.minimum(log_moments[orders], _integrals(ORDERS[orders], q, s))
    return np.minimum(unsampled, log_moments * (1 + _RELATIVE_ERROR) / (ORDERS - 1))


def _whole_orders(orders: np.ndarray, q: float, s: float) -> np.ndarray:
    """log A of whole orders from its positive terms."""
    i = np.arange(2, int(orders[-1]) + 1, dtype=np.float64)
    growth = (i**2 - i) * (s**2 / 2)
    # The terms of large exponents are their exponents; the others must not lose what is above one.
    drawn = growth + np.log(-np.expm1(-growth)) + i * math.log(q)
    log_undrawn = math.log1p(-q) if q < 1 else -math.inf
    excess = []
    for order in orders.astype(int).tolist():
        terms = _log_choices(order) + drawn[: order - 1]
        terms[:-1] += i[: order - 2][::-1] * log_undrawn - log_undrawn
        largest = float(terms.max())
        excess.append(largest + math.log(float(np.exp(terms - largest).sum())))
    return np.logaddexp(0.0, excess)


@functools.lru_cache(maxsize=256)
def _log_choices(order: int) -> np.ndarray:
    """Logarithms of the binomial coefficients of 2, 3, ..., order."""
    i = np.arange(2, order + 1, dtype=np.float64)
    return gammaln(order + 1) - gammaln(i + 1) - gammaln(order - i + 1)


def _kearns_saul(q: float, s: float) -> np.ndarray:
    """The bound for large orders; infinite where the integral is."""
    near_half = abs(q - 0.5) < 1e-3
    c = 0.125 if near_half or q == 1 else (1 - 2 * q) / (4 * (math.log1p(-q) - math.log(q)))
    shrinking = 2 * ORDERS * c * s**2
    usable = shrinking < 0.5
    found = np.full(len(ORDERS), math.inf)
    orders, shrunk = ORDERS[usable], shrinking[usable]
    if len(orders):
        a = orders * q * s
        exponent = (a * a / 2 - a * s / 2 + orders * c * s**4 / 4) / (1 - shrunk)
        found[usable] = exponent - 0.5 * np.log1p(-shrunk)
        # What cancels is small against the terms.
        found[usable] += 16 * ROUNDOFF * (a * a + a * s + shrunk)
    return found


def _integrals(orders: np.ndarray, q: float, s: float) -> np.ndarray:
    """log A at the given orders by quadrature: panels on which the integrand grows little."""
    top = float(orders.max())
    low, high = -12.0, 12.0 + top * s
    panels = math.ceil((high - low) * (12 + 2 * top * s + 2 * s))
    edges = np.linspace(low, high, panels + 1)
    at = (edges[:-1, None] + np.diff(edges)[:, None] * _NODES).ravel()
    exponent = s * at - s * s / 2
    loss = np.logaddexp(math.log1p(-q), math.log(q) + exponent) if q < 1 else exponent
    log_weights = np.log(np.broadcast_to(_WEIGHTS * (edges[1] - edges[0]), (panels, 12)).ravel())
    log_weights = log_weights - at**2 / 2 - 0.5 * math.log(2 * math.pi)
    found = np.array([logsumexp(log_weights + order * loss) for order in orders])
    # What lies outside is less than twice what N has there, at either end, after its shift.
    return np.maximum(found, 0.0) + _INTEGRAL_ERROR
