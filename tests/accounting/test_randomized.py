"""Accounting for estimated norms: closed forms, dp_accounting's constructors, reference numbers, simulation."""

import json
import math
import warnings
from collections.abc import Callable

import dp_accounting
import numpy as np
import pytest
from dp_accounting import ComposedDpEvent, GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import privacy_loss_distribution as pld
from scipy import stats

from jaxdp.accounting import (
    Phase,
    PrivacyStatement,
    RandomizedGaussianDpEvent,
    TruncatedPoissonDpEvent,
    calibrate_noise_multiplier,
    delta_of,
    epsilon_of,
    event_from_dict,
    event_to_dict,
    overflow_probability,
)
from jaxdp.accounting._inflation import Inflation, inflation
from jaxdp.accounting._randomized_event import PRICES
from jaxdp.accounting._randomized_loss import hidden_curves, loss_distribution, revealed_curves
from jaxdp.sampling import FullBatch, PoissonSampling

PAIRS = {"revealed": revealed_curves, "hidden": hidden_curves}
PLAN = {"delta": 1e-5, "sampling_probability": 0.01, "num_steps": 2000}
STEPS = 500


def release(noise_multiplier: float, probes: int, groups: int = 1, sharing: str = "batch") -> RandomizedGaussianDpEvent:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* probes for a single clipping group")
        return RandomizedGaussianDpEvent(noise_multiplier, probes, (1 / groups,) * groups, sharing)


class Clip:
    def __init__(self, *kind):
        self.kind = kind

    def dp_event(self, noise_multiplier: float) -> dp_accounting.DpEvent:
        return release(noise_multiplier, *self.kind) if self.kind else GaussianDpEvent(noise_multiplier)


def poisson(event: dp_accounting.DpEvent, probability: float = 0.02, steps: int = STEPS) -> dp_accounting.DpEvent:
    return SelfComposedDpEvent(PoissonSampledDpEvent(probability, event), steps)


@pytest.mark.quick("kind1-8-0.685")
@pytest.mark.parametrize(
    ("kind", "target", "noise_multiplier"),
    [
        ((16, 1, "batch"), 8, 0.904),
        ((64, 1, "batch"), 8, 0.685),
        ((64, 1, "example"), 3, 0.973),
        ((128, 1, "batch"), 3, 0.963),
        ((16, 24, "batch"), 8, 0.719),
    ],
)
def test_reference_numbers(kind: tuple, target: float, noise_multiplier: float):
    found = calibrate_noise_multiplier(clip=Clip(*kind), target_epsilon=target, **PLAN)
    assert found == pytest.approx(noise_multiplier, rel=5e-3)
    assert epsilon_of(poisson(release(found, *kind), 0.01, 2000), 1e-5) <= target


@pytest.mark.parametrize(
    ("kind", "target", "noise_multiplier"),
    [((8, 1, "batch"), 3, 2.510), ((8, 1, "example"), 8, 1.257), ((8, 24, "batch"), 3, 1.139)],
)
def test_reference_numbers_of_few_probes(kind: tuple, target: float, noise_multiplier: float):
    # One evaluation on either side is enough, and much cheaper than the search.
    low, high = (
        epsilon_of(poisson(release(noise_multiplier * factor, *kind), 0.01, 2000), 1e-5) for factor in (0.995, 1.005)
    )
    assert high <= target <= low


def test_epsilon_decreases_to_that_of_exact_norms():
    exact = epsilon_of(poisson(GaussianDpEvent(1.0)), 1e-5)
    for sharing in ("batch", "example"):
        spent = [epsilon_of(poisson(release(1.0, k, 1, sharing)), 1e-5) for k in (8, 16, 17, 64, 10**6)]
        assert spent == sorted(spent, reverse=True)
        assert exact * (1 - 1e-3) <= spent[-1] <= exact * (1 + 2e-3)
    for probes in (8, 32):
        shared, own, groups = (
            epsilon_of(poisson(release(1.0, probes, *kind)), 1e-5) for kind in ((), (1, "example"), (4, "example"))
        )
        assert shared > own > exact and shared > groups > exact
    assert epsilon_of(poisson(release(1.0, 32, 4, "example")), 1e-5) == epsilon_of(poisson(release(1.0, 32, 4)), 1e-5)


