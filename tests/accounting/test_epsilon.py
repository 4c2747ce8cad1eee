"""Epsilon, delta and calibration against closed forms, reference numbers and each other."""

import math

import dp_accounting
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdp.accounting import (
    Clipping,
    calibrate,
    calibrate_noise_multiplier,
    delta_of,
    epsilon,
    epsilon_curve,
    epsilon_of,
)
from jaxdp.accounting._composition import _step_distribution
from jaxdp.sampling import FullBatch, PoissonSampling

# Choosing the grid in powers of two makes neighbouring plans differ by this much more than they should.
GRID = 3e-4


class Clip:
    def dp_event(self, noise_multiplier: float) -> dp_accounting.DpEvent:
        return GaussianDpEvent(noise_multiplier)


PLAN = {"clip": Clip(), "delta": 1e-5, "sampling_probability": 0.01, "num_steps": 2000}


def poisson(probability: float, noise_multiplier: float, steps: int) -> dp_accounting.DpEvent:
    return SelfComposedDpEvent(PoissonSampledDpEvent(probability, GaussianDpEvent(noise_multiplier)), steps)


@pytest.mark.quick
@pytest.mark.parametrize(("target", "noise_multiplier"), [(8, 0.643), (3, 0.930)])
def test_reference_numbers(target: int, noise_multiplier: float):
    found = calibrate_noise_multiplier(target_epsilon=target, **PLAN)
    assert found == pytest.approx(noise_multiplier, rel=5e-3)
    assert epsilon(noise_multiplier=found, **PLAN) <= target
    assert epsilon(noise_multiplier=found * (1 - 1e-3), **PLAN) > target


@pytest.mark.quick
@pytest.mark.parametrize("noise_multiplier", [0.5, 1.0, 4.0, 40.0])
@pytest.mark.parametrize("steps", [1, 30])
def test_full_batch_agrees_with_the_closed_form_of_the_gaussian_mechanism(noise_multiplier: float, steps: int):
    exact = dp_accounting.get_epsilon_gaussian(noise_multiplier / math.sqrt(steps), 1e-5)
    found = epsilon_of(FullBatch(10).event(GaussianDpEvent(noise_multiplier), steps), 1e-5)
    assert exact * (1 - 1e-9) <= found <= exact * (1 + 1e-3) + 1e-9
    whole = epsilon(clip=Clip(), noise_multiplier=noise_multiplier, delta=1e-5, sampling_probability=1, num_steps=steps)
    assert whole == found


@pytest.mark.parametrize(
    ("probability", "noise_multiplier", "steps"),
    [(0.01, 0.643, 2000), (0.03, 1.0, 1000), (0.001, 50.0, 10_000), (0.5, 20.0, 100), (1e-4, 0.5, 10_000)],
)
def test_pld_is_tight_at_every_scale(probability: float, noise_multiplier: float, steps: int):
    event = poisson(probability, noise_multiplier, steps)
    found = epsilon_of(event, 1e-5)
    assert found <= epsilon_of(event, 1e-5, "rdp")
    # The reference rounds up on its own grid, a very fine one for these losses.
    spread = probability * math.sqrt(math.expm1(noise_multiplier**-2))
    fine = dp_accounting.pld.PLDAccountant(value_discretization_interval=min(1e-4, spread / 20))
    reference = fine.compose(event).get_epsilon(1e-5)
    assert reference * (1 - 1e-3) <= found <= reference * (1 + 2e-3)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    noise_multiplier=st.sampled_from([0.7, 1.0, 2.0, 8.0]),
    probability=st.sampled_from([0.002, 0.02, 0.2]),
    steps=st.sampled_from([10, 100, 500]),
    accountant=st.sampled_from(["pld", "rdp"]),
)
def test_epsilon_is_monotone(noise_multiplier: float, probability: float, steps: int, accountant: str):
    def spent(noise_multiplier: float, probability: float, steps: int, delta: float = 1e-5) -> float:
        return epsilon_of(poisson(probability, noise_multiplier, steps), delta, accountant)

    base = spent(noise_multiplier, probability, steps)
    slack = base * GRID + 1e-6
    assert spent(noise_multiplier * 1.1, probability, steps) <= base + slack
    assert spent(noise_multiplier, probability * 1.1, steps) >= base - slack
    assert spent(noise_multiplier, probability, steps * 2) >= base - slack
    assert spent(noise_multiplier, probability, steps, 1e-6) >= base - slack


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    target=st.sampled_from([0.1, 1.0, 10.0]),
    probability=st.sampled_from([0.005, 0.05, 1.0]),
    steps=st.sampled_from([1, 50, 400]),
    accountant=st.sampled_from(["pld", "rdp"]),
)
def test_calibration_meets_the_target_and_little_more(target: float, probability: float, steps: int, accountant: str):
    plan = {"clip": Clip(), "delta": 1e-5, "sampling_probability": probability, "num_steps": steps}
    found = calibrate_noise_multiplier(target_epsilon=target, accountant=accountant, **plan)
    assert epsilon(noise_multiplier=found, accountant=accountant, **plan) <= target
    assert epsilon(noise_multiplier=found * (1 - 1e-3), accountant=accountant, **plan) > target


