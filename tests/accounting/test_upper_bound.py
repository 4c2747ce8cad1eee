"""Epsilon is never below the truth: closed-form lower bounds, exact arithmetic, the ends of double precision."""

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from scipy import stats

from jaxdp.accounting import (
    Guarantee,
    delta_of,
    epsilon_of,
    guarantee,
)


class Clip:
    def dp_event(self, noise_multiplier: float) -> dp_accounting.DpEvent:
        return GaussianDpEvent(noise_multiplier)


def run(q: float, noise: float, steps: int) -> dp_accounting.DpEvent:
    return SelfComposedDpEvent(PoissonSampledDpEvent(q, GaussianDpEvent(noise)), steps)


def lower_bound(q: float, noise: float, steps: int, delta: float) -> float:
    """Epsilon is at least this: the event is that the largest of all outcomes exceeds c, for the best c."""
    cut = np.linspace(0, 14 * noise + 2, 100_001)
    without = stats.norm.sf(cut / noise)
    having = (1 - q) * without + q * stats.norm.sf((cut - 1) / noise)
    smaller, larger = (-np.expm1(steps * np.log1p(-tail)) for tail in (without, having))
    kept = (larger > delta) & (smaller > 0)
    if not kept.any():
        return 0.0
    return max(0.0, float(np.log((larger[kept] - delta) / smaller[kept]).max()))


def check(q: float, noise: float, steps: int, delta: float) -> Guarantee:
    event = run(q, noise, steps)
    found = guarantee(event, delta=delta)
    low = lower_bound(q, noise, steps, delta)
    assert found.epsilon >= low * (1 - 1e-9), (q, noise, steps, delta)
    by_divergences = epsilon_of(event, delta, "rdp")
    assert low * (1 - 1e-9) <= by_divergences
    # Beyond 1e4 it protects nobody.
    assert found.epsilon <= by_divergences or by_divergences > 1e4
    if 0 < found.epsilon < 100:
        # Both ways of asking agree.
        assert delta_of(event, found.epsilon) == pytest.approx(delta, rel=0.1)
    return found


# Small sampling probabilities, little noise, many steps, small deltas: where rounding of an untilted transform is more
# than delta.
RARE = [
    (1e-5, 0.5, 10**5, 1e-12, 4.1442, 4.147),
    (1e-5, 0.5, 10**5, 1e-11, 3.49, 3.496),
    (1e-7, 0.3, 10**6, 1e-10, 8.8598, 8.864),
    (1e-6, 0.5, 10**6, 1e-9, 0.5626, 0.62),
    (1e-6, 0.5, 10**6, 1e-11, 1.4318, 1.47),
    (1e-7, 0.3, 10**6, 1e-12, 11.2441, 11.25),
]


@pytest.mark.quick
@pytest.mark.parametrize(("q", "noise", "steps", "delta", "low", "high"), RARE[:3])
def test_rare_large_losses_are_counted(q: float, noise: float, steps: int, delta: float, low: float, high: float):
    found = guarantee(run(q, noise, steps), delta=delta)
    assert lower_bound(q, noise, steps, delta) == pytest.approx(low, abs=2e-3)
    assert lower_bound(q, noise, steps, delta) <= found.epsilon <= high
    assert found.accountant == "pld"


def random_plans(seed: int, number: int) -> list[tuple[float, float, int, float]]:
    rng = np.random.default_rng(seed)
    q = 10 ** rng.uniform(-7, -0.3, number)
    noise = 10 ** rng.uniform(math.log10(0.25), 1.3, number)
    steps = (10 ** rng.uniform(0, 7, number)).astype(int)
    delta = 10 ** rng.uniform(-13, -4, number)
    return [(float(a), float(b), int(c), float(d)) for a, b, c, d in zip(q, noise, steps, delta, strict=True)]


@pytest.mark.parametrize("plan", random_plans(1, 12))
def test_epsilon_is_above_the_lower_bound(plan: tuple):
    check(*plan)


@pytest.mark.slow
def test_epsilon_is_above_the_lower_bound_at_random():
    for plan in [*(plan[:4] for plan in RARE), *random_plans(0, 300)]:
        check(*plan)