COARSE = Inflation(np.array([1.0, 1.1, 1.4, 2.0]), np.array([0.5, 0.3, 0.15, 0.05]), 0.0)


@pytest.mark.parametrize("probability", [0.02, 0.3, 1.0])
def test_agrees_with_the_constructors_of_dp_accounting(probability: float):
    noise, interval, steps = 2.0, 4e-3, 20
    atoms = [
        pld.from_gaussian_mechanism(
            noise, sensitivity=factor, sampling_prob=probability, value_discretization_interval=interval
        )
        for factor in COARSE.factors
    ]
    revealed, weight = atoms[0], COARSE.weights[0]
    for atom, more in zip(atoms[1:], COARSE.weights[1:], strict=True):
        weight += more
        revealed = revealed.compute_mixture(atom, 1 - more / weight)
    factors, weights = COARSE.factors.tolist(), (probability * COARSE.weights).tolist()
    hidden = pld.from_mixture_gaussian_mechanism(
        noise,
        [0.0, *factors] if probability < 1 else factors,
        [1 - probability, *weights] if probability < 1 else weights,
        value_discretization_interval=interval,
    )
    for theirs, name in ((revealed, "revealed"), (hidden, "hidden")):
        ours = loss_distribution(PAIRS[name](COARSE, noise, probability), 30.0, interval, gap=0.0)
        thinned = loss_distribution(PAIRS[name](COARSE, noise, probability), 30.0, interval)
        for count, delta in ((1, 1e-3), (steps, 1e-6)):
            expected, full, thin = (
                distribution.self_compose(count).get_epsilon_for_delta(delta)
                for distribution in (theirs, ours, thinned)
            )
            assert full == pytest.approx(expected, abs=1e-5)
            # Fewer points cost little, and never on the wrong side.
            assert full - 1e-9 <= thin <= full * (1 + 1e-3)


@pytest.mark.parametrize("sharing", ["batch", "example"])
def test_extreme_noise_is_no_obstacle(sharing: str):
    for probability in (0.01, 1.0):
        little = [epsilon_of(poisson(release(noise, 64, 1, sharing), probability, 3), 1e-5) for noise in (1e-6, 0.01)]
        assert little == [math.inf, math.inf]
        much = [epsilon_of(poisson(release(noise, 64, 1, sharing), probability, 3), 1e-5) for noise in (1e3, 1e7)]
        assert 0 <= much[1] <= much[0] < 1e-2
    # Tails that are lost whatever the grid must not make it coarse.
    exact = epsilon_of(poisson(GaussianDpEvent(300.0)), 1e-5)
    assert exact < epsilon_of(poisson(release(300.0, 16, 200, sharing)), 1e-5) < 1.2 * exact


def by_integration(pair: str, noise: float, q: float, epsilons: np.ndarray) -> tuple[list[float], list[float]]:
    """Both hockey-stick divergences of a mechanism with the coarse law, from its densities."""
    x = np.linspace(-14, 16, 200_001)
    without = stats.norm.pdf(x)
    shifted = [stats.norm.pdf(x, loc=factor / noise) for factor in COARSE.factors]
    if pair == "hidden":
        densities = [(1.0, (1 - q) * without + q * sum(w * s for w, s in zip(COARSE.weights, shifted, strict=True)))]
    else:
        densities = [(w, (1 - q) * without + q * s) for w, s in zip(COARSE.weights, shifted, strict=True)]

    def divergence(epsilon: float, flip: bool) -> float:
        parts = [(w, (without, d) if flip else (d, without)) for w, d in densities]
        return sum(w * np.trapezoid(np.maximum(p - math.exp(epsilon) * r, 0), x) for w, (p, r) in parts)

    return [divergence(e, False) for e in epsilons], [divergence(e, True) for e in epsilons]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(("noise", "q"), [(1.0, 0.05), (0.7, 0.5), (2.0, 1.0)])
