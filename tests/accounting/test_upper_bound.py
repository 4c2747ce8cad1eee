"""Epsilon is never below the truth: closed-form lower bounds, exact arithmetic, the ends of double precision."""

import math
import resource
import warnings
from fractions import Fraction
from typing import Any

import dp_accounting
import mpmath
import numpy as np
import pytest
from dp_accounting import ComposedDpEvent, GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from scipy import stats

from jaxdp.accounting import (
    Guarantee,
    RandomizedGaussianDpEvent,
    calibrate,
    calibrate_noise_multiplier,
    delta_of,
    epsilon_curve,
    epsilon_of,
    guarantee,
)
from jaxdp.accounting._composition import (
    _discretization_interval,
    _grouped,
    _randomized_curves,
    _step_distribution,
)
from jaxdp.accounting._events import flatten
from jaxdp.accounting._fourier import _into_disc, _log_tail, transform
from jaxdp.accounting._renyi import ORDERS, Divergences
from jaxdp.accounting._step_loss import Losses, coarser, sampled_gaussian
from jaxdp.accounting._sums import Sum, largest_epsilon
from jaxdp.sampling import FullBatch, PoissonSampling


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
    (1e-5, 0.5, 10**5, 1e-11, 3.4915, 3.4945),
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


def exact_divergence(s: float, q: float, epsilon: float, remove: bool) -> float:
    """Hockey-stick divergence of one sampled Gaussian release in one direction, in 200 digits."""
    with mpmath.workdps(200):
        s, q, growth = mpmath.mpf(s), mpmath.mpf(q), mpmath.e ** mpmath.mpf(epsilon)
        ratio = ((growth if remove else 1 / growth) - 1 + q) / q
        if ratio <= 0:
            return float(1 - growth) if remove else 0.0
        cut = mpmath.log(ratio) / s + s / 2
        if remove:
            return float(q * mpmath.ncdf(s - cut) + (1 - q - growth) * mpmath.ncdf(-cut))
        return float(mpmath.ncdf(cut) - growth * ((1 - q) * mpmath.ncdf(cut) + q * mpmath.ncdf(cut - s)))


def curve(losses: Losses, interval: float, epsilon: float) -> float:
    """The divergence of losses on a grid."""
    x = losses.places * interval
    return float(np.sum(losses.masses * -np.expm1(np.minimum(epsilon - x, 0)))) + losses.infinite


@pytest.mark.quick
@pytest.mark.parametrize(
    ("noise", "q", "exponent"),
    [(1.0, 0.01, -12), (0.5, 1e-5, -16), (1e7, 1e-3, -40), (30.0, 1.0, -10), (0.05, 1.0, -8), (0.9, 0.999999, -9)],
)
def test_losses_of_one_step_dominate_by_no_more_than_the_grid(noise: float, q: float, exponent: int):
    interval = 2.0**exponent
    step = sampled_gaussian(noise, q, interval)
    scale = min(1.0, q / noise) if noise > 0.1 else 0.5 / noise**2
    for losses, remove in ((step.remove, True), (step.add, False)):
        finer = coarser(losses, interval, 4)
        for epsilon in (scale * np.array([-1.0, -0.3, 0.0, 0.01, 0.3, 1.003, 3.0])).tolist():
            exact = exact_divergence(1 / noise, q, epsilon, remove)
            found = curve(losses, interval, epsilon)
            assert found >= exact
            assert curve(finer, 4 * interval, epsilon) >= found
            # Straight lines over an interval add at most an eighth of its square times the largest density.
            assert found <= exact * (1 + 1e-11) + 0.3 * interval + 1e-290
        # On the grid itself, where losses are dense, nothing is added but rounding.
        for place in (0, 1, 7):
            exact = exact_divergence(1 / noise, q, place * interval, remove)
            if exact > 1e-20:
                assert exact <= curve(losses, interval, place * interval) <= exact * (1 + 1e-10)


