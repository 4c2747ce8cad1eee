"""Epsilon and delta of composed events without truncation, by privacy loss distributions or Rényi
divergences.

Privacy loss distributions are rounded pessimistically to a grid: epsilon is never below the true one. A fixed
interval wastes time on large losses and is loose on small ones (at noise multiplier 50 and q = 0.001 the usual
1e-4 doubles epsilon). The interval is instead a fixed fraction of the standard deviation of one step's loss,
with which epsilon is about 1e-4 too large, relatively, whatever the scale. Where large losses are rare (q below
1e-4 with a noise multiplier below 1) the size of the grid is the limit and the excess is larger, up to a tenth.

Releases with estimated norms have a distribution of their own, see `jaxdp.accounting._randomized_loss`, on a grid
half as fine.
"""

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import attr
import dp_accounting
from dp_accounting import DpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.rdp import RdpAccountant

from jaxdp.accounting._inflation import inflation
from jaxdp.accounting._randomized_event import RandomizedGaussianDpEvent
from jaxdp.accounting._randomized_loss import Curves, hidden_curves, largest_loss, loss_distribution, revealed_curves

Leaves = tuple[tuple[DpEvent, int], ...]

# Grid points per standard deviation of a step's loss: the relative error of epsilon is about a tenth of its
# inverse square.
_INTERVALS_PER_LOSS = 32

# Grid points for one step's loss: building the distribution costs some microseconds for each.
_LARGEST_GRID = 4e4

# The same for releases with estimated norms, whose distributions are fast to build and have longer tails.
_INTERVALS_PER_RANDOMIZED_LOSS = 16
_LARGEST_RANDOMIZED_GRID = 1e5

# A composed loss with more grid points would take gigabytes; with a billion steps epsilon is above 500 there.
_LARGEST_COMPOSED_GRID = 2.0**24

# A step whose loss can be larger than this protects nobody and would overflow double precision: epsilon is
# infinite.
_LARGEST_LOSS = 1e4


class Profile(NamedTuple):
    """What an accountant says about a composed event, as functions."""

    epsilon: Callable[[float], float]
    delta: Callable[[float], float]


def compose(leaves: Leaves, accountant: str) -> Profile:
    """The profile of leaves repeated as often as their counts say."""
    if accountant == "rdp":
        with _without_order_warnings():
            composed = RdpAccountant()
            for leaf, count in leaves:
                composed.compose(leaf, count)
        return Profile(lambda delta: float(composed.get_epsilon(delta)), lambda eps: float(composed.get_delta(eps)))
    interval = _discretization_interval(leaves)
    if math.isinf(interval):
        return Profile(lambda _: math.inf, lambda _: 1.0)
    if all(has_own_distribution(leaf) for leaf, _ in leaves):
        parts = [_composed_distribution(leaf, count, interval) for leaf, count in leaves]
        distribution = functools.reduce(lambda first, second: first.compose(second), parts)
        return Profile(
            lambda delta: float(distribution.get_epsilon_for_delta(delta)),
            lambda eps: float(distribution.get_delta_for_epsilon(eps)),
        )
    general = PLDAccountant(value_discretization_interval=interval)
    for leaf, count in leaves:
        general.compose(leaf, count)
    return Profile(lambda delta: float(general.get_epsilon(delta)), lambda eps: float(general.get_delta(eps)))


def has_own_distribution(leaf: DpEvent) -> bool:
    """Whether the leaf is one of the kinds of a DP-SGD run, whose distribution is kept between calls."""
    if randomized_release(leaf) is not None:
        return True
    return isinstance(leaf, dp_accounting.GaussianDpEvent | dp_accounting.TruncatedSubsampledGaussianDpEvent) or (
        isinstance(leaf, dp_accounting.PoissonSampledDpEvent) and isinstance(leaf.event, dp_accounting.GaussianDpEvent)
    )


def randomized_release(leaf: DpEvent) -> tuple[RandomizedGaussianDpEvent, float] | None:
    """The release with estimated norms that a leaf is, with its sampling probability; None for other leaves."""
    if isinstance(leaf, RandomizedGaussianDpEvent):
        return leaf, 1.0
    if isinstance(leaf, dp_accounting.PoissonSampledDpEvent) and isinstance(leaf.event, RandomizedGaussianDpEvent):
        return leaf.event, float(leaf.sampling_probability)
    return None


