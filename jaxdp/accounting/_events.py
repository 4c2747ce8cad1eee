"""What a run releases, as `dp_accounting` events: the vocabulary the accountants are fed with.

Batches of a fixed padded shape cannot hold an arbitrarily large Poisson sample, so a run whose padded batch
is smaller than the data set runs *truncated* Poisson sampling: an overflowing sample is cut to a uniformly
random subset. `TruncatedPoissonDpEvent` says so. The accountants of `dp_accounting` do not know it and refuse
it, so the truncation cannot be forgotten; `jaxdp.accounting` bounds it (see `jaxdp.accounting._accountant`).
"""

import math
from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

import attr
import dp_accounting
from dp_accounting import DpEvent
from scipy import stats

from jaxdp.accounting._randomized_event import RandomizedGaussianDpEvent

# Noise multipliers outside of this overflow when they are squared or divided by. More noise counts as the most, less
# as the least: at both, the guarantee is what it is beyond, up to numbers that nobody can tell apart.
LEAST, MOST = 1e-150, 1e150


@runtime_checkable
class Clipping(Protocol):
    """Anything that bounds what one example contributes and knows the event of one noisy release of it."""

    def dp_event(self, noise_multiplier: float) -> DpEvent:
        """The event of one release of the clipped sum plus Gaussian noise.

        Args:
            noise_multiplier: standard deviation of the noise divided by the sensitivity of the clipped sum.

        Returns:
            The event of the release on the batch it is given, before any amplification by sampling.
        """
        ...


@runtime_checkable
class Sampling(Protocol):
    """Anything that draws batches and knows the event of repeating a step on them."""

    @property
    def description(self) -> str:
        """How batches are drawn, in words."""
        ...

    @property
    def num_examples(self) -> int:
        """Number of examples; public."""
        ...

    @property
    def sampling_probability(self) -> float:
        """Bound on the probability that an example is drawn in a step."""
        ...

    @property
    def expected_batch_size(self) -> float:
        """Mean number of examples drawn in a step."""
        ...

    @property
    def padded_batch_size(self) -> int:
        """Most examples that a batch can hold."""
        ...

    def event(self, step_event: DpEvent, num_steps: int) -> DpEvent:
        """The event of `num_steps` releases of `step_event`, each on a batch of its own."""
        ...


@attr.s(frozen=True, slots=True, auto_attribs=True)
class TruncatedPoissonDpEvent(DpEvent):
    """One release on a Poisson sample that is cut to a uniformly random subset when it is too large.

    Each of `dataset_size` examples is drawn independently with `sampling_probability`; if more than
    `truncated_batch_size` are drawn, a uniformly random subset of that size is kept; then `event` runs on it.

    Attributes:
        dataset_size: number of examples; the guarantee is against data sets with one more or one less.
        sampling_probability: upper bound on the probability that an example is drawn.
        truncated_batch_size: largest number of examples kept.
        event: the release on the kept examples; any event.

    References:
        L. Chua et al., *Scalable DP-SGD: Shuffling vs. Poisson Subsampling*, 2024,
        https://arxiv.org/abs/2411.04205 *Tighter Privacy Analysis for Truncated Poisson Sampling*, 2025,
        https://arxiv.org/abs/2508.15089
    """

    dataset_size: int
    sampling_probability: float
    truncated_batch_size: int
    event: DpEvent


def checked_clipping(clip: object) -> Clipping:
    """The argument, which must be able to say what one release of it is."""
    if not isinstance(clip, Clipping):
        raise TypeError(
            f"clip must have a method dp_event(noise_multiplier), got {type(clip).__name__}; "
            "pass what jaxdp.transforms.clip(...) returns."
        )
    return clip


def overflow_probability(num_examples: int, sampling_probability: float | int, batch_size: int) -> float:
    r"""Probability that a Poisson sample holds more than `batch_size` examples.

    $$P[\mathrm{Bin}(n, q) > B]$$

    Args:
        num_examples: $n$, the number of examples.
        sampling_probability: $q$, the probability that each is drawn.
        batch_size: $B$, the largest sample that does not overflow.

    Returns:
        The upper tail of the binomial distribution, accurate far below 1e-100.

    Example:
        >>> overflow_probability(100, 0.5, 100)
        0.0
    """
    if batch_size >= num_examples:
        return 0.0
    return float(stats.binom.sf(batch_size, num_examples, sampling_probability))


