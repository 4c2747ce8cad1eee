r"""Epsilon and delta of an event, through the accountants of `dp_accounting` under add-or-remove-one
adjacency.

**Truncated Poisson sampling.** Let $p$ be the probability that any sample of the whole run overflows, bounded
by the sum over steps of $P[\mathrm{Bin}(n+1, q) > B]$ ($n+1$ because the neighbour may be the larger one). A
run with truncation and one without differ only when a sample overflows, so each output set's probability
differs by at most $p$, on both data sets. If the run without truncation is $(\epsilon,
\delta_0(\epsilon))$-DP, the run with it is

$$\left(\epsilon,\; \delta_0(\epsilon) + (1 + e^{\epsilon})\, p\right)\text{-DP}$$

(Chua et al. 2024, https://arxiv.org/abs/2411.04205). This holds for every step event and both accountants and
costs one binomial tail; the default padding of `jaxdp.sampling` makes it invisible. Where the term costs more
than a thousandth of delta, the step is Gaussian and the accountant is PLD, the tighter analysis of
https://arxiv.org/abs/2508.15089 is computed as well, against the smaller and the larger neighbour, and the
smaller of the two epsilons counts: both are upper bounds for the same run. It is not used throughout because
it takes two to four times as long and changes nothing then.
"""

import functools
import math
from collections.abc import Callable, Sequence

import attr
import dp_accounting
from dp_accounting import DpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from jaxdp.accounting._composition import Leaves, Profile, compose, has_own_distribution
from jaxdp.accounting._events import (
    Sampling,
    TruncatedPoissonDpEvent,
    flatten,
    is_non_private,
    overflow_probability,
    randomized_releases,
)

ACCOUNTANTS = ("pld", "rdp")

# dp_accounting cuts 1e-15 of tail mass per composition and counts it as delta: below this, epsilon would be
# infinite.
SMALLEST_PLD_DELTA = 1e-13

# Above this share of delta the looser treatment of truncation is worth improving on.
_NEGLIGIBLE_SHARE = 1e-3


def epsilon_of(event: DpEvent, delta: float | int, accountant: str = "pld") -> float:
    r"""Smallest epsilon at which an event is known to be $(\epsilon, \delta)$-DP.

    Adjacency: data sets that differ by adding or removing one example.

    Args:
        event: everything that the run releases, e.g. `sampling.event(clip.dp_event(noise_multiplier),
            num_steps)`; several phases as a `dp_accounting.ComposedDpEvent`.
        delta: probability in (0, 1).
        accountant: `"pld"` (tight) or `"rdp"`.

    Returns:
        An upper bound on epsilon, `inf` where the event gives no guarantee at this delta.

    Raises:
        ValueError: delta or accountant out of range, or an event that the accountant does not support.

    Example:
        >>> import dp_accounting
        >>> round(epsilon_of(dp_accounting.GaussianDpEvent(2.0), delta=1e-5), 2)
        1.99

    References:
        Y. Koskela et al., *Computing Tight Differential Privacy Guarantees Using FFT*, 2020,
        https://arxiv.org/abs/1906.03049; I. Mironov, *Rényi Differential Privacy*, 2017,
        https://arxiv.org/abs/1702.07476
    """
    check_delta(delta, accountant)
    return _solve_epsilon(_checked_leaves(event, accountant), float(delta), accountant)


def delta_of(event: DpEvent, epsilon: float | int, accountant: str = "pld") -> float:
    r"""Smallest delta at which an event is known to be $(\epsilon, \delta)$-DP.

    Args:
        event: everything that the run releases, as for `epsilon_of`.
        epsilon: non-negative.
        accountant: `"pld"` (tight) or `"rdp"`.

    Returns:
        An upper bound on delta, at most 1.

    Raises:
        ValueError: epsilon or accountant out of range, or an event that the accountant does not support.

    Example:
        >>> import dp_accounting
        >>> delta_of(dp_accounting.GaussianDpEvent(2.0), epsilon=3.0) < 1e-6
        True
    """
    if not epsilon >= 0:
        raise ValueError(f"epsilon must be at least 0, got {epsilon}.")
    check_accountant(accountant)
    return min(1.0, _solve_delta(_checked_leaves(event, accountant), float(epsilon), accountant))