def test_phases_are_calibrated_together():
    head, rest = FullBatch(8000), PoissonSampling(8000, 0.03)

    def plan(noise_multiplier: float) -> dp_accounting.DpEvent:
        return dp_accounting.ComposedDpEvent(
            [
                head.event(GaussianDpEvent(20 * noise_multiplier), 100),
                rest.event(GaussianDpEvent(noise_multiplier), 300),
            ]
        )

    found = calibrate(plan, 8, 1e-5)
    assert epsilon_of(plan(found), 1e-5) <= 8 < epsilon_of(plan(found * (1 - 1e-3)), 1e-5)
    # Both phases count.
    assert found > 1.001 * calibrate(lambda noise: rest.event(GaussianDpEvent(noise), 300), 8, 1e-5)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_delta_inverts_epsilon(accountant: str):
    event = poisson(0.02, 1.0, 200)
    assert delta_of(event, epsilon_of(event, 1e-5, accountant), accountant) == pytest.approx(1e-5, rel=1e-3)
    assert delta_of(dp_accounting.NoOpDpEvent(), 0.0, accountant) == 0.0


def test_curve_is_epsilon_after_each_number_of_steps_from_one_distribution():
    sampling, release = PoissonSampling(5000, 0.02), GaussianDpEvent(1.0)
    _step_distribution.cache_clear()
    steps = [0, 1, 10, 100, 1000]
    curve = epsilon_curve((sampling, release), steps, 1e-5)
    assert _step_distribution.cache_info().misses == 1
    assert curve[0] == 0.0 and curve == sorted(curve) and curve[1] < curve[-1]
    assert curve[1:] == [epsilon_of(sampling.event(release, count), 1e-5) for count in steps[1:]]
    assert epsilon_curve(lambda count: sampling.event(release, count), steps, 1e-5) == curve
    with pytest.raises(ValueError, match="steps must be numbers of steps of at least 0"):
        epsilon_curve((sampling, release), [3, -1], 1e-5)


def test_several_gaussian_releases_of_one_sample_are_one_with_less_noise():
    pair = dp_accounting.ComposedDpEvent([GaussianDpEvent(3.0), SelfComposedDpEvent(GaussianDpEvent(4.0), 1)])
    joint = PoissonSampledDpEvent(0.05, GaussianDpEvent(2.4))
    for accountant in ("pld", "rdp"):
        assert epsilon_of(PoissonSampledDpEvent(0.05, pair), 1e-5, accountant) == pytest.approx(
            epsilon_of(joint, 1e-5, accountant), rel=1e-6
        )


