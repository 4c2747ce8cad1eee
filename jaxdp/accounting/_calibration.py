"""The noise multiplier that meets a privacy target, and epsilon of a plan given by its numbers."""

import math
from collections.abc import Callable

import dp_accounting
from dp_accounting import DpEvent
from scipy import optimize

from jaxdp.accounting._accountant import check_delta, epsilon_of
from jaxdp.accounting._events import checked_clipping

# Relative tolerance on the noise multiplier.
_TOLERANCE = 4e-5
_SMALLEST, _LARGE, _LARGEST = 2.0**-5, 2.0**24, 2.0**60
_LARGEST_TARGET = 1e4


def epsilon(
    *,
    clip: object,
    noise_multiplier: float | int,
    delta: float | int,
    sampling_probability: float | int,
    num_steps: int,
    accountant: str = "pld",
) -> float:
    r"""Epsilon of DP-SGD with Poisson sampling, under add-or-remove-one adjacency.

    The event is `num_steps` adaptive compositions of `clip.dp_event(noise_multiplier)` on Poisson samples of
    probability `sampling_probability`. It describes samples that always fit the batch; a run with a padded
    batch has the event `sampling.event(clip.dp_event(noise_multiplier), num_steps)` for `epsilon_of`, which
    counts what overflow costs (nothing that shows with the default padding of `jaxdp.sampling`).

    Args:
        clip: the clipping, e.g. of `jaxdp.transforms.clip`.
        noise_multiplier: standard deviation of the noise divided by the sensitivity; 0 gives `inf`.
        delta: probability in (0, 1), best below one over the number of examples.
        sampling_probability: probability in (0, 1] that an example is in a batch; 1 is full-batch training.
        num_steps: number of noisy steps.
        accountant: `"pld"` (tight) or `"rdp"`.

    Returns:
        An upper bound on epsilon.

    Raises:
        ValueError: an argument out of range.
        TypeError: `clip` has no `dp_event`.

    Example:
        >>> class Clip:
        ...     def dp_event(self, noise_multiplier):
        ...         return dp_accounting.GaussianDpEvent(noise_multiplier)
        >>> spent = epsilon(
        ...     clip=Clip(), noise_multiplier=0.93, delta=1e-5, sampling_probability=0.01, num_steps=2000)
        >>> round(spent, 2)
        3.0

    References:
        M. Abadi et al., *Deep Learning with Differential Privacy*, 2016, https://arxiv.org/abs/1607.00133
    """
    if not 0 <= noise_multiplier < math.inf:
        raise ValueError(f"noise_multiplier must be at least 0 and finite, got {noise_multiplier}.")
    make_event = _poisson_plan(clip, sampling_probability, num_steps)
    check_delta(delta, accountant)
    return math.inf if noise_multiplier == 0 else epsilon_of(make_event(noise_multiplier), delta, accountant)


def calibrate_noise_multiplier(
    *,
    clip: object,
    target_epsilon: float | int,
    delta: float | int,
    sampling_probability: float | int,
    num_steps: int,
    accountant: str = "pld",
) -> float:
    """Smallest noise multiplier with which DP-SGD on Poisson samples stays within a privacy budget.

    Args:
        clip: the clipping, e.g. of `jaxdp.transforms.clip`.
        target_epsilon: the budget, above 0.
        delta: probability in (0, 1), best below one over the number of examples.
        sampling_probability: probability in (0, 1] that an example is in a batch.
        num_steps: number of noisy steps.
        accountant: `"pld"` (tight) or `"rdp"`.

    Returns:
        A noise multiplier whose epsilon is at most `target_epsilon`, within 1e-3 relative of the smallest, or 1/32
        where less would do.

    Raises:
        ValueError: an argument out of range, a target above 10,000, or one that no noise multiplier meets.
        TypeError: `clip` has no `dp_event`.

    Example:
        >>> class Clip:
        ...     def dp_event(self, noise_multiplier):
        ...         return dp_accounting.GaussianDpEvent(noise_multiplier)
        >>> sigma = calibrate_noise_multiplier(
        ...     clip=Clip(), target_epsilon=8, delta=1e-5, sampling_probability=0.01, num_steps=2000)
        >>> round(sigma, 2)
        0.64

    References:
        M. Abadi et al., *Deep Learning with Differential Privacy*, 2016, https://arxiv.org/abs/1607.00133
    """
    return calibrate(_poisson_plan(clip, sampling_probability, num_steps), target_epsilon, delta, accountant)