def test_curves_of_one_step_are_the_divergences_and_the_distribution_stays_above(pair: str, noise: float, q: float):
    epsilons = np.array([1e-4, 0.01, 0.04, 0.3, 0.6, 1.0, 2.5, 4.0])
    curves = PAIRS[pair](COARSE, noise, q)
    remove, add = curves(epsilons)
    expected_remove, expected_add = by_integration(pair, noise, q, epsilons)
    np.testing.assert_allclose(remove, expected_remove, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(add, expected_add, rtol=1e-6, atol=1e-9)
    distribution = loss_distribution(curves, 40.0, 2.0**-9)
    between = np.linspace(0.0007, 5, 400)
    for found, (exact, reverse) in (
        (distribution._pmf_remove, curves(between)),
        (distribution._pmf_add, curves(between)[::-1]),
    ):
        above = np.array([found.get_delta_for_epsilon(float(e)) for e in between])
        assert np.all(above >= exact - 1e-14)
        assert np.all(above <= exact * (1 + 5e-3) + 2e-5)
        # Below zero the curve is that of the reversed pair.
        below = np.array([found.get_delta_for_epsilon(float(-e)) for e in between])
        mirrored = 1 - np.exp(-between) + np.exp(-between) * reverse
        assert np.all(below >= mirrored - 1e-14) and np.all(below <= mirrored + 1e-5)


@pytest.mark.parametrize("pair", PAIRS)
def test_what_has_no_bound_counts_as_delta(pair: str):
    law = Inflation(COARSE.factors, COARSE.weights * (1 - 1e-4), 1e-4)
    distribution = loss_distribution(PAIRS[pair](law, 1.0, 0.25), 40.0, 2.0**-9)
    # Where it was drawn, it is seen: at every epsilon.
    assert distribution.get_delta_for_epsilon(39.0) == pytest.approx(0.25e-4, rel=1e-9)
    assert distribution.self_compose(10).get_delta_for_epsilon(39.0) == pytest.approx(2.5e-4, rel=1e-3)
    assert distribution.self_compose(10).get_epsilon_for_delta(1e-4) == math.inf
    # The largest losses on the grid likewise.
    short = loss_distribution(PAIRS[pair](COARSE, 1.0, 0.25), 1.0, 2.0**-9)
    end = PAIRS[pair](COARSE, 1.0, 0.25)(np.array([1.0]))[0][0]
    assert short.get_delta_for_epsilon(30.0) == pytest.approx(end, rel=2e-2)


def simulated_losses(noise: float, q: float, probes: int, drawn: bool) -> tuple[np.ndarray, np.ndarray]:
    """Factor and privacy loss of one step for a record of rank one, with real probes."""
    rng = np.random.default_rng(7)
    draws = 400_000
    estimate = np.mean(np.square(rng.standard_normal((draws, probes), dtype=np.float32)), axis=1, dtype=np.float64)
    shift = np.maximum(1, estimate**-0.5) / noise
    present = drawn * (rng.random(draws) < q)
    x = rng.standard_normal(draws) + present * shift
    return x, np.log(1 - q + q * np.exp(x * shift - shift**2 / 2))


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 3.0])
def test_simulated_delta_of_one_step_stays_under_the_analytic_one(epsilon: float):
    noise, q, probes = 0.8, 0.3, 8
    event = PoissonSampledDpEvent(q, release(noise, probes))
    analytic = delta_of(event, epsilon)
    curves = revealed_curves(inflation(probes, (1.0,)), noise, q)(np.array([epsilon]))
    for drawn, curve in zip((True, False), curves, strict=True):
        _, loss = simulated_losses(noise, q, probes, drawn)
        gains = np.maximum(-np.expm1(epsilon - (loss if drawn else -loss)), 0)
        mean, error = gains.mean(), gains.std() / math.sqrt(len(gains))
        assert mean <= curve[0] + 4 * error
        assert mean <= analytic + 4 * error
        # And the analysis is tight for such a record.
        assert mean >= curve[0] * (1 - 5e-3) - 4 * error


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 3.0])
def test_simulated_delta_of_one_step_with_own_probes_stays_under_the_analytic_one(epsilon: float):
    noise, q, probes = 0.8, 0.3, 8
    analytic = delta_of(PoissonSampledDpEvent(q, release(noise, probes, 1, "example")), epsilon)
    curves = hidden_curves(inflation(probes, (1.0,)), noise, q)(np.array([epsilon]))
    x, _ = simulated_losses(noise, q, probes, True)
    # The observer sees x alone: the best half-line of one half of the draws, judged on the other half.
    cuts = np.linspace(-4, 6, 400)
    below = [np.searchsorted(np.sort(half), cuts) / len(half) for half in (x[::2], x[1::2])]
    error = 4 / math.sqrt(len(x) / 2)
    growth = math.exp(epsilon)
    remove = [(1 - share) - growth * stats.norm.sf(cuts) for share in below]
    add = [stats.norm.cdf(cuts) - growth * share for share in below]
    for (choice, judge), curve in zip((remove, add), curves, strict=True):
        place = np.argmax(choice)
        scale = (1, 1 - below[1][place]) if choice is remove[0] else (growth, below[1][place])
        empirical, spread = max(0.0, judge[place]), error * scale[0] * math.sqrt(scale[1])
        assert empirical <= curve[0] + spread
        assert empirical <= analytic + spread
        assert empirical >= curve[0] * (1 - 1e-2) - spread