def epsilon_curve(
    event_for_steps: Callable[[int], DpEvent] | tuple[Sampling, DpEvent],
    steps: Sequence[int],
    delta: float | int,
    accountant: str = "pld",
) -> list[float]:
    """Epsilon spent after each of several numbers of steps, for plots and progress bars.

    Args:
        event_for_steps: the event of the first k steps as a function of k, or a pair (sampling, event of one
            step).
        steps: numbers of steps, each at least 0.
        delta: probability in (0, 1).
        accountant: `"pld"` or `"rdp"`.

    Returns:
        One epsilon per entry of `steps`.

    Raises:
        ValueError: a negative number of steps, and what `epsilon_of` raises.

    Example:
        >>> from dp_accounting import GaussianDpEvent
        >>> from jaxdp.sampling import FullBatch
        >>> spent = epsilon_curve((FullBatch(100), GaussianDpEvent(9.0)), steps=[0, 1, 4], delta=1e-5)
        >>> [round(value, 2) for value in spent]
        [0.0, 0.38, 0.81]
    """
    if isinstance(event_for_steps, tuple):
        sampling, step_event = event_for_steps
        make_event = functools.partial(sampling.event, step_event)
    else:
        make_event = event_for_steps
    if any(step < 0 for step in steps):
        raise ValueError(f"steps must be numbers of steps of at least 0, got {min(steps)}.")
    check_delta(delta, accountant)
    return [0.0 if step == 0 else epsilon_of(make_event(step), delta, accountant) for step in steps]


def check_accountant(accountant: str) -> None:
    """Refuse an unknown accountant."""
    if accountant not in ACCOUNTANTS:
        raise ValueError(f"accountant must be one of {', '.join(map(repr, ACCOUNTANTS))}, got {accountant!r}.")


def check_delta(delta: float | int, accountant: str) -> None:
    """Refuse a delta that is no probability, or that the accountant cannot resolve."""
    check_accountant(accountant)
    if not 0 < delta < 1:
        raise ValueError(f"delta must be above 0 and below 1, best below 1/number of examples, got {delta}.")
    if accountant == "pld" and delta < SMALLEST_PLD_DELTA:
        raise ValueError(
            f"delta {delta} is below the {SMALLEST_PLD_DELTA} that accountant 'pld' resolves; use accountant='rdp'."
        )


def _checked_leaves(event: DpEvent, accountant: str) -> Leaves:
    """The leaves of an event, each supported by the accountant."""
    leaves = flatten(event)
    judge = RdpAccountant() if accountant == "rdp" else PLDAccountant()
    randomized = any(True for leaf, _ in leaves for _ in randomized_releases(leaf))
    for leaf, _ in leaves:
        if randomized:
            _check_with_randomized(leaf, accountant)
        elif not judge.supports(_without_truncation(leaf)):
            raise ValueError(
                f"event {leaf} is not supported by accountant {accountant!r}; use a Gaussian step event, "
                f"or the other accountant of {', '.join(map(repr, ACCOUNTANTS))}."
            )
    return leaves


def _check_with_randomized(leaf: DpEvent, accountant: str) -> None:
    """Refuse to account for estimated norms, and for what goes with them, in a way that has not been analysed."""
    if accountant == "rdp":
        raise ValueError(
            "accountant 'rdp' cannot account for clipping by estimated norms: the Rényi divergence is infinite at "
            "every order; use accountant='pld'."
        )
    if has_own_distribution(_without_truncation(leaf)) or isinstance(leaf, dp_accounting.NonPrivateDpEvent):
        return
    if any(True for _ in randomized_releases(leaf)):
        raise ValueError(
            f"event {leaf} has not been analysed: a release with estimated norms must be alone on its Poisson sample "
            "or its full batch; use exact norms here."
        )
    raise ValueError(
        f"event {leaf} cannot be composed with releases whose norms are estimated; use Gaussian steps, or exact norms."
    )


def _solve_epsilon(leaves: Leaves, delta: float, accountant: str) -> float:
    try:
        return _cached_epsilon(leaves, delta, accountant)
    except TypeError as error:
        # Events that hold lists cannot be cached.
        if "unhashable" not in str(error):
            raise
        return _cached_epsilon.__wrapped__(leaves, delta, accountant)


