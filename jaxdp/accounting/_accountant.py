r"""Epsilon and delta of an event, by several accountants, under add-or-remove-one adjacency.

**Every answer is an upper bound.** `"pld"` composes privacy loss distributions and adds a bound on its rounding error
to delta (`jaxdp.accounting._fourier`); `"rdp"` composes Rényi divergences, rounded up (`jaxdp.accounting._renyi`). Both
hold for the same run, so asked for `"pld"` the smaller of the two is reported. That is `"pld"` nearly always, and
`"rdp"` where there are so many steps that rounding would cost more than it. `guarantee` says which.

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

import dataclasses
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
from jaxdp.accounting._step_loss import LARGEST_LOSS

ACCOUNTANTS = ("pld", "rdp")

# The step distributions that dp_accounting builds, and laws of estimated norms, have tails of 1e-16: below this,
# epsilon would be infinite for them.
SMALLEST_PLD_DELTA = 1e-13

# Above this share of delta the looser treatment of truncation is worth improving on.
_NEGLIGIBLE_SHARE = 1e-3


@dataclasses.dataclass(frozen=True)
class Guarantee:
    r"""An event's $(\epsilon, \delta)$ and where it comes from. `guarantee` makes one.

    Attributes:
        epsilon: at least 0, perhaps infinite.
        delta: between 0 and 1.
        accountant: whose bound it is, `"pld"` or `"rdp"`: the smallest of those that were asked.
    """

    epsilon: float
    delta: float
    accountant: str


def guarantee(
    event: DpEvent,
    *,
    delta: float | int | None = None,
    epsilon: float | int | None = None,
    accountant: str = "pld",
) -> Guarantee:
    r"""What `epsilon_of` (given delta) or `delta_of` (given epsilon) reports, and whose bound that is.

    Args:
        event: everything that the run releases, as for `epsilon_of`.
        delta: probability in (0, 1); either this or epsilon.
        epsilon: non-negative; either this or delta.
        accountant: `"pld"`, which is the smaller bound of both accountants, or `"rdp"` alone.

    Returns:
        The guarantee, with the name of the accountant whose bound was the smallest.

    Raises:
        ValueError: both or neither of delta and epsilon, and what `epsilon_of` and `delta_of` raise.

    Example:
        >>> import dp_accounting
        >>> step = dp_accounting.PoissonSampledDpEvent(1e-12, dp_accounting.GaussianDpEvent(1.0))
        >>> guarantee(dp_accounting.SelfComposedDpEvent(step, 1000), delta=1e-6).accountant
        'pld'
        >>> guarantee(dp_accounting.SelfComposedDpEvent(step, 10**20), delta=1e-6).accountant  # too many to compose
        'rdp'
    """
    if (delta is None) == (epsilon is None):
        raise ValueError("give either delta or epsilon, not both.")
    if delta is not None:
        check_delta(delta, accountant)
        found, source = _solve_epsilon(_checked_leaves(event, accountant), float(delta), accountant)
        return Guarantee(found, float(delta), source)
    assert epsilon is not None
    if not epsilon >= 0:
        raise ValueError(f"epsilon must be at least 0, got {epsilon}.")
    check_accountant(accountant)
    # Infinity and what is next to it are the same.
    found, source = _solve_delta(_checked_leaves(event, accountant), min(float(epsilon), 1e300), accountant)
    return Guarantee(float(epsilon), min(1.0, found), source)


def epsilon_of(event: DpEvent, delta: float | int, accountant: str = "pld") -> float:
    r"""Smallest epsilon at which an event is known to be $(\epsilon, \delta)$-DP.

    Adjacency: data sets that differ by adding or removing one example.

    Args:
        event: everything that the run releases, e.g. `sampling.event(clip.dp_event(noise_multiplier),
            num_steps)`; several phases as a `dp_accounting.ComposedDpEvent`.
        delta: probability in (0, 1).
        accountant: `"pld"` (tight; the bound of `"rdp"` where that is smaller) or `"rdp"` alone.

    Returns:
        An upper bound on epsilon, `inf` where the event gives no guarantee at this delta. `guarantee` says which
        accountant it comes from.

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
    return guarantee(event, delta=delta, accountant=accountant).epsilon