@pytest.mark.parametrize("sharing", ["batch", "example"])
@pytest.mark.parametrize(("noise", "q", "probes"), [(1.0, 0.01, 64), (2.5, 0.3, 8), (0.5, 1e-5, 64), (5.0, 1.0, 32)])
def test_losses_with_estimated_norms_dominate(noise: float, q: float, probes: int, sharing: Any):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* probes for a single clipping group")
        release = RandomizedGaussianDpEvent(noise, probes, sharing=sharing)
    leaf = PoissonSampledDpEvent(q, release) if q < 1 else release
    interval = _discretization_interval(((leaf, 100),))
    curves, largest = _randomized_curves(leaf)
    step = _step_distribution(leaf, interval)
    epsilons = np.unique(np.geomspace(interval, largest, 60).round(12))
    remove, add = curves(epsilons)
    for losses, forward, backward in ((step.remove, remove, add), (step.add, add, remove)):
        for epsilon, here, there in zip(epsilons.tolist(), forward.tolist(), backward.tolist(), strict=True):
            assert curve(losses, interval, epsilon) >= here
            assert curve(losses, interval, -epsilon) >= -math.expm1(-epsilon) + math.exp(-epsilon) * there


def test_composition_is_above_exact_arithmetic_and_close_down_to_tiny_deltas():
    rng = np.random.default_rng(3)
    interval, counts = 2.0**-6, (9, 14)
    steps = []
    for count in counts:
        places = np.sort(rng.choice(np.arange(-20, 60), 12, replace=False))
        masses = np.exp(-np.abs(places) * rng.uniform(0.2, 0.5))
        steps.append((Losses(places, masses / masses.sum() * (1 - 2.0**-50), 1e-200), count))
    total = {0: Fraction(1)}
    for losses, count in steps:
        for _ in range(count):
            more: dict[int, Fraction] = {}
            for place, mass in total.items():
                for other, factor in zip(losses.places.tolist(), losses.masses.tolist(), strict=True):
                    more[place + other] = more.get(place + other, Fraction(0)) + mass * Fraction(factor)
            total = {place: Fraction(int(mass * 2**700), 2**700) for place, mass in more.items()}
    whole = Sum(steps, interval)
    for epsilon in (0.05, 0.4, 1.0, 2.0, 4.0, 7.0):
        exact = sum(
            float(mass) * -math.expm1(epsilon - place * interval)
            for place, mass in total.items()
            if place * interval > epsilon
        )
        found = whole.delta(epsilon)
        assert exact * (1 - 1e-13) <= found <= exact * (1 + 1e-3) + 2e-198, epsilon
        assert whole.epsilon(found) <= epsilon * (1 + 1e-4) + 1e-9
    assert exact < 1e-20  # Far below the unit roundoff.


