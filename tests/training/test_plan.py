"""Calibration over phases, and an epsilon that is never shown too small."""

import math
import tomllib
from pathlib import Path
from types import SimpleNamespace

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from jaxdp import accounting
from jaxdp.per_example import resolve_groups
from jaxdp.training import UserError, load_config, make_plan
from jaxdp.training._finish import _public_times
from jaxdp.training.chain._clipping import clip_spec
from jaxdp.training.running._plan import plan_from_saved, saved_plan
from jaxdp.training.running._statement import make_statement

TEXT = """
[data]
source = "tweets"
[privacy]
epsilon = 3.0
delta = 1e-5
[[phase]]
train = "head"
batch_size = "full"
steps = 40
learning_rate = 0.1
noise_weight = 6.0
[[phase]]
train = "bias"
batch_size = 100
steps = 30
learning_rate = 0.1
"""
N = 4000


def plan_of(tmp_path: Path, *overrides: tuple[str, str], n: int = N):
    path = tmp_path / "plan.toml"
    path.write_text(TEXT)
    return make_plan(load_config(path, overrides), n)


def independent_epsilon(toml: str, noise_multipliers: list[float], accountant) -> float:
    """Epsilon from nothing but the configuration's text and the noise, by dp_accounting alone."""
    config = tomllib.loads(toml)
    for phase, noise in zip(config["phase"], noise_multipliers, strict=True):
        event = dp_accounting.GaussianDpEvent(noise)
        if phase["batch_size"] != "full":
            event = dp_accounting.PoissonSampledDpEvent(phase["batch_size"] / N, event)
        accountant.compose(event, phase["steps"])
    return accountant.get_epsilon(config["privacy"]["delta"])


@pytest.mark.quick("rdp-RdpAccountant")
@pytest.mark.parametrize(("name", "make"), [("pld", PLDAccountant), ("rdp", RdpAccountant)])
def test_the_stated_epsilon_is_that_of_an_independent_recomputation(tmp_path, name, make):
    plan = plan_of(tmp_path, ("privacy.accountant", name))
    noise = [phase.noise_multiplier for phase in plan.phases]
    statement = make_statement(plan, seeded=False)
    expected = independent_epsilon(TEXT, noise, make())
    assert statement.epsilon == pytest.approx(expected, rel=2e-3)
    assert 2.95 < statement.epsilon <= 3.0
    assert statement.epsilon == plan.epsilon == plan.curve[-1][1]


def test_the_phases_noise_stands_in_the_ratio_of_their_weights(tmp_path):
    first, second = plan_of(tmp_path).phases
    assert first.noise_multiplier == pytest.approx(6 * second.noise_multiplier)
    given = plan_of(tmp_path, ("privacy.noise_multiplier", "1.25"))
    assert [phase.noise_multiplier for phase in given.phases] == [7.5, 1.25]


@pytest.mark.parametrize("weight", [0.25, 0.9])
def test_a_phase_with_less_noise_than_others_is_accounted_with_its_own(tmp_path, weight):
    """Whether the noise is given or calibrated: nothing rounds a weight below 1 up to it."""
    toml = TEXT.replace("noise_weight = 6.0", f"noise_weight = {weight}")
    for noise in (("privacy.noise_multiplier", "8.0"), ("privacy.epsilon", "3.0")):
        plan = plan_of(tmp_path, ("phase.1.noise_weight", str(weight)), noise)
        first, second = (phase.noise_multiplier for phase in plan.phases)
        assert first == pytest.approx(weight * second)
        spent = independent_epsilon(toml, [first, second], PLDAccountant())
        assert plan.epsilon == pytest.approx(spent, rel=2e-3)
        assert make_statement(plan, seeded=False).epsilon == plan.epsilon
        assert [phase.noise_multiplier for phase in make_statement(plan, seeded=False).phases] == [first, second]


def test_what_was_written_without_noise_and_a_known_seed_are_named(tmp_path):
    given = ("privacy.noise_multiplier", "1.0")
    plain = make_statement(plan_of(tmp_path, given), seeded=False)
    assert plain.private_outputs == () and "seed" not in plain.setting
    told = make_statement(plan_of(tmp_path, given, ("log.private_metrics", "true")), seeded=True)
    assert set(told.private_outputs) == {"train_loss", "batch_size", "clipped_share"}
    assert "the guarantee holds only against those who do not know the seed" in told.setting