def calibrate(
    make_event: Callable[[float], DpEvent],
    target_epsilon: float | int,
    delta: float | int,
    accountant: str = "pld",
) -> float:
    """Smallest noise multiplier with which a whole plan stays within a privacy budget.

    Args:
        make_event: the event of the plan, of one or several phases, as a function of the noise multiplier;
            more noise must not give less privacy.
        target_epsilon: the budget, above 0.
        delta: probability in (0, 1), best below one over the number of examples.
        accountant: `"pld"` (tight) or `"rdp"`.

    Returns:
        A noise multiplier whose epsilon is at most `target_epsilon`, within 1e-3 relative of the smallest, or 1/32
        where less would do.

    Raises:
        ValueError: an argument out of range, a target above 10,000, or one that no noise multiplier meets.

    Example:
        >>> from dp_accounting import ComposedDpEvent, GaussianDpEvent
        >>> from jaxdp.sampling import FullBatch, PoissonSampling
        >>> def plan(noise_multiplier):  # a full-batch phase with ten times the noise, then Poisson steps
        ...     head = FullBatch(8000).event(GaussianDpEvent(10 * noise_multiplier), 50)
        ...     rest = PoissonSampling(8000, 0.01).event(GaussianDpEvent(noise_multiplier), 100)
        ...     return ComposedDpEvent([head, rest])
        >>> sigma = calibrate(plan, target_epsilon=3.0, delta=1e-5)
        >>> epsilon_of(plan(sigma), 1e-5) <= 3.0
        True
    """
    check_delta(delta, accountant)
    if not 0 < target_epsilon < math.inf:
        raise ValueError(f"target_epsilon must be above 0 and finite, got {target_epsilon}.")
    if target_epsilon > _LARGEST_TARGET:
        raise ValueError(
            f"target_epsilon {target_epsilon:g} is above {_LARGEST_TARGET:,.0f}, which protects nobody; lower it "
            "(common values are 1 to 10)."
        )

    def excess(log_noise: float) -> float:
        # In logarithms the curve is nearly straight; the clip keeps the search finite where epsilon is 0 or
        # infinite.
        spent = epsilon_of(make_event(math.exp(log_noise)), delta, accountant) / target_epsilon
        return math.log(min(max(spent, 1e-6), 1e6))

    low, high = _bracket(excess, target_epsilon, delta)
    if low == high:
        return math.exp(high)
    # The search evaluates both ends again; epsilon_of remembers them.
    log_noise = optimize.root_scalar(excess, bracket=(low, high), method="brentq", xtol=_TOLERANCE / 2).root
    while excess(log_noise) > 0:
        log_noise += _TOLERANCE
    return math.exp(log_noise)


def _bracket(excess: Callable[[float], float], target_epsilon: float | int, delta: float | int) -> tuple[float, float]:
    """Logarithms of a too small and of a sufficient noise multiplier, a factor of 2 apart (64 for very much noise).

    They are equal at the floor.
    """
    factor = math.log(2)
    log_noise = 0.0
    if excess(log_noise) > 0:
        while excess(log_noise) > 0:
            factor = math.log(2 if log_noise < math.log(_LARGE) else 64)
            log_noise += factor
            if log_noise > math.log(_LARGEST):
                raise ValueError(
                    f"target_epsilon {target_epsilon} at delta {delta} is not met by any noise multiplier; "
                    "raise the padded batch size if batches can overflow, or remove the phases without noise."
                )
        return log_noise - factor, log_noise
    while excess(log_noise) <= 0:
        if log_noise <= math.log(_SMALLEST):
            return log_noise, log_noise
        log_noise -= factor
    return log_noise, log_noise + factor


def _poisson_plan(clip: object, sampling_probability: float | int, num_steps: int) -> Callable[[float], DpEvent]:
    """The event of plain DP-SGD as a function of the noise multiplier."""
    clipping = checked_clipping(clip)
    if not 0 < sampling_probability <= 1:
        raise ValueError(f"sampling_probability must be above 0 and at most 1, got {sampling_probability}.")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}.")

    def make_event(noise_multiplier: float) -> DpEvent:
        release = clipping.dp_event(float(noise_multiplier))
        sampled = dp_accounting.PoissonSampledDpEvent(float(sampling_probability), release)
        return dp_accounting.SelfComposedDpEvent(sampled, num_steps)

    return make_event