def flatten(event: DpEvent) -> tuple[tuple[DpEvent, int], ...]:
    """The leaves of a composed event with their counts, equal ones merged and in order of first
    appearance."""
    merged: dict[str, tuple[DpEvent, int]] = {}
    for leaf, count in _leaves(event, 1):
        name = repr(leaf)
        merged[name] = (leaf, count + merged.get(name, (leaf, 0))[1])
    return tuple(merged.values())


def is_non_private(event: DpEvent) -> bool:
    """Whether a leaf gives no privacy at all."""
    if isinstance(event, dp_accounting.NonPrivateDpEvent):
        return True
    if isinstance(event, dp_accounting.PoissonSampledDpEvent | TruncatedPoissonDpEvent):
        return is_non_private(event.event)
    if isinstance(event, dp_accounting.SelfComposedDpEvent):
        return is_non_private(event.event)
    if isinstance(event, dp_accounting.ComposedDpEvent):
        return any(map(is_non_private, event.events))
    if isinstance(event, dp_accounting.dp_event.MixtureOfGaussiansDpEvent):
        return event.standard_deviation == 0 and any(event.sensitivities)
    return getattr(event, "noise_multiplier", None) == 0


def randomized_releases(event: DpEvent) -> Iterator[RandomizedGaussianDpEvent]:
    """Every release with estimated norms inside an event."""
    if isinstance(event, RandomizedGaussianDpEvent):
        yield event
    inside = [*getattr(event, "events", ()), getattr(event, "event", None)]
    for part in inside:
        if part is not None:
            yield from randomized_releases(part)


def _leaves(event: DpEvent, count: int) -> Iterator[tuple[DpEvent, int]]:
    if isinstance(event, dp_accounting.NoOpDpEvent) or count == 0:
        return
    if isinstance(event, dp_accounting.SelfComposedDpEvent):
        yield from _leaves(event.event, count * event.count)
    elif isinstance(event, dp_accounting.ComposedDpEvent):
        for part in event.events:
            yield from _leaves(part, count)
    elif isinstance(event, dp_accounting.PoissonSampledDpEvent):
        if event.sampling_probability == 1:
            yield from _leaves(event.event, count)
        elif event.sampling_probability > 0:
            yield attr.evolve(event, event=_joint_gaussian(event.event)), count
    elif isinstance(event, TruncatedPoissonDpEvent):
        yield attr.evolve(event, event=_joint_gaussian(event.event)), count
    else:
        yield event, count


def _joint_gaussian(event: DpEvent) -> DpEvent:
    """Several Gaussian releases on the same sample as the one Gaussian release they are; others unchanged."""
    try:
        # hypot neither overflows nor underflows where squares would.
        inverse = math.hypot(*_gaussian_inverses(event, 1))
    except (TypeError, OverflowError):
        return event
    return dp_accounting.GaussianDpEvent(1 / inverse) if inverse else dp_accounting.NoOpDpEvent()


def _gaussian_inverses(event: DpEvent, count: int) -> Iterable[float]:
    """sqrt(count)/noise_multiplier of every release inside; TypeError if one is not Gaussian (or has no noise)."""
    if isinstance(event, dp_accounting.NoOpDpEvent) or count == 0:
        return
    if isinstance(event, dp_accounting.SelfComposedDpEvent):
        yield from _gaussian_inverses(event.event, count * event.count)
    elif isinstance(event, dp_accounting.ComposedDpEvent):
        for part in event.events:
            yield from _gaussian_inverses(part, count)
    elif isinstance(event, dp_accounting.GaussianDpEvent) and event.noise_multiplier > 0:
        # Infinite noise, the product of two large numbers, counts as very much.
        yield math.sqrt(count) / min(max(event.noise_multiplier, LEAST), MOST)
    else:
        raise TypeError