def test_only_the_time_of_full_batches_is_published(tmp_path, without_type_checks):
    """The time of a Poisson step follows the size of the batch that was drawn."""
    seconds = {"phase1": [1.0, 4], "phase2": [3.0, 4]}
    job = lambda *overrides: SimpleNamespace(
        plan=plan_of(tmp_path, ("privacy.noise_multiplier", "1.0"), *overrides), seconds=seconds
    )
    names = [phase.config.name for phase in job().plan.phases]
    seconds = dict(zip(names, seconds.values(), strict=True))
    assert set(_public_times(job())) == {names[0]}
    assert set(_public_times(job(("log.private_metrics", "true")))) == set(names)


def test_the_epsilon_shown_is_never_below_what_was_spent(tmp_path):
    plan = plan_of(tmp_path)
    shown = [plan.epsilon_after(step) for step in range(71)]
    assert shown[0] == 0.0 and shown == sorted(shown) and shown[-1] == plan.epsilon
    for step in (1, 2, 7, 39, 40, 41, 53, 69):
        spent = accounting.epsilon_of(plan.event_after(step), 1e-5)
        assert spent <= shown[step] * (1 + 1e-6), step
    assert plan.phase_at(39) == 0 and plan.phase_at(40) == 1


def test_a_resumed_run_gets_the_very_same_noise(tmp_path):
    plan = plan_of(tmp_path)
    assert plan_from_saved(plan.config, N, saved_plan(plan)) == plan


def test_without_privacy_there_is_no_noise_and_no_epsilon(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(TEXT.replace("epsilon = 3.0", "enabled = false"))
    plan = make_plan(load_config(path), N)
    assert all(phase.noise_multiplier is None for phase in plan.phases)
    assert math.isinf(plan.epsilon) and math.isinf(plan.epsilon_after(1))
    assert any("NO privacy guarantee" in warning for warning in plan.warnings)
    statement = make_statement(plan, seeded=False)
    assert math.isinf(statement.epsilon) and "no privacy guarantee" in statement.to_text()


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        (
            "phase.2.batch_size",
            "5000",
            "phase.2.batch_size is 5000 with 4000 training examples, a sampling probability",
        ),
        ("phase.2.microbatch_size", "900", "phase.2.microbatch_size is 900, more than the padded batch of"),
        ("phase.1.microbatch_size", "4001", "phase.1.microbatch_size is 4001, more than the padded batch of 4000"),
        ("privacy.delta", "1e-20", "privacy: delta"),
    ],
)
def test_numbers_that_do_not_fit_the_data_are_one_sentence(tmp_path, field, value, sentence):
    with pytest.raises(UserError) as caught:
        plan_of(tmp_path, (field, value))
    assert sentence in str(caught.value)


def test_a_delta_of_one_over_n_is_a_warning(tmp_path):
    warnings = plan_of(tmp_path, ("privacy.delta", "0.001")).warnings
    assert len(warnings) == 1 and "not below 1/n = 0.00025" in warnings[0]


def test_the_statement_names_the_corpus_that_is_taken_as_public(tmp_path):
    noise = ("privacy.noise_multiplier", "1.0")
    centered = make_statement(plan_of(tmp_path, noise, ("model.center", "movie_sentences")), seeded=False)
    assert any("the corpus movie_sentences" in line for line in centered.outside_the_guarantee)
    plain = make_statement(plan_of(tmp_path, noise), seeded=False)
    assert not any("movie_sentences" in line for line in plain.outside_the_guarantee)


def test_estimated_norms_need_more_noise_and_the_statement_says_so(tmp_path):
    plan = lambda *overrides: plan_of(tmp_path, ("phase.1.steps", "2"), ("phase.2.steps", "3"), *overrides)
    exact, estimated = plan(), plan(("clipping.norm", "hutchinson"), ("clipping.probes", "32"))
    ratios = [b.noise_multiplier / a.noise_multiplier for a, b in zip(exact.phases, estimated.phases, strict=True)]
    assert all(1.02 < ratio < 1.3 for ratio in ratios)
    statement = make_statement(estimated, seeded=False)
    assert "norms estimated by hutchinson with 32 probes" in statement.to_text()
    assert all(phase.clipping_norm is None for phase in statement.phases)
    statement.verify()


def test_layers_are_groups_of_their_own_although_the_parameters_are_one_flat_mapping(tmp_path):
    config = plan_of(tmp_path, ("clipping.groups", "layer")).config
    spec = clip_spec(config.phase[0], config.clipping)
    names = ("encoder/0/kernel", "encoder/0/bias", "encoder/1/kernel", "head/kernel", "head/bias")
    assert len(resolve_groups(spec.group_spec, dict.fromkeys(names, 1.0))) == 3