def delta_of(event: DpEvent, epsilon: float | int, accountant: str = "pld") -> float:
    r"""Smallest delta at which an event is known to be $(\epsilon, \delta)$-DP.

    Args:
        event: everything that the run releases, as for `epsilon_of`.
        epsilon: non-negative.
        accountant: `"pld"` (tight; the bound of `"rdp"` where that is smaller) or `"rdp"` alone.

    Returns:
        An upper bound on delta, at most 1. `guarantee` says which accountant it comes from.

    Raises:
        ValueError: epsilon or accountant out of range, or an event that the accountant does not support.

    Example:
        >>> import dp_accounting
        >>> delta_of(dp_accounting.GaussianDpEvent(2.0), epsilon=3.0) < 1e-6
        True
    """
    return guarantee(event, epsilon=epsilon, accountant=accountant).delta


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
    randomized = any(True for leaf, _ in leaves for _ in randomized_releases(leaf))
    for leaf, _ in leaves:
        if randomized:
            _check_with_randomized(leaf, accountant)
        elif not _supports(accountant, _without_truncation(leaf)):
            raise ValueError(
                f"event {leaf} is not supported by accountant {accountant!r}; use a Gaussian step event, "
                f"or the other accountant of {', '.join(map(repr, ACCOUNTANTS))}."
            )
    return leaves


def _supports(accountant: str, leaf: DpEvent) -> bool:
    """Whether an accountant knows a leaf."""
    if has_own_distribution(leaf) and accountant == "pld":
        return True
    return (RdpAccountant() if accountant == "rdp" else PLDAccountant()).supports(leaf)


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


def _solve_epsilon(leaves: Leaves, delta: float, accountant: str) -> tuple[float, str]:
    try:
        return _cached_epsilon(leaves, delta, accountant)
    except TypeError as error:
        # Events that hold lists cannot be cached.
        if "unhashable" not in str(error):
            raise
        return _cached_epsilon.__wrapped__(leaves, delta, accountant)


@functools.lru_cache(maxsize=4096)
def _cached_epsilon(leaves: Leaves, delta: float, accountant: str) -> tuple[float, str]:
    """The smallest epsilon of the accountants that can be asked, and whose it is."""
    if any(is_non_private(leaf) for leaf, _ in leaves):
        return math.inf, accountant
    if not leaves:
        return 0.0, accountant
    found = [(_epsilon_by(leaves, delta, name), name) for name in _asked(leaves, accountant)]
    epsilon, source = min(found, key=lambda pair: pair[0])
    if accountant == "pld" and epsilon > LARGEST_LOSS:
        return math.inf, accountant  # It protects nobody.
    return epsilon, source


def _solve_delta(leaves: Leaves, epsilon: float, accountant: str) -> tuple[float, str]:
    if any(is_non_private(leaf) for leaf, _ in leaves):
        return 1.0, accountant
    if not leaves:
        return 0.0, accountant
    found = [(_delta_by(leaves, epsilon, name), name) for name in _asked(leaves, accountant)]
    return min(found, key=lambda pair: pair[0])


def _asked(leaves: Leaves, accountant: str) -> tuple[str, ...]:
    """The accountants whose bounds count: the one that was named first."""
    if accountant == "pld" and all(_supports("rdp", _without_truncation(leaf)) for leaf, _ in leaves):
        return "pld", "rdp"
    return (accountant,)


def _epsilon_by(leaves: Leaves, delta: float, accountant: str) -> float:
    overflow = _overflow(leaves)
    profile = compose(_replace(leaves, _without_truncation), accountant)
    epsilon = _epsilon_with_overflow(profile, delta, overflow)
    if _overflow_cost(epsilon, overflow) <= _NEGLIGIBLE_SHARE * delta:
        return epsilon
    direct = [profile.epsilon(delta) for profile in _direct_profiles(leaves, accountant)]
    return min(epsilon, max(direct, default=math.inf))


def _delta_by(leaves: Leaves, epsilon: float, accountant: str) -> float:
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
