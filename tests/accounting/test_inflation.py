"""The law of the factor by which a contribution exceeds its clipping norm: never below the true one, and close."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from jaxdp.accounting import _inflation
from jaxdp.accounting._inflation import Inflation, inflation


def survival(law: Inflation, values: np.ndarray) -> np.ndarray:
    """P(Z > value)."""
    tails = np.append(np.cumsum(law.weights[::-1])[::-1], 0.0) + law.lost
    return tails[np.searchsorted(law.factors, values, side="right")]


def one_group(probes: int, values: np.ndarray) -> np.ndarray:
    """P(Zbar > value) of the envelope."""
    return np.where(values < 1, 1.0, stats.chi2.cdf(probes / np.maximum(values, 1) ** 2, probes))


def two_groups(probes: int, share: float, values: np.ndarray) -> np.ndarray:
    """P(share Zbar_1^2 + (1 - share) Zbar_2^2 > value^2), by quantiles of the first group's estimate."""
    levels = (np.arange(40_000) + 0.5) / 40_000
    first = np.maximum(1, probes / stats.chi2.ppf(levels, probes))
    needed = (values[:, None] ** 2 - share * first) / (1 - share)
    return one_group(probes, np.sqrt(np.maximum(needed, 0))).mean(axis=1)


@pytest.mark.quick
@pytest.mark.parametrize("probes", [8, 16, 64, 1000])
def test_law_of_one_group_is_the_envelope_rounded_up(probes: int):
    law = inflation(probes, (1.0,))
    for values in (law.factors[:-1], law.factors[:-1] * (1 - 1e-6)):
        assert np.all(survival(law, values) >= one_group(probes, values) * (1 - 1e-6) - 1e-15)
    # Not by more than one atom.
    later = law.factors[1:] * (1 + 1e-6)
    np.testing.assert_array_less(survival(law, later), one_group(probes, law.factors[:-1]) * (1 + 1e-6) + 1e-15)
    assert law.weights.sum() + law.lost == pytest.approx(1, abs=1e-12)
    assert 0.9e-16 < law.lost < 1.1e-16


@pytest.mark.parametrize(("probes", "share"), [(8, 0.5), (16, 0.9), (64, 0.7)])
def test_law_of_two_groups_is_never_below_their_exact_law(probes: int, share: float):
    law = inflation(probes, (share, 1 - share))
    values = np.linspace(1.0005, 1.6, 40)
    exact = two_groups(probes, share, values)
    # The error of the reference is far below that of one atom.
    assert np.all(survival(law, values) >= exact - 1e-5)
    assert np.all(survival(law, values) <= two_groups(probes, share, values * (1 - 3 / 2048)) + 1e-5)
    # One atom lower would be found out.
    lower = Inflation(law.factors * (1 - 1 / 2048), law.weights, law.lost)
    assert np.any(survival(lower, values) < exact - 1e-4)


@pytest.mark.parametrize(
    ("probes", "shares"),
    [(8, (1 / 24,) * 24), (16, (0.5, 0.2, 0.2, 0.05, 0.05)), (32, (0.4, *(0.1,) * 3, *(0.015,) * 20))],
)
def test_law_of_groups_stays_above_simulated_estimates(probes: int, shares: tuple[float, ...]):
    draws = 200_000
    estimates = np.random.default_rng(0).chisquare(probes, (draws, len(shares))) / probes
    simulated = np.sqrt(np.maximum(1, 1 / estimates) @ np.array(shares))
    law = inflation(probes, shares)
    values = np.quantile(simulated, [0.05, 0.3, 0.5, 0.8, 0.95, 0.99, 0.999])
    empirical = (simulated[:, None] > values).mean(axis=0)
    error = np.sqrt(empirical * (1 - empirical) / draws)
    assert np.all(survival(law, values) >= empirical - 4 * error)
    # Rounding moves it by less than three in a thousand.
    assert np.all(survival(law, values * 1.003) <= empirical + 4 * error)


def test_far_tails_of_many_groups_are_not_lost():
    probes, groups = 8, 24
    law = inflation(probes, (1 / groups,) * groups)
    values = np.geomspace(3, 20, 8)
    # One group alone exceeds all that the others leave.
    alone = one_group(probes, np.sqrt(groups * values**2 - (groups - 1)))
    lower = -np.expm1(groups * np.log1p(-alone))
    assert lower[-1] < 1e-10
    assert np.all(survival(law, values) >= lower)
    assert np.all(survival(law, values) <= 5 * lower)
    assert law.lost == pytest.approx(groups * 1e-16, rel=1e-2, abs=0)
    assert law.weights.sum() + law.lost == pytest.approx(1, abs=1e-12)


def test_shares_count_and_not_their_order_or_rounding(monkeypatch):
    sums = []
    added = _inflation._added
    monkeypatch.setattr(_inflation, "_added", lambda *args: sums.append(1) or added(*args))
    shares = np.full(96, 1 / 96) * (1 + 1e-13 * np.arange(96))
    law = inflation.__wrapped__(16, tuple(shares.tolist()))
    # Doubling: 96 = 3 * 2^5.
    assert len(sums) == 7
    equal = inflation(16, (1 / 96,) * 96)
    np.testing.assert_allclose(survival(law, equal.factors * (1 + 1e-7)), survival(equal, equal.factors), atol=1e-9)


def test_more_groups_and_more_probes_mean_smaller_factors():
    values = np.linspace(1.2, 3, 30)
    by_probes = [survival(inflation(probes, (1.0,)), values) for probes in (8, 9, 16, 32, 64, 128)]
    assert all(np.all(few >= many) for few, many in itertools.pairwise(by_probes))
    assert math.isclose(inflation(10**6, (1.0,)).factors[-1], 1, rel_tol=1e-2)
