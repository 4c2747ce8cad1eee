"""Epsilon and delta of composed events without truncation, by privacy loss distributions and by Rényi
divergences.

Privacy loss distributions are rounded pessimistically to a grid: epsilon is never below the true one. A fixed
interval wastes time on large losses and is loose on small ones (at noise multiplier 50 and q = 0.001 the usual
1e-4 doubles epsilon). The interval is instead a fixed fraction of the standard deviation of one step's loss,
with which epsilon is about 1e-4 too large, relatively, whatever the scale. Where large losses are rare (q below
1e-4 with a noise multiplier below 1), and with 1e8 steps or more, the size of the grid is the limit and the excess is
larger.

`jaxdp.accounting._step_loss` makes the distribution of a sampled Gaussian release, `jaxdp.accounting._randomized_loss`
that of a release with estimated norms, on a grid half as fine, dp_accounting those of others.
`jaxdp.accounting._fourier` composes them and bounds what rounding does, `jaxdp.accounting._renyi` is independent of it.
"""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import attr
import dp_accounting
import numpy as np
from dp_accounting import DpEvent
from dp_accounting.pld import privacy_loss_distribution as pld

from jaxdp.accounting._inflation import inflation
from jaxdp.accounting._randomized_event import RandomizedGaussianDpEvent
from jaxdp.accounting._randomized_loss import Curves, hidden_curves, largest_loss, loss_distribution, revealed_curves
from jaxdp.accounting._renyi import Divergences
from jaxdp.accounting._step_loss import (
    LARGEST_LOSS,
    LEAST_NOISE,
    MOST_NOISE,
    Losses,
    StepLoss,
    sampled_gaussian,
    sampled_loss,
)
from jaxdp.accounting._sums import Sum, largest_epsilon

Leaves = tuple[tuple[DpEvent, int], ...]

# Grid points per standard deviation of a step's loss: the relative error of epsilon is about a tenth of its
# inverse square.
_INTERVALS_PER_LOSS = 32

# Grid points for one step's loss.
_LARGEST_GRID = 2.0**18

# Releases whose distributions dp_accounting builds, some microseconds for each grid point.
_LARGEST_BUILT_GRID = 4e4

# Larger losses overflow there.
_LARGEST_BUILT_LOSS = 500.0

# More noise than this does not help there.
_MOST_BUILT_NOISE = 1e6

# The same for releases with estimated norms, whose distributions are fast to build and have longer tails.
_INTERVALS_PER_RANDOMIZED_LOSS = 16
_LARGEST_RANDOMIZED_GRID = 1e5
_MOST_RANDOMIZED_NOISE = 1e8

# Hockey-stick divergences of other releases are computed as differences of numbers up to 1 (up to the sampling
# probability, for estimated norms), with errors of some units of roundoff: so much more counts as an infinite loss.
# Their masses are enlarged for the rounding of what is near 1, also where that is all of a small divergence.
_BUILDING_ERROR, _GROWTH = 1e-14, 1 + 1e-12

# With more different releases than this, noise is rounded down to so many values for each factor of two, which costs up
# to 0.1% of epsilon, for estimated norms up to 0.8%.
_MANY_GAUSSIAN, _MANY_RANDOMIZED = (2000, 1024), (64, 128)

# Step distributions that are kept.
_KEPT = 2048


class Profile(NamedTuple):
    """What an accountant says about a composed event, as functions."""

    epsilon: Callable[[float], float]
    delta: Callable[[float], float]


NOTHING = Profile(lambda _: math.inf, lambda _: 1.0)


def compose(leaves: Leaves, accountant: str) -> Profile:
    """The profile of leaves repeated as often as their counts say."""
    if any(count > 1e300 for _, count in leaves):
        return NOTHING
    if accountant == "rdp":
        divergences = Divergences(leaves)
        return Profile(divergences.epsilon, divergences.delta)
    leaves = _grouped(leaves)
    interval = _discretization_interval(leaves)
    if math.isinf(interval):
        return NOTHING
    steps = [_step(leaf, count, interval) for leaf, count in leaves]
    remove, add = (Sum([(part[way], count) for part, count in steps], interval) for way in (0, 1))
    return Profile(
        lambda delta: largest_epsilon(remove, add, delta),
        lambda epsilon: max(remove.delta(epsilon), add.delta(epsilon)),
    )


def _grouped(leaves: Leaves) -> Leaves:
    """The leaves, or, of very many different ones, as many with slightly less noise that are equal."""
    kinds = [randomized_release(leaf) is not None for leaf, _ in leaves]
    merged: dict[DpEvent, int] = {}
    others = []
    for (leaf, count), randomized in zip(leaves, kinds, strict=True):
        if not randomized and not is_sampled_gaussian(leaf):
            others.append((leaf, count))
            continue
        most, per_octave = _MANY_RANDOMIZED if randomized else _MANY_GAUSSIAN
        if kinds.count(randomized) > most:
            leaf = _with_less_noise(leaf, per_octave)
        merged[leaf] = merged.get(leaf, 0) + count
    return (*merged.items(), *others)