def test_a_typical_factor_instead_of_its_law_would_be_found_out():
    """The median and even the 99th percentile of Z as a constant promise too much."""
    law = inflation(8, (1.0,))
    _, loss = simulated_losses(0.8, 0.3, 8, True)
    gains = np.maximum(-np.expm1(3.0 - loss), 0)
    lowest = gains.mean() - 4 * gains.std() / math.sqrt(len(gains))
    median = Inflation(law.factors[np.searchsorted(np.cumsum(law.weights), [0.5])], np.ones(1), 0.0)
    assert revealed_curves(median, 0.8, 0.3)(np.array([3.0]))[0][0] < lowest


def test_truncated_batches_add_what_overflow_costs():
    step = release(1.0, 64)
    run = PoissonSampling(4000, 0.05, 280).event(step, 200)
    assert isinstance(run.event, TruncatedPoissonDpEvent)
    overflow = 200 * overflow_probability(4001, 0.05, 280)
    plain = poisson(step, 0.05, 200)
    assert overflow > 1e-9
    assert delta_of(run, 2.0) == pytest.approx(delta_of(plain, 2.0) + overflow * (1 + math.exp(2.0)), rel=1e-9)
    assert epsilon_of(run, 1e-5) > epsilon_of(plain, 1e-5)
    roomy = PoissonSampling(4000, 0.05).event(step, 200)
    assert epsilon_of(roomy, 1e-5) == pytest.approx(epsilon_of(plain, 1e-5), rel=1e-6)


