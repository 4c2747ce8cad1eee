"""Truncated Poisson sampling: its cost is counted, rigorously and always."""

import itertools
import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from scipy import stats

from jaxdp.accounting import (
    TruncatedPoissonDpEvent,
    calibrate,
    delta_of,
    epsilon_of,
    overflow_probability,
)
from jaxdp.sampling import PoissonSampling

N, Q, STEPS = 4000, 0.05, 200


def run(padded_batch_size: int, noise_multiplier: float = 1.0) -> dp_accounting.DpEvent:
    return PoissonSampling(N, Q, padded_batch_size).event(GaussianDpEvent(noise_multiplier), STEPS)


PLAIN = SelfComposedDpEvent(PoissonSampledDpEvent(Q, GaussianDpEvent(1.0)), STEPS)


@pytest.mark.quick
def test_other_accountants_cannot_overlook_truncation():
    for accountant in (dp_accounting.pld.PLDAccountant(), dp_accounting.rdp.RdpAccountant()):
        with pytest.raises(dp_accounting.UnsupportedEventError):
            accountant.compose(run(300))


@pytest.mark.parametrize("padded", [260, 300])
def test_delta_with_rdp_is_the_stated_bound(padded: int):
    overflow = STEPS * overflow_probability(N + 1, Q, padded)
    assert overflow > 1e-12
    expected = delta_of(PLAIN, 3.0, "rdp") + overflow * (1 + math.exp(3.0))
    assert delta_of(run(padded), 3.0, "rdp") == pytest.approx(min(1, expected), rel=1e-12)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_epsilon_satisfies_the_bound_and_grows_as_room_shrinks(accountant: str):
    spent = [epsilon_of(run(padded), 1e-5, accountant) for padded in (210, 280, 300, 320, N + 1)]
    assert spent[-1] == epsilon_of(PLAIN, 1e-5, accountant)
    assert all(tight >= roomy * (1 - 1e-6) for tight, roomy in itertools.pairwise(spent))
    assert spent[0] > spent[-1] * 1.1
    for padded, value in zip((280, 300, 320), spent[1:4], strict=True):
        if math.isfinite(value):
            assert delta_of(run(padded), value, accountant) <= 1e-5 * (1 + 1e-3)


def test_default_padding_costs_nothing_that_shows():
    default = PoissonSampling(N, Q).event(GaussianDpEvent(1.0), STEPS)
    assert isinstance(default.event, TruncatedPoissonDpEvent)
    plain = epsilon_of(PLAIN, 1e-5)
    assert plain <= epsilon_of(default, 1e-5) <= plain * (1 + 1e-6)


def test_frequent_truncation_uses_the_direct_analysis_of_both_neighbours():
    direct = [
        epsilon_of(
            SelfComposedDpEvent(dp_accounting.TruncatedSubsampledGaussianDpEvent(size, Q, 210, 1.0), STEPS), 1e-5
        )
        for size in (N, N + 1)
    ]
    assert epsilon_of(run(210), 1e-5) == max(direct)
    assert epsilon_of(run(210), 1e-5, "rdp") == math.inf


def test_truncation_that_no_noise_can_make_up_for_is_refused_with_the_remedy():
    laplace = PoissonSampling(N, Q, 210).event(dp_accounting.LaplaceDpEvent(5.0), STEPS)
    assert epsilon_of(laplace, 1e-5) == math.inf
    with pytest.raises(ValueError, match="raise the padded batch size"):
        calibrate(lambda noise: run(210, noise), 8, 1e-5, "rdp")


def density(others: int, extra: bool, padded: int, grid: np.ndarray) -> np.ndarray:
    """Density of the noisy sum of `others` examples of value -1 and perhaps an extra one of value +1."""
    total = np.zeros_like(grid)
    for drawn_others in range(others + 1):
        for drawn_extra in (0, 1) if extra else (0,):
            weight = stats.binom.pmf(drawn_others, others, 0.5) * (0.5 if extra else 1.0)
            size = drawn_others + drawn_extra
            kept = min(size, padded)
            # The extra example is among the kept with probability kept/size.
            extra_kept = kept / size if drawn_extra else 0.0
            total += weight * (1 - extra_kept) * stats.norm.pdf(grid, loc=-kept)
            total += weight * extra_kept * stats.norm.pdf(grid, loc=2 - kept)
    return total


@pytest.mark.parametrize("padded", [1, 2, 3])
@pytest.mark.parametrize("others", [2, 3])
def test_bounds_hold_for_a_mechanism_worked_out_by_hand(others: int, padded: int):
    """Each example is drawn with probability 1/2 and noise of 1 is added.

    Cutting the sample lets the extra example push another out, which moves the sum by 2.
    """
    grid = np.linspace(-14, 14, 20_001)
    without, having = density(others, False, padded, grid), density(others, True, padded, grid)
    np.testing.assert_allclose(np.trapezoid(having, grid), 1.0, rtol=1e-6)
    for epsilon in (0.0, 0.5, 1.0, 2.0, 3.0):
        true_delta = max(
            np.trapezoid(np.maximum(first - math.exp(epsilon) * second, 0), grid)
            for first, second in ((without, having), (having, without))
        )
        # The statement about either of the two data sets covers the other.
        for size in (others, others + 1):
            event = PoissonSampling(size, 0.5, padded).event(GaussianDpEvent(1.0), 1)
            assert true_delta <= delta_of(event, epsilon) + 1e-6
        if padded == 1 and epsilon in (1.0, 2.0):
            naive = delta_of(PoissonSampledDpEvent(0.5, GaussianDpEvent(1.0)), epsilon)
            assert true_delta > naive, "truncation is not free: the plain analysis is wrong here"