def _with_less_noise(leaf: Any, per_octave: int) -> Any:
    """The leaf with its noise multiplier rounded down to one of so many for each factor of two."""
    if isinstance(leaf, dp_accounting.PoissonSampledDpEvent):
        return attr.evolve(leaf, event=_with_less_noise(leaf.event, per_octave))
    noise = float(leaf.noise_multiplier)
    if not 0 < noise < math.inf:
        return leaf
    rounded = 2.0 ** (math.floor(math.log2(noise) * per_octave) / per_octave)
    with warnings.catch_warnings():
        # Few probes were warned about when the event was made.
        warnings.simplefilter("ignore")
        return attr.evolve(leaf, noise_multiplier=min(noise, rounded))


def has_own_distribution(leaf: DpEvent) -> bool:
    """Whether the leaf is one of the kinds of a DP-SGD run."""
    if randomized_release(leaf) is not None or is_sampled_gaussian(leaf):
        return True
    return isinstance(leaf, dp_accounting.TruncatedSubsampledGaussianDpEvent)


def is_sampled_gaussian(leaf: DpEvent) -> bool:
    """Whether the leaf is a Gaussian release on a Poisson sample or on everything."""
    event = leaf.event if isinstance(leaf, dp_accounting.PoissonSampledDpEvent) else leaf
    return isinstance(event, dp_accounting.GaussianDpEvent)


def _sampled_gaussian(leaf: Any) -> tuple[float, float]:
    """Sampling probability and noise multiplier of such a leaf."""
    if isinstance(leaf, dp_accounting.GaussianDpEvent):
        return 1.0, float(leaf.noise_multiplier)
    return float(leaf.sampling_probability), float(leaf.event.noise_multiplier)


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
    noise_multiplier = min(event.noise_multiplier, _MOST_RANDOMIZED_NOISE)
    curves = make_curves(inflation(event.probes, event.shares), noise_multiplier, probability)
    return curves, largest_loss(curves, _largest_loss(noise_multiplier, probability))


def _step(leaf: DpEvent, count: int, interval: float) -> tuple[StepLoss, int]:
    """A leaf's losses and how often they are taken."""
    if isinstance(leaf, dp_accounting.GaussianDpEvent):
        # Gaussian releases compose to one with less noise, without rounding errors.
        return _step_distribution(_together(leaf, count), interval), 1
    try:
        return _step_distribution(leaf, interval), count
    except TypeError as error:
        # Events that hold lists cannot be kept.
        if "unhashable" not in str(error):
            raise
        return _step_distribution.__wrapped__(leaf, interval), count


def _together(leaf: dp_accounting.GaussianDpEvent, count: int) -> dp_accounting.GaussianDpEvent:
    """Full-batch Gaussian releases as one."""
    return dp_accounting.GaussianDpEvent(leaf.noise_multiplier / math.sqrt(count))


@functools.lru_cache(maxsize=_KEPT)
def _step_distribution(leaf: DpEvent, interval: float) -> StepLoss:
    release = randomized_release(leaf)
    if release is not None and _discloses(release[0].noise_multiplier, release[1]):
        return sampled_gaussian(0.0, release[1], interval)
    if release is not None:
        return _losses(loss_distribution(*_randomized_curves(leaf), interval), _BUILDING_ERROR * release[1])
    if is_sampled_gaussian(leaf):
        probability, noise_multiplier = _sampled_gaussian(leaf)
        return sampled_gaussian(noise_multiplier, probability, interval)
    return _losses(_built(leaf, interval), _BUILDING_ERROR)


def _built(leaf: Any, interval: float) -> pld.PrivacyLossDistribution:
    """The distribution of one release that dp_accounting builds; not composed by it."""
    fields = attr.asdict(leaf, recurse=False)
    grid: dict[str, Any] = {"value_discretization_interval": interval}
    match leaf:
        case dp_accounting.TruncatedSubsampledGaussianDpEvent():
            noise = min(fields.pop("noise_multiplier"), _MOST_BUILT_NOISE)
            return pld.from_truncated_subsampled_gaussian_mechanism(noise_multiplier=noise, **grid, **fields)
        case dp_accounting.dp_event.DiscreteLaplaceDpEvent():
            return pld.from_discrete_laplace_mechanism(leaf.noise_parameter, leaf.sensitivity, **grid)
        case dp_accounting.dp_event.MixtureOfGaussiansDpEvent():
            noise = min(leaf.standard_deviation, _MOST_BUILT_NOISE * max(map(abs, leaf.sensitivities)))
            return pld.from_mixture_gaussian_mechanism(noise, leaf.sensitivities, leaf.sampling_probs, **grid)
        case dp_accounting.LaplaceDpEvent():
            return pld.from_laplace_mechanism(leaf.noise_multiplier, **grid)
    probability = fields["sampling_probability"]
    return pld.from_laplace_mechanism(fields["event"].noise_multiplier, sampling_prob=probability, **grid)


