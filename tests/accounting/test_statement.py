"""The privacy statement: complete, readable, and recomputable from its JSON."""

import dataclasses
import json
import math

import dp_accounting
import pytest
from dp_accounting import GaussianDpEvent, SelfComposedDpEvent

from jaxdp.accounting import (
    Phase,
    PrivacyStatement,
    TruncatedPoissonDpEvent,
    epsilon_of,
    event_from_dict,
    event_to_dict,
)
from jaxdp.accounting._statement_text import _number
from jaxdp.sampling import FullBatch, PoissonSampling


class Clip:
    def dp_event(self, noise_multiplier: float) -> dp_accounting.DpEvent:
        return GaussianDpEvent(noise_multiplier)


def phase(name: str, sampling, noise_multiplier: float, num_steps: int) -> Phase:
    return Phase.of(
        name=name,
        mechanism="sum of per-example gradients, each clipped in L2 norm, plus Gaussian noise",
        clip=Clip(),
        sampling=sampling,
        noise_multiplier=noise_multiplier,
        num_steps=num_steps,
        clipping_norm=0.5,
    )


@pytest.fixture(scope="module")
def statement() -> PrivacyStatement:
    phases = [
        phase("head", FullBatch(8000), 60, 100),
        phase("fine-tuning", PoissonSampling(8000, 0.03), 1.0, 300),
    ]
    return PrivacyStatement.from_phases(
        phases,
        delta=1e-5,
        also_outside_the_guarantee=["the choice of labels"],
        private_outputs=["train_loss"],
    )


@pytest.mark.quick
def test_json_round_trip_keeps_everything(statement: PrivacyStatement):
    again = PrivacyStatement.from_json(statement.to_json())
    assert again == statement
    assert again.event == statement.event
    again.verify()


def test_epsilon_is_that_of_all_phases_together(statement: PrivacyStatement):
    assert statement.epsilon == epsilon_of(statement.event, 1e-5)
    assert statement.epsilon > max(epsilon_of(part.event, 1e-5) for part in statement.phases)


def test_a_phase_takes_its_numbers_from_what_runs(statement: PrivacyStatement):
    sampling = PoissonSampling(8000, 0.03)
    part = statement.phases[1]
    assert part.event == sampling.event(GaussianDpEvent(1.0), 300)
    assert (
        part.num_examples,
        part.sampling_probability,
        part.padded_batch_size,
        part.expected_batch_size,
    ) == (
        8000,
        0.03,
        sampling.padded_batch_size,
        240.0,
    )


def test_text_tells_a_reviewer_everything_on_one_page(statement: PrivacyStatement):
    text = statement.to_text()
    assert max(map(len, text.splitlines())) <= 90
    assert len(text.splitlines()) <= 90
    flat = " ".join(text.split())
    for expected in (
        "differentially private under add-or-remove-one adjacency",
        "one example (one row of the training data)",
        "1e-05",
        "pld of dp-accounting",
        f"jaxdp {statement.jaxdp_version}",
        "Phase 1 of 2: head",
        "Phase 2 of 2: fine-tuning",
        "noise multiplier 60",
        "clipping norm 0.5",
        "sampling probability 0.03",
        "expected batch size 240",
        "TruncatedPoisson(dataset_size=8000",
        "without amplification",
        "WARNING: this run also wrote values without noise: train_loss",
        *statement.outside_the_guarantee,
        "the choice of labels",
    ):
        assert expected in flat, expected
    assert "WARNING" not in dataclasses.replace(statement, private_outputs=()).to_text()
    for word in ("seed", "key("):
        assert word not in flat and word not in statement.to_json()


def test_a_doctored_epsilon_is_found_out(statement: PrivacyStatement):
    doctored = json.loads(statement.to_json()) | {"epsilon": statement.epsilon * 0.99}
    with pytest.raises(ValueError, match=r"below the .* that its events give"):
        PrivacyStatement.from_json(json.dumps(doctored)).verify()


def test_without_noise_the_statement_says_so():
    bare = PrivacyStatement.from_phases([phase("all", FullBatch(10), 0.0, 1)], delta=1e-5)
    assert bare.epsilon == math.inf
    assert "no privacy guarantee" in bare.to_text() and "infinite" in bare.to_text()
    assert PrivacyStatement.from_json(bare.to_json()) == bare


def test_numbers_are_never_rounded_in_favour_of_the_run():
    assert [_number(value) for value in (7.99991, 8.0, 2.0001, 0.123456, 1e-5, 240.0, 12345.6)] == [
        "8",
        "8",
        "2.001",
        "0.1235",
        "1e-05",
        "240",
        "12350",
    ]


def test_the_statement_says_whose_bound_epsilon_is(statement: PrivacyStatement):
    assert statement.bound == "pld"
    assert "the bound by privacy loss distributions (pld), the smaller of pld and rdp" in flat(statement)
    many = PrivacyStatement.from_phases([phase("all", FullBatch(10), 5.0, 3)], delta=1e-5, accountant="rdp")
    assert many.bound == "rdp" and "the bound by Rényi divergences (rdp); rounding is counted" in flat(many)
    # One written before statements said it.
    old = {name: value for name, value in json.loads(statement.to_json()).items() if name != "bound"}
    assert PrivacyStatement.from_json(json.dumps(old)) == dataclasses.replace(statement, bound="")
    assert "the bound by" not in flat(PrivacyStatement.from_json(json.dumps(old)))


def flat(statement: PrivacyStatement) -> str:
    return " ".join(statement.to_text().split())


def test_hyperparameter_tuning_can_be_described(statement: PrivacyStatement):
    text = "chosen on public data"
    assert text in PrivacyStatement.from_phases(statement.phases[:1], delta=1e-5, hyperparameter_tuning=text).to_text()


@pytest.mark.parametrize(
    "event",
    [
        TruncatedPoissonDpEvent(100, 0.1, 20, GaussianDpEvent(1.0)),
        dp_accounting.ComposedDpEvent([SelfComposedDpEvent(GaussianDpEvent(2.0), 3), dp_accounting.NoOpDpEvent()]),
        dp_accounting.dp_event.MixtureOfGaussiansDpEvent(1.0, [0.0, 1.0], [0.5, 0.5]),
    ],
)
def test_events_survive_json(event: dp_accounting.DpEvent):
    assert event_from_dict(json.loads(json.dumps(event_to_dict(event)))) == event


def test_what_cannot_be_read_is_refused_with_a_sentence(statement: PrivacyStatement):
    fields = json.loads(statement.to_json())
    with pytest.raises(ValueError, match="format_version of the statement must be 1"):
        PrivacyStatement.from_json(json.dumps(fields | {"format_version": 2}))
    with pytest.raises(ValueError, match="missing or unknown field"):
        PrivacyStatement.from_json(json.dumps(fields | {"colour": "red"}))
    with pytest.raises(ValueError, match=r"event 'os\.system' is not known"):
        event_from_dict({"type": "os.system"})
    with pytest.raises(ValueError, match="cannot be written to a statement"):
        event_to_dict(dp_accounting.UnsupportedDpEvent())
    with pytest.raises(ValueError, match="phases must hold at least one phase"):
        PrivacyStatement.from_phases([], delta=1e-5)