@pytest.mark.parametrize("size", [16, 5 * 2**9, 3 * 2**10, 2**13])
def test_error_of_transforms_is_within_its_bound(size: int):
    rng = np.random.default_rng(size)
    for masses in (
        np.full(size // 2, 2.0 / size),
        rng.random(size // 2),
        np.append(0.97, rng.random(size // 3) * 1e-6),
    ):
        masses = masses / masses.sum()
        places = np.arange(len(masses)) - 3
        found, bound = transform(places, masses, size)
        for frequency in (0, 1, size // 3, size // 2):
            with mpmath.workdps(40):
                angle = -2 * mpmath.pi * frequency / size
                exact = mpmath.fsum(
                    mpmath.mpf(m) * mpmath.expj(angle * p)
                    for m, p in zip(masses.tolist(), places.tolist(), strict=True)
                )
            assert abs(complex(exact) - found[frequency]) <= bound * math.sqrt(size)
        assert bound <= 1e-12


def test_transforms_outside_the_unit_disc_are_moved_to_its_edge():
    values = np.array([1 + 1e-15 + 0j, 0.6 + 0.8000001j, 0.3 - 0.2j])
    moved = _into_disc(values.copy())
    assert np.all(np.abs(moved) <= 1 + 2e-16) and moved[2] == values[2]
    np.testing.assert_allclose(moved, values, rtol=1e-6)


def test_rounding_error_and_what_lies_beyond_the_window_are_counted():
    whole = Sum([(sampled_gaussian(3.0, 1e-3, 2.0**-18).remove, 10**7)], 2.0**-18)
    kept = whole.without_rare(1e-18)
    epsilon, rounding = kept.epsilon(1e-12)
    tilted = kept.tilted
    assert tilted is not None and rounding > 0
    assert tilted.error(epsilon) == rounding
    before = tilted.delta(epsilon)
    tilted._error = 0.0
    assert tilted.delta(epsilon) == pytest.approx(before - rounding, rel=1e-9)
    # One release, on a window that ends too early: what is above it is known exactly.
    losses = sampled_gaussian(1.0, 0.1, 2.0**-8).remove
    kept = Sum([(losses, 1)], 2.0**-8).without_rare(1e-200)
    for end in (1.0, 2.0, 4.0):
        missed = losses.masses[losses.places * 2.0**-8 >= end].sum()
        assert missed <= math.exp(_log_tail(kept.moments, 4.0, end)) <= 1e4 * missed
    kept.epsilon(1e-6)
    tilted = kept.tilted
    assert tilted is not None
    tilted._error, tilted._infinite, tilted._beyond = 0.0, 0.0, 1e-9
    assert tilted.delta(float(tilted._x[-1]) + 1) == 1e-9


def test_nothing_is_claimed_below_the_window():
    kept = Sum([(sampled_gaussian(1.0, 0.1, 2.0**-8).remove, 100)], 2.0**-8).without_rare(1e-12)
    kept.epsilon(1e-6)
    assert kept.tilted is not None
    lowest = float(kept.tilted._x[0])
    assert kept.tilted.delta(lowest - 1e-6) == 1.0 > kept.tilted.delta(6.0)
    assert kept.tilted.epsilon(1.0) == max(0.0, lowest)


def test_both_directions_count():
    small, large = (Sum([(sampled_gaussian(noise, 0.1, 2.0**-8).remove, 10)], 2.0**-8) for noise in (2.0, 1.0))
    for pair in ((small, large), (large, small)):
        assert largest_epsilon(*pair, 1e-6) == large.epsilon(1e-6) > small.epsilon(1e-6)


@pytest.mark.quick
def test_divergences_of_very_much_noise_are_positive_and_silent(caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = epsilon_of(run(1e-3, 1e7, 10), 1e-18, "rdp")
    # A Gaussian release with the same second moment loses about this much.
    mean, low, high = mpmath.mpf(1e-10) * mpmath.sqrt(10), 0.0, 40.0
    with mpmath.workdps(60):
        for _ in range(50):
            x = (low + high) / 2
            exact = mpmath.ncdf(mean / 2 - x) - mpmath.exp(mean * x) * mpmath.ncdf(-mean / 2 - x)
            low, high = (x, high) if exact > 1e-18 else (low, x)
    about = high * float(mean)
    assert about < found < 1.5 * about
    assert delta_of(run(0.5, 1e200, 10), 1.0, "rdp") > 0
    assert not caplog.records


@pytest.mark.parametrize(("q", "noise"), [(0.01, 0.643), (0.5, 20.0), (1e-4, 0.5), (0.3, 2.0)])
def test_divergences_are_those_of_the_closed_form(q: float, noise: float):
    values = Divergences([(PoissonSampledDpEvent(q, GaussianDpEvent(noise)), 1)])._values
    with mpmath.workdps(30):
        for order in (1.3, 2.7, 17, 128):

            def integrand(t, order=order):
                loss = mpmath.log(1 - q + q * mpmath.exp(t / noise - 1 / (2 * mpmath.mpf(noise) ** 2)))
                return mpmath.npdf(t) * mpmath.exp(order * loss)

            center = order / noise
            points = (
                [-30, -10, 0, 10, 30] if center < 10 else [-30, 0, 10, center - 15, center, center + 15, center + 40]
            )
            exact = float(mpmath.log(mpmath.quad(integrand, sorted(points))) / (order - 1))
            found = float(values[np.searchsorted(ORDERS, order)])
            assert exact * (1 - 1e-10) <= found, order
            # Large orders, where sampling no longer helps, are not worth a sum.
            assert order == 128 or found <= exact * (1 + 1e-6) + 2e-11, order


def test_guarantee_says_whose_bound_it_is():
    typical, huge = run(0.01, 1.0, 1000), run(1e-12, 1.0, 10**20)
    assert guarantee(typical, delta=1e-6) == Guarantee(epsilon_of(typical, 1e-6), 1e-6, "pld")
    assert guarantee(huge, delta=1e-6) == Guarantee(epsilon_of(huge, 1e-6, "rdp"), 1e-6, "rdp")
    assert guarantee(typical, delta=1e-6, accountant="rdp").accountant == "rdp"
    back = guarantee(typical, epsilon=2.0)
    assert back == Guarantee(2.0, delta_of(typical, 2.0), "pld")
    for arguments in ({}, {"delta": 1e-5, "epsilon": 1.0}):
        with pytest.raises(ValueError, match="give either delta or epsilon, not both"):
            guarantee(typical, **arguments)


def test_estimated_norms_have_no_second_accountant():
    many = SelfComposedDpEvent(PoissonSampledDpEvent(0.01, RandomizedGaussianDpEvent(1.0, 64)), 10**20)
    assert guarantee(many, delta=1e-6) == Guarantee(math.inf, 1e-6, "pld")
    some = PoissonSampledDpEvent(1e-5, RandomizedGaussianDpEvent(0.5, 64))
    exact = PoissonSampledDpEvent(1e-5, GaussianDpEvent(0.5))
    # Where an untilted transform fails.
    assert epsilon_of(SelfComposedDpEvent(some, 10**5), 1e-11) > lower_bound(1e-5, 0.5, 10**5, 1e-11)
    assert epsilon_of(SelfComposedDpEvent(some, 10**4), 1e-9) > epsilon_of(SelfComposedDpEvent(exact, 10**4), 1e-9)


def test_truncated_batches_and_mixed_phases_are_above_the_lower_bound():
    for padded in (None, 60):
        sampler = PoissonSampling(10**6, 1e-5, padded)
        event = sampler.event(GaussianDpEvent(0.5), 10**5)
        q = sampler.sampling_probability
        assert epsilon_of(event, 1e-11) >= lower_bound(q, 0.5, 10**5, 1e-11)
        mixed = ComposedDpEvent([event, FullBatch(10**6).event(GaussianDpEvent(40.0), 10)])
        assert epsilon_of(mixed, 1e-11) > epsilon_of(event, 1e-11)
    laplace = SelfComposedDpEvent(PoissonSampledDpEvent(1e-3, dp_accounting.LaplaceDpEvent(1.0)), 10**4)
    # Pure: every step loses at most log(1 + q (e - 1)); a step's building error of 1e-14 is counted.
    assert 0 < epsilon_of(laplace, 1e-8) < 10**4 * math.log1p(1e-3 * math.expm1(1))
    assert epsilon_of(laplace, 5e-11) == math.inf


EXTREME = [
    (1e-12, 1.0, 1000),
    (1e-12, 1.0, 10**9),
    (1e-3, 30.0, 10**9),
    (1e-3, 1.0, 10**20),
    (1e-12, 1.0, 10**20),
    (0.01, 1e-200, 10),
    (1e-12, 1e-200, 10),
    (0.01, 1e200, 10**20),
    (0.5, 1e308, 10**9),
    (0.01, math.inf, 10),
    (5e-324, 1.0, 10),
    (1.0, 1e-200, 1),
    (1.0, 1e200, 10**20),
    (1e-3, 1.0, 10**400),
]


def test_extremes_are_answered():
    for q, noise, steps in EXTREME:
        event = run(q, noise, steps)
        for accountant in ("pld", "rdp"):
            found = epsilon_of(event, 1e-6, accountant)
            low = lower_bound(q, noise, steps, 1e-6) if 1e-2 < noise < 1e3 and steps < 10**15 else 0.0
            assert low * (1 - 1e-9) <= found and not math.isnan(found), (q, noise, steps)
            assert 0 < delta_of(event, 1.0, accountant) <= 1
    assert epsilon_of(run(1e-12, 1e-200, 10), 1e-6) == 0.0  # Nobody is drawn.
    assert epsilon_of(run(0.01, 1e-200, 10), 1e-6) == math.inf
    assert 0.1 < epsilon_of(run(1e-12, 1.0, 10**20), 1e-6) < 0.2
    for noise in (1e-200, 1e200):
        step = RandomizedGaussianDpEvent(noise, 64)
        assert epsilon_of(SelfComposedDpEvent(PoissonSampledDpEvent(0.01, step), 10**6), 1e-6) in (0.0, math.inf)
        sampled = PoissonSampling(4000, 0.05, 210).event(GaussianDpEvent(noise), 200)
        assert epsilon_of(sampled, 1e-6) in (0.0, math.inf)
        assert epsilon_of(SelfComposedDpEvent(dp_accounting.LaplaceDpEvent(noise), 100), 1e-6) in (0.0, math.inf)
    # In the units of Linux: kilobytes. The whole process, JAX included.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 * 2**20


def test_extremes_are_calibrated():
    plan = {"clip": Clip(), "target_epsilon": 3, "delta": 1e-6}
    large = calibrate_noise_multiplier(sampling_probability=1e-3, num_steps=10**20, **plan)
    small = calibrate_noise_multiplier(sampling_probability=1e-12, num_steps=10**20, **plan)
    assert large > 1e6 > small
    # Full batches need sqrt(T) times the noise of one release.
    once, often = (calibrate_noise_multiplier(sampling_probability=1, num_steps=steps, **plan) for steps in (1, 10**20))
    assert often == pytest.approx(1e10 * once, rel=1e-3)
    assert epsilon_of(run(1e-3, large, 10**20), 1e-6) <= 3
    # Where any noise would do, the least that is given.
    assert calibrate_noise_multiplier(sampling_probability=1e-12, num_steps=10, **plan) == pytest.approx(1 / 32)
    with pytest.raises(ValueError, match="which protects nobody"):
        calibrate_noise_multiplier(sampling_probability=1e-3, num_steps=10, **plan | {"target_epsilon": 20_000})

    def weighted(noise: float) -> dp_accounting.DpEvent:
        return ComposedDpEvent([run(0.01, noise * 1e308, 100), run(0.01, noise, 100)])

    found = calibrate(weighted, 3, 1e-6)
    assert found == pytest.approx(calibrate(lambda noise: run(0.01, noise, 100), 3, 1e-6), rel=1e-2)
    with pytest.raises(ValueError, match="not met by any noise multiplier"):
        calibrate(lambda noise: run(0.01, noise * 1e-308, 100), 3, 1e-6)
    spent = epsilon_curve(lambda steps: run(1e-12, 1.0, steps), [0, 1, 10**9, 10**20], 1e-6)
    assert spent == sorted(spent) and spent[0] == 0.0


def test_releases_of_very_much_noise_on_one_sample_are_not_nothing():
    both = ComposedDpEvent([GaussianDpEvent(1e200), GaussianDpEvent(1e200)])
    assert delta_of(PoissonSampledDpEvent(0.5, both), 0.0) > 0
    ((joint, _),) = flatten(PoissonSampledDpEvent(0.5, ComposedDpEvent([GaussianDpEvent(1e200), GaussianDpEvent(2.0)])))
    assert joint == PoissonSampledDpEvent(0.5, GaussianDpEvent(2.0))


def test_noise_that_changes_at_every_step():
    rising = [PoissonSampledDpEvent(0.01, GaussianDpEvent(0.8 + 0.004 * step)) for step in range(150)]
    found = epsilon_of(ComposedDpEvent(rising), 1e-6)
    assert found == pytest.approx(epsilon_of(ComposedDpEvent(rising[::-1]), 1e-6), rel=1e-9)
    low, high = (epsilon_of(run(0.01, noise, 150), 1e-6) for noise in (1.396, 0.8))
    assert low < found < high
    # The same noise again is the same step again.
    twice = ComposedDpEvent([rising[0], rising[1], rising[0]])
    assert flatten(twice) == ((rising[0], 2), (rising[1], 1))
    accountant = dp_accounting.pld.PLDAccountant(value_discretization_interval=1e-3)
    for event in rising[::15]:
        accountant.compose(event, 20)
    repeated = ComposedDpEvent([SelfComposedDpEvent(event, 20) for event in rising[::15]])
    assert epsilon_of(repeated, 1e-6) == pytest.approx(accountant.get_epsilon(1e-6), rel=3e-3)


def test_very_many_different_releases_are_grouped_with_less_noise():
    exact = [(PoissonSampledDpEvent(0.01, GaussianDpEvent(1 + 1e-4 * i)), 2) for i in range(2500)]
    estimated = [(PoissonSampledDpEvent(0.01, RandomizedGaussianDpEvent(1 + 1e-2 * i, 64)), 1) for i in range(80)]
    grouped = _grouped((*exact, *estimated))
    assert len(grouped) < 500
    assert sum(count for _, count in grouped) == 5080
    for leaves, loss in ((exact, 1e-3), (estimated, 6e-3)):
        noises = np.array([leaf.event.noise_multiplier for leaf, _ in leaves])
        found = np.array([leaf.event.noise_multiplier for leaf, _ in _grouped(tuple(leaves))])
        for noise in noises:
            assert np.any((found <= noise) & (found > noise * (1 - loss)))
    assert _grouped(tuple(exact[:100])) == tuple(exact[:100])


def test_intervals_are_powers_of_two():
    for q, noise, steps in ((0.01, 1.0, 10), (1e-12, 1e150, 10), (1.0, 3.0, 1)):
        interval = _discretization_interval(((PoissonSampledDpEvent(q, GaussianDpEvent(noise)), steps),))
        assert math.log2(interval).is_integer()