@functools.lru_cache(maxsize=4096)
def _cached_epsilon(leaves: Leaves, delta: float, accountant: str) -> float:
    if any(is_non_private(leaf) for leaf, _ in leaves):
        return math.inf
    if not leaves:
        return 0.0
    overflow = _overflow(leaves)
    profile = compose(_replace(leaves, _without_truncation), accountant)
    epsilon = _epsilon_with_overflow(profile, delta, overflow)
    if _overflow_cost(epsilon, overflow) <= _NEGLIGIBLE_SHARE * delta:
        return epsilon
    direct = [profile.epsilon(delta) for profile in _direct_profiles(leaves, accountant)]
    return min(epsilon, max(direct, default=math.inf))


def _solve_delta(leaves: Leaves, epsilon: float, accountant: str) -> float:
    if any(is_non_private(leaf) for leaf, _ in leaves):
        return 1.0
    if not leaves:
        return 0.0
    cost = _overflow_cost(epsilon, _overflow(leaves))
    delta = compose(_replace(leaves, _without_truncation), accountant).delta(epsilon)
    if cost <= _NEGLIGIBLE_SHARE * delta:
        return delta + cost
    direct = [profile.delta(epsilon) for profile in _direct_profiles(leaves, accountant)]
    return min(delta + cost, max(direct, default=math.inf))


def _epsilon_with_overflow(profile: Profile, delta: float, overflow: float) -> float:
    """Smallest epsilon with delta_0(epsilon) + (1 + e^epsilon) overflow <= delta, to 1e-7 relative."""
    epsilon = profile.epsilon(delta)
    if overflow == 0 or math.isinf(epsilon):
        return epsilon
    for _ in range(100):
        left = delta - _overflow_cost(epsilon, overflow)
        if left <= 0:
            break
        needed = profile.epsilon(left)
        if needed <= epsilon:
            return epsilon
        # A step slightly too far ends the loop on the safe side.
        epsilon = needed * (1 + 1e-7)
    return math.inf


def _overflow_cost(epsilon: float, overflow: float) -> float:
    """What truncation adds to delta."""
    if overflow == 0:
        return 0.0
    return math.inf if epsilon > 700 else overflow * (1 + math.exp(epsilon))


def _overflow(leaves: Leaves) -> float:
    """Bound on the probability that any sample of the run overflows, on either of two neighbours."""
    return math.fsum(
        count * overflow_probability(leaf.dataset_size + 1, leaf.sampling_probability, leaf.truncated_batch_size)
        for leaf, count in leaves
        if isinstance(leaf, TruncatedPoissonDpEvent)
    )


def _replace(leaves: Leaves, change: Callable[[DpEvent], DpEvent]) -> Leaves:
    return tuple((change(leaf), count) for leaf, count in leaves)


def _without_truncation(leaf: DpEvent) -> DpEvent:
    """The same step with room for every sample."""
    if not isinstance(leaf, TruncatedPoissonDpEvent):
        return leaf
    return dp_accounting.PoissonSampledDpEvent(leaf.sampling_probability, leaf.event)


def _direct_profiles(leaves: Leaves, accountant: str) -> list[Profile]:
    """The direct analysis of truncation against the larger and the smaller neighbour; empty if none."""
    truncated = [leaf for leaf, _ in leaves if isinstance(leaf, TruncatedPoissonDpEvent)]
    if accountant != "pld" or not all(isinstance(leaf.event, dp_accounting.GaussianDpEvent) for leaf in truncated):
        return []
    # The analysis is of a pair of data sets, named by the size of the larger.
    return [
        compose(_replace(leaves, functools.partial(_directly_truncated, extra=extra)), accountant) for extra in (0, 1)
    ]


def _directly_truncated(leaf: DpEvent, extra: int) -> DpEvent:
    if not isinstance(leaf, TruncatedPoissonDpEvent):
        return leaf
    return dp_accounting.TruncatedSubsampledGaussianDpEvent(
        dataset_size=leaf.dataset_size + extra,
        sampling_probability=leaf.sampling_probability,
        truncated_batch_size=leaf.truncated_batch_size,
        noise_multiplier=attr.asdict(leaf.event)["noise_multiplier"],
    )