@pytest.mark.parametrize(
    "event",
    [
        GaussianDpEvent(0.0),
        dp_accounting.NonPrivateDpEvent(),
        poisson(0.01, 0.0, 3),
        PoissonSampling(1000, 0.01).event(GaussianDpEvent(0.0), 3),
        GaussianDpEvent(1e-4),
    ],
)
def test_no_noise_no_privacy(event: dp_accounting.DpEvent):
    assert epsilon_of(event, 1e-5) == math.inf
    assert delta_of(event, 10.0) == 1.0


def test_no_noise_multiplier_no_privacy():
    assert epsilon(noise_multiplier=0, **PLAN) == math.inf


def test_other_step_events():
    laplace = PoissonSampledDpEvent(0.1, dp_accounting.LaplaceDpEvent(2.0))
    assert 0 < epsilon_of(SelfComposedDpEvent(laplace, 10), 1e-5) < 5
    with pytest.raises(ValueError, match="not supported by accountant 'rdp'"):
        epsilon_of(laplace, 1e-5, "rdp")
    with pytest.raises(ValueError, match="not supported by accountant 'pld'"):
        epsilon_of(dp_accounting.ZCDpEvent(0.1), 1e-5)
    assert epsilon_of(dp_accounting.ZCDpEvent(0.1), 1e-5, "rdp") > 0
    with pytest.raises(ValueError, match="not supported"):
        epsilon_of(dp_accounting.UnsupportedDpEvent(), 1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_epsilon": 0}, "target_epsilon must be above 0"),
        ({"target_epsilon": float("nan")}, "target_epsilon must be above 0"),
        ({"target_epsilon": 1e6}, "which protects nobody"),
        ({"delta": 0.0}, "delta must be above 0 and below 1"),
        ({"delta": 1}, "delta must be above 0 and below 1"),
        ({"delta": 1e-20}, "use accountant='rdp'"),
        ({"sampling_probability": 0.0}, "sampling_probability must be above 0"),
        ({"sampling_probability": 1.5}, "sampling_probability must be above 0"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"accountant": "moments"}, "accountant must be one of 'pld', 'rdp'"),
    ],
)
def test_bad_input_is_one_sentence(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        calibrate_noise_multiplier(**({"target_epsilon": 8} | PLAN | change))
    if "target_epsilon" not in change:
        with pytest.raises(ValueError, match=message):
            epsilon(**({"noise_multiplier": 1.0} | PLAN | change))


@pytest.mark.parametrize("noise_multiplier", [-1.0, float("nan"), float("inf")])
def test_bad_noise_is_one_sentence(noise_multiplier: float):
    with pytest.raises(ValueError, match="noise_multiplier must be at least 0 and finite"):
        epsilon(noise_multiplier=noise_multiplier, **PLAN)


def test_a_clip_without_an_event_is_refused():
    assert isinstance(Clip(), Clipping)
    with pytest.raises(TypeError, match=r"clip must have a method dp_event\(noise_multiplier\), got float"):
        epsilon(**({"noise_multiplier": 1.0} | PLAN | {"clip": 1.0}))


def test_negative_epsilon_is_refused():
    with pytest.raises(ValueError, match="epsilon must be at least 0"):
        delta_of(GaussianDpEvent(1.0), -0.1)


@pytest.mark.parametrize(("target", "probability"), [(1000.0, 0.01), (8.0, 1e-9)])
def test_easy_and_research_budgets_are_answered(target, probability):
    plan = PLAN | {"sampling_probability": probability, "num_steps": 20}
    noise = calibrate_noise_multiplier(target_epsilon=target, **plan)
    assert epsilon(noise_multiplier=noise, **plan) <= target
    assert noise == pytest.approx(1 / 32) or epsilon(noise_multiplier=0.99 * noise, **plan) > target


def test_a_composition_that_no_memory_holds_is_infinite_and_one_with_enough_noise_is_not():
    plan = PLAN | {"sampling_probability": 0.5, "num_steps": 10**9}
    assert epsilon(noise_multiplier=1.0, **plan) == float("inf")
    assert 0.15 < epsilon(noise_multiplier=1e4, **plan | {"num_steps": 10**6}) < 0.17