def test_phases_compose_with_each_other_and_with_full_batches():
    head = FullBatch(4000).event(release(30.0, 64), 20)
    rest = poisson(release(1.0, 32, 6), steps=200)
    exact = poisson(GaussianDpEvent(1.0), steps=200)
    other = SelfComposedDpEvent(GaussianDpEvent(30.0), 20)
    spent = {
        name: epsilon_of(ComposedDpEvent(events), 1e-5)
        for name, events in {"both": [head, rest], "exact": [other, exact], "mixed": [head, exact]}.items()
    }
    assert epsilon_of(rest, 1e-5) < spent["both"]
    assert spent["exact"] < spent["mixed"] < spent["both"] < spent["exact"] * 1.25
    # Twenty releases are one with as much less noise only for exact norms; for many probes, nearly.
    often = epsilon_of(FullBatch(10).event(release(8.0, 10_000), 16), 1e-5)
    once = dp_accounting.get_epsilon_gaussian(2.0, 1e-5)
    assert once < often < once * 1.02
    laplace = PoissonSampledDpEvent(0.02, dp_accounting.LaplaceDpEvent(5.0))
    with pytest.raises(ValueError, match="cannot be composed with releases whose norms are estimated"):
        epsilon_of(ComposedDpEvent([head, laplace]), 1e-5)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomizedGaussianDpEvent(1.0, 7), "probes must be a whole number of at least 8"),
        (lambda: RandomizedGaussianDpEvent(1.0, 32.5), "probes must be a whole number of at least 8"),
        (lambda: RandomizedGaussianDpEvent(-1.0, 32), "noise_multiplier must be at least 0"),
        (lambda: RandomizedGaussianDpEvent(float("nan"), 32), "noise_multiplier must be at least 0"),
        (lambda: RandomizedGaussianDpEvent(1.0, 32, ()), "shares must be above 0 and sum to 1"),
        (lambda: RandomizedGaussianDpEvent(1.0, 32, (0.5, 0.4)), "shares must be above 0 and sum to 1"),
        (lambda: RandomizedGaussianDpEvent(1.0, 32, (1.0, 0.0)), "shares must be above 0 and sum to 1"),
        (lambda: RandomizedGaussianDpEvent(1.0, 32, (1.5, -0.5)), "shares must be above 0 and sum to 1"),
        (lambda: RandomizedGaussianDpEvent(1.0, 32, (float("nan"),)), "shares must be above 0 and sum to 1"),
        (lambda: RandomizedGaussianDpEvent(1.0, 32, sharing="step"), "sharing must be 'batch' or 'example'"),
    ],
)
def test_bad_fields_are_one_sentence(make: Callable, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_rdp_and_what_has_not_been_analysed_are_refused():
    step = release(1.0, 64)
    for event in (step, poisson(step), PoissonSampling(100, 0.1).event(step, 3), ComposedDpEvent([step, step])):
        with pytest.raises(ValueError, match="infinite at every order; use accountant='pld'"):
            epsilon_of(event, 1e-5, "rdp")
        with pytest.raises(ValueError, match="infinite at every order; use accountant='pld'"):
            delta_of(event, 1.0, "rdp")
    for inside in (
        ComposedDpEvent([step, GaussianDpEvent(3.0)]),
        SelfComposedDpEvent(step, 2),
        dp_accounting.dp_event.SampledWithoutReplacementDpEvent(100, 10, step),
    ):
        outside = inside if hasattr(inside, "source_dataset_size") else PoissonSampledDpEvent(0.1, inside)
        with pytest.raises(ValueError, match="has not been analysed"):
            epsilon_of(outside, 1e-5)
    for accountant in (dp_accounting.pld.PLDAccountant(), dp_accounting.rdp.RdpAccountant()):
        with pytest.raises(dp_accounting.UnsupportedEventError):
            accountant.compose(poisson(step))
    assert epsilon_of(poisson(release(0.0, 64)), 1e-5) == math.inf


@pytest.mark.parametrize("probes", [8, 16])
@pytest.mark.parametrize("sharing", ["batch", "example"])
def test_few_probes_for_one_group_warn_with_their_price(probes: int, sharing: str):
    price = PRICES[sharing][probes]
    with pytest.warns(UserWarning, match=rf"{probes} probes for a single clipping group need {price:.2f} times"):
        RandomizedGaussianDpEvent(1.0, probes, sharing=sharing)
    # The price is what the accountant finds.
    exact = 0.64335
    low, high = (
        epsilon_of(poisson(release(exact * (price + more), probes, 1, sharing), 0.01, 2000), 1e-5)
        for more in (-0.01, 0.01)
    )
    assert high < 8 < low
    RandomizedGaussianDpEvent(1.0, probes, (0.5, 0.5))
    RandomizedGaussianDpEvent(1.0, 17)


def test_the_event_is_kept_in_the_statement_which_names_the_analysis():
    step = RandomizedGaussianDpEvent(1.0, 32, [0.25, 0.5, 0.25], "batch")
    assert step == RandomizedGaussianDpEvent(1.0, 32, (0.5, 0.25, 0.25)) and step.shares == (0.5, 0.25, 0.25)
    assert eval(repr(step)) == step  # What is merged by its text must be the same.
    assert event_from_dict(json.loads(json.dumps(event_to_dict(step)))) == step

    class Grouped:
        def dp_event(self, noise_multiplier: float) -> dp_accounting.DpEvent:
            return RandomizedGaussianDpEvent(noise_multiplier, 32, step.shares)

    def phase(clip: object) -> Phase:
        sampling = PoissonSampling(8000, 0.01)
        return Phase.of(name="all", mechanism="sum", clip=clip, sampling=sampling, noise_multiplier=1.0, num_steps=50)

    phases = [phase(Grouped()), phase(Clip(64, 1, "example"))]
    statement = PrivacyStatement.from_phases(phases, delta=1e-5)
    again = PrivacyStatement.from_json(statement.to_json())
    assert again == statement
    again.verify()
    text = " ".join(statement.to_text().split())
    assert "norms of 3 clipping groups are estimated with 32 Gaussian probes shared by the batch" in text
    assert "as if the probes were published" in text
    assert "norms of one clipping group are estimated with 64 Gaussian probes of each example's own" in text
    assert "in which the probes stay hidden" in text
    assert max(map(len, statement.to_text().splitlines())) <= 90
    assert "estimated" not in PrivacyStatement.from_phases([phase(Clip())], delta=1e-5).to_text()