def _losses(distribution: pld.PrivacyLossDistribution, error: float) -> StepLoss:
    """A distribution of dp_accounting as losses in both directions, each with an error of its curve."""

    def one_way(pmf) -> Losses:
        dense = pmf.to_dense_pmf()
        masses = np.asarray(dense._probs, dtype=np.float64)
        kept = np.flatnonzero(masses > 0)
        if len(kept) == 0:
            return Losses(np.zeros(1, dtype=np.int64), np.zeros(1), float(dense._infinity_mass) + error)
        return Losses(kept + int(dense._lower_loss), masses[kept] * _GROWTH, float(dense._infinity_mass) + error)

    return StepLoss(one_way(distribution._pmf_remove), one_way(distribution._pmf_add))


def _discretization_interval(leaves: Leaves) -> float:
    """A fixed share of the root mean square loss of a step, within limits that keep the grid small."""
    spreads, counts, finest = [], [], 0.0
    for leaf, count in leaves:
        if isinstance(leaf, dp_accounting.GaussianDpEvent):
            leaf, count = _together(leaf, count), 1
        spread, smallest = _grid_of(leaf)
        if math.isinf(smallest):
            return math.inf  # No grid holds it.
        spreads.append(spread)
        counts.append(float(count))
        finest = max(finest, smallest)
    largest = max(spreads)
    shares = np.array(counts) / max(counts)
    typical = largest * math.sqrt(float(shares @ np.square(np.array(spreads) / largest) / shares.sum()))
    interval = max(min(typical / _INTERVALS_PER_LOSS, 1e-3), finest, 1e-300)
    # A power of two: plans that differ little share the distributions that are kept.
    return 2.0 ** math.floor(math.log2(interval))


def _grid_of(leaf: Any) -> tuple[float, float]:
    """The typical loss of one release, and the smallest interval with which a grid can hold its losses."""
    release = randomized_release(leaf)
    if release is not None:
        noise_multiplier, probability = min(release[0].noise_multiplier, _MOST_RANDOMIZED_NOISE), release[1]
        if _discloses(noise_multiplier, probability):
            return probability, 0.0
        # The spread without the rare large factors: they need room, not resolution.
        spread = _spread(noise_multiplier, probability) * _INTERVALS_PER_LOSS / _INTERVALS_PER_RANDOMIZED_LOSS
        return spread, _randomized_curves(leaf)[1] / _LARGEST_RANDOMIZED_GRID
    if is_sampled_gaussian(leaf):
        probability, noise_multiplier = _sampled_gaussian(leaf)
        if noise_multiplier < LEAST_NOISE:
            # Its losses are infinite or tiny.
            return probability, 0.0
        reach = min(_largest_loss(noise_multiplier, probability), LARGEST_LOSS)
        return min(_spread(noise_multiplier, probability), reach), reach / _LARGEST_GRID
    spread, reach = _INTERVALS_PER_LOSS * 1e-4, 0.0  # The interval that dp_accounting uses.
    match leaf:
        case dp_accounting.TruncatedSubsampledGaussianDpEvent():
            noise = min(leaf.noise_multiplier, _MOST_BUILT_NOISE)
            # An example that pushes out another moves the sum by two.
            reach = _largest_loss(noise / 2, 1.0)
            spread = min(_spread(noise, leaf.sampling_probability), reach)
        case dp_accounting.dp_event.MixtureOfGaussiansDpEvent():
            reach = _largest_loss(leaf.standard_deviation / max(map(abs, leaf.sensitivities)), 1.0)
        case dp_accounting.dp_event.DiscreteLaplaceDpEvent():
            reach = leaf.noise_parameter * leaf.sensitivity
        case dp_accounting.LaplaceDpEvent():
            reach = 1 / max(leaf.noise_multiplier, 1e-300)
        case dp_accounting.PoissonSampledDpEvent(event=dp_accounting.LaplaceDpEvent(noise_multiplier=noise)):
            reach = 1 / max(noise, 1e-300)
    return spread, math.inf if reach > _LARGEST_BUILT_LOSS else reach / _LARGEST_BUILT_GRID


def _discloses(noise_multiplier: float, sampling_probability: float) -> bool:
    """Whether there is so little noise that whoever is drawn counts as disclosed."""
    return _largest_loss(noise_multiplier, sampling_probability) > LARGEST_LOSS


def _spread(noise_multiplier: float, sampling_probability: float) -> float:
    """Root mean square of the loss of a sampled Gaussian release, roughly."""
    s = 1 / min(max(noise_multiplier, 0.1), MOST_NOISE)
    return sampling_probability * s * (math.sqrt(math.expm1(min(s * s, 50.0))) / s if s > 1e-6 else 1.0)


def _largest_loss(noise_multiplier: float, sampling_probability: float) -> float:
    """Privacy loss of a Poisson-sampled Gaussian ten standard deviations out."""
    s = 1 / min(max(noise_multiplier, 1e-100), MOST_NOISE)
    return sampled_loss(s + 10.0, s, sampling_probability)