@functools.lru_cache(maxsize=64)
def _randomized_curves(leaf: DpEvent) -> tuple[Curves, float]:
    """The divergences of a release with estimated norms, and its largest loss."""
    release = randomized_release(leaf)
    assert release is not None
    event, probability = release
    make_curves = hidden_curves if event.hidden else revealed_curves
    curves = make_curves(inflation(event.probes, event.shares), event.noise_multiplier, probability)
    return curves, largest_loss(curves, _largest_loss(event.noise_multiplier, probability))


def _composed_distribution(leaf: DpEvent, count: int, interval: float) -> pld.PrivacyLossDistribution:
    if isinstance(leaf, dp_accounting.GaussianDpEvent):
        # Gaussian releases compose to one with less noise, without rounding errors.
        return _step_distribution(dp_accounting.GaussianDpEvent(leaf.noise_multiplier / math.sqrt(count)), interval)
    step = _step_distribution(leaf, interval)
    return step if count == 1 else step.self_compose(count)


@functools.lru_cache(maxsize=32)
def _step_distribution(leaf: DpEvent, interval: float) -> pld.PrivacyLossDistribution:
    if randomized_release(leaf) is not None:
        return loss_distribution(*_randomized_curves(leaf), interval)
    fields = attr.asdict(leaf, recurse=False)
    if isinstance(leaf, dp_accounting.TruncatedSubsampledGaussianDpEvent):
        return pld.from_truncated_subsampled_gaussian_mechanism(value_discretization_interval=interval, **fields)
    probability = fields.get("sampling_probability", 1.0)
    noise_multiplier = attr.asdict(fields.get("event", leaf))["noise_multiplier"]
    return pld.from_gaussian_mechanism(
        noise_multiplier, value_discretization_interval=interval, sampling_prob=probability
    )


def _discretization_interval(leaves: Leaves) -> float:
    """A fixed share of the root mean square loss of a step, within limits that keep the grid small."""
    squares, mean, steps, widest, finest = 0.0, 0.0, 0, 0.0, 0.0
    for leaf, count in leaves:
        release = randomized_release(leaf)
        if release is not None:
            noise_multiplier, probability = release[0].noise_multiplier, release[1]
            if _largest_loss(noise_multiplier, probability) > _LARGEST_LOSS:
                return math.inf
            # The spread without the rare large factors: they need room, not resolution.
            spread = probability * math.sqrt(math.expm1(min(noise_multiplier**-2, 50.0)))
            spread *= _INTERVALS_PER_LOSS / _INTERVALS_PER_RANDOMIZED_LOSS
            squares, steps = squares + count * spread**2, steps + count
            finest = max(finest, _randomized_curves(leaf)[1] / _LARGEST_RANDOMIZED_GRID)
            continue
        fields = attr.asdict(leaf, recurse=False)
        probability = fields.get("sampling_probability", 1.0)
        noise_multiplier = getattr(fields.get("event", leaf), "noise_multiplier", None)
        if noise_multiplier is None:
            # An event of another kind: the interval that dp_accounting uses.
            squares, steps = squares + count * (_INTERVALS_PER_LOSS * 1e-4) ** 2, steps + count
            continue
        if isinstance(leaf, dp_accounting.GaussianDpEvent):
            noise_multiplier, count = noise_multiplier / math.sqrt(count), 1
        reach = _largest_loss(noise_multiplier, probability)
        spread = probability * math.sqrt(math.expm1(min(noise_multiplier**-2, 50.0)))
        squares, steps, widest = squares + count * min(spread, reach) ** 2, steps + count, max(widest, reach)
        # A mixture's divergence is at most its share of the whole one.
        mean += count * min(spread**2, probability / noise_multiplier**2) / 2
    if widest > _LARGEST_LOSS:
        return math.inf  # No grid holds it.
    interval = max(min(math.sqrt(squares / steps) / _INTERVALS_PER_LOSS, 1e-3), widest / _LARGEST_GRID, finest)
    if mean / interval > _LARGEST_COMPOSED_GRID:
        return math.inf  # Nor this one: the mean of the composed loss lies so far out.
    # A power of two: plans that differ little share the distributions that are kept.
    return 2.0 ** math.floor(math.log2(interval))


def _largest_loss(noise_multiplier: float, sampling_probability: float) -> float:
    """Privacy loss of a Poisson-sampled Gaussian ten standard deviations out."""
    loss = 0.5 / noise_multiplier**2 + 10 / noise_multiplier
    if loss > 500:
        return loss
    return math.log1p(sampling_probability * math.expm1(loss))


@contextlib.contextmanager
def _without_order_warnings() -> Iterator[None]:
    """Silence the note that an order did not converge: leaving it out keeps the bound valid."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
