"""What a report says of classes, errors and unfinished runs."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp import training
from jaxdp.training import load_config
from jaxdp.training.reporting._report import class_tables
from jaxdp.training.tasks._task import accuracy_scores, class_sums, perplexity_scores, record_sums
from tests.training.small import Quiet, head_only


@pytest.mark.quick
def test_scores_are_those_of_all_examples_with_their_standard_errors():
    draw = np.random.default_rng(0)
    logits, labels = draw.normal(size=(40, 3)).astype(np.float32), draw.integers(0, 3, 40).astype(np.int32)
    losses, real = draw.uniform(size=40).astype(np.float32), np.arange(40) < 33
    sums = [class_sums(*(jnp.asarray(x[i : i + 20]) for x in (logits, labels, losses, real))) for i in (0, 20)]
    scores = accuracy_scores(sums)
    right = (logits.argmax(1) == labels)[:33]
    assert scores["held_out_accuracy"] == pytest.approx(right.mean())
    assert scores["held_out_loss"] == pytest.approx(losses[:33].mean(), rel=1e-5)
    errors = [x.std() / math.sqrt(33) for x in (right, losses[:33])]
    assert scores["details"]["standard_errors"] == pytest.approx(errors, rel=1e-4)
    counts = np.array(scores["details"]["confusion"])
    assert counts.sum(1).tolist() == np.bincount(labels[:33], minlength=3).tolist()
    assert counts.sum(0).tolist() == np.bincount(logits[:33].argmax(1), minlength=3).tolist()


def test_the_error_of_a_perplexity_is_that_of_independent_records():
    draw = np.random.default_rng(1)
    tokens = draw.integers(1, 20, 400).astype(np.int32)
    losses = (2 + draw.normal(size=400) / np.sqrt(tokens)).astype(np.float32)
    scores = perplexity_scores([record_sums(jnp.asarray(losses), jnp.asarray(tokens))])
    totals = losses * tokens
    picks = draw.integers(0, 400, (2000, 400))
    spread = (totals[picks].sum(1) / tokens[picks].sum(1)).std()
    assert scores["details"]["standard_errors"][1] == pytest.approx(spread, rel=0.1)
    assert scores["held_out_loss"] == pytest.approx(totals.sum() / tokens.sum(), rel=1e-5)


def test_class_tables():
    (_, scores), (_, matrix) = class_tables([[3, 1], [0, 0]], ["a", "b"])
    assert scores[1:] == [["a", "4", "0.7500", "1.0000"], ["b", "0", "none", "0.0000"]]
    assert matrix[1:] == [["a", "3", "1"], ["b", "0", "0"]]
    assert class_tables([], []) == []


def test_an_unfinished_report_says_what_was_spent_and_a_finished_one_has_its_classes(table, tiny_model, tmp_path):
    (tmp_path / "a.toml").write_text(head_only(table, tiny_model))
    config = load_config(tmp_path / "a.toml")
    run = training.RunDirectory(training.train(config, tmp_path / "run", Quiet()))
    text = (run.path / "report.md").read_text()
    for words in ("majority baseline", 'the most frequent class "', "standard error", "Confusion matrix", "| up |"):
        assert words in text
    for section in ("[network]", "[lora]", "[samples]", "## Samples", "PRIVATE"):
        assert section not in text
    assert "epsilon 6.00, delta" in text and "spent up to" not in text
    run.result.unlink()
    (run.checkpoints / "5").rename(run.checkpoints / "unfinished")
    for log in (run.metrics, run.metrics_sums):
        log.write_text("".join(line + "\n" for line in log.read_text().splitlines()[:1]))
    step = json.loads(run.metrics.read_text())["step"]
    training.write_report(run)
    text = (run.path / "report.md").read_text()
    plan = json.loads(run.plan.read_text())
    spent = next(value for at, value in plan["curve"] if at >= step)
    assert f"epsilon {math.ceil(spent * 100) / 100:.2f} spent up to step {step}" in text
    assert "| planned | epsilon 6.00" in text and "Confusion matrix" not in text
