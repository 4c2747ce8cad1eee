"""Whole runs with a tiny encoder: what they write, what they refuse, and that they stop in good order."""

import json
import math
import os
import shutil
import signal
import stat
import tomllib

import jax
import numpy as np
import pytest

import jaxdp
from jaxdp import accounting, models, sampling, training
from jaxdp.training import Interrupted, RunDirectory, UserError
from jaxdp.training._run import _state_rounding
from jaxdp.training.files._sealed import sealed
from jaxdp.training.running._loop import phase_transformation
from jaxdp.training.running._manifest import check_files, read_manifest

from .small import Quiet, head_only, two_phases, write_table

SEED = 918273645
PUBLIC_FIELDS = {"step", "phase", "epsilon", "held_out_accuracy", "held_out_loss"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, table, tiny_model):
    """One run with default logging, seeded."""
    folder = tmp_path_factory.mktemp("finished")
    path = folder / "small.toml"
    path.write_text(two_phases(table, tiny_model))
    display = Quiet()
    run = RunDirectory(training.train(training.load_config(path), folder / "run", display, SEED))
    return run, display


def resealed(text: str, change) -> str:
    """A manifest as if the run had begun under other circumstances."""
    fields = json.loads(text)
    fields.pop("sha256")
    change(fields)
    return json.dumps(sealed(fields))


def lines_of(run: RunDirectory):
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


@pytest.mark.quick
def test_a_run_learns_and_writes_what_it_is_for(finished):
    run, display = finished
    result = json.loads(run.result.read_text())
    assert result["held_out_accuracy"] > 0.8 and result["steps"] == 30
    # The time of a step follows the size of the Poisson batch drawn, which is private.
    assert set(result["seconds_per_step"]) == {"head"}
    assert "time per step, top" not in (run.path / "report.md").read_text()
    model = models.load_classifier(run.model)
    assert model.label_names == ("down", "up")
    assert (run.model / "tokenizer.json").exists()
    assert display.steps == list(range(1, 31)) and display.epsilons == sorted(display.epsilons)


def test_the_saved_model_has_the_accuracy_that_was_reported(finished):
    run, _ = finished
    config = training.load_config(run.config)
    from jaxdp.training.tasks._data import load_dataset

    held_out = load_dataset(config).held_out
    model = models.load_classifier(run.model)
    logits = jax.vmap(lambda ids, mask: model(ids, mask, deterministic=True))(held_out.ids, held_out.mask)
    accuracy = np.mean(np.argmax(np.asarray(logits), axis=1) == held_out.labels)
    assert accuracy == pytest.approx(json.loads(run.result.read_text())["held_out_accuracy"])


def test_only_evaluations_are_logged_and_nothing_private_is(finished):
    run, _ = finished
    lines = lines_of(run)
    assert [line["step"] for line in lines] == [3, 6, 9, 12, *range(14, 31, 2)]
    assert all(set(line) == PUBLIC_FIELDS for line in lines)
    assert lines[-1]["epsilon"] <= 6.0
    assert set(json.loads(run.plan.read_text())) == {
        "noise_multipliers", "groups", "epsilon", "curve", "num_examples", "seeded",
    }  # fmt: skip


def test_no_file_that_may_be_published_holds_the_key_the_seed_or_the_fingerprint(finished):
    run, _ = finished
    manifest = json.loads(run.manifest.read_text())
    words = jax.random.key_data(sampling.key_from_seed(SEED)).tolist()
    secrets = [manifest["data"], str(SEED), f"{SEED:x}", str(words[1])]
    public = [p for p in run.path.rglob("*") if p.is_file() and run.checkpoints not in p.parents]
    assert {"report.html", "report.md", "statement.json", "config.toml"} <= {p.name for p in public}
    for path in public:
        content = path.read_bytes()
        assert not any(secret.encode() in content for secret in secrets), path
    assert stat.S_IMODE(run.checkpoints.stat().st_mode) == 0o700


def test_the_statement_is_that_of_the_plan_and_says_what_a_known_seed_means(finished):
    run, _ = finished
    statement = accounting.PrivacyStatement.from_json(run.statement_json.read_text())
    statement.verify()
    assert 5.9 < statement.epsilon <= 6.0
    config = tomllib.loads(run.config.read_text())
    assert [phase.num_steps for phase in statement.phases] == [phase["steps"] for phase in config["phase"]]
    assert "do not know the seed" in statement.setting
    assert "do not know the seed" in " ".join(run.statement_text.read_text().split())
    assert "checkpoints/" in " ".join(statement.outside_the_guarantee)
    # What each phase's noise covers for rounding, which only its step tells.
    assert all(0 < phase.rounding < 0.05 and phase.grid is None for phase in statement.phases)
    assert "% more than the clipping norm, which the noise covers" in " ".join(run.statement_text.read_text().split())
    assert run.statement_text.read_text() in (run.path / "report.md").read_text()


def test_a_grid_is_named_in_the_statement_and_its_noise_is_larger(tmp_path, table, tiny_model):
    path = tmp_path / "small.toml"
    path.write_text(head_only(table, tiny_model, privacy="noise_multiplier = 1.0\ngrid = 0.02"))
    run = training.RunDirectory(training.train(training.load_config(path), tmp_path / "run", Quiet(), seed=SEED))
    statement = accounting.PrivacyStatement.from_json(run.statement_json.read_text())
    assert [phase.grid for phase in statement.phases] == [0.02]
    text = " ".join(run.statement_text.read_text().split())
    assert "rounded to multiples of a public power of two, which moves the sum by at most 2 % more" in text


def test_what_rounding_takes_is_stated_before_the_first_step_and_the_most_of_it_stays(finished, tmp_path):
    run, _ = finished
    copy = training.RunDirectory(shutil.copytree(run.path, tmp_path / "copy"))
    before = accounting.PrivacyStatement.from_json(copy.statement_json.read_text())
    largest = before.phases[1].rounding
    for rounding, expected in ((largest / 2, largest), (largest * 2, largest * 2), (largest, largest * 2)):
        _state_rounding(copy, 1, rounding)
        found = accounting.PrivacyStatement.from_json(copy.statement_json.read_text())
        assert found.phases[1].rounding == expected and found.phases[0] == before.phases[0]
        assert copy.statement_text.read_text() == found.to_text()
        check_files(copy, read_manifest(copy))


def test_the_report_is_one_page_with_its_pictures(finished):
    run, _ = finished
    assert {path.name for path in training.write_report(run)} == {
        "learning_curve.png", "epsilon.png", "report.md", "report.html",
    }  # fmt: skip
    markdown, page = (run.path / "report.md").read_text(), (run.path / "report.html").read_text()
    for text in ("held-out accuracy", "PRIVACY STATEMENT", "noise_weight = 4.0", "seed was chosen with --seed"):
        assert text in markdown and text in page
    assert (
        page.count("data:image/png;base64,") == 2
        and "<img" in page
        and "http" not in page.lower().replace("https://arxiv.org", "")
    )
    assert "not finished" not in markdown and "PRIVATE: outside" not in markdown


def test_private_metrics_are_an_opt_in_and_marked_everywhere(tmp_path, table, tiny_model):
    path = tmp_path / "small.toml"
    path.write_text(head_only(table, tiny_model, log="private_metrics = true"))
    display = Quiet()
    run = RunDirectory(training.train(training.load_config(path), tmp_path / "run", display))
    private = [line for line in lines_of(run) if "private" in line]
    assert [line["step"] for line in private] == list(range(1, 6))
    assert set(private[0]["private"]) == {"train_loss", "batch_size", "clipped_share"}
    assert private[0]["private"]["train_loss"] == pytest.approx(math.log(2), rel=1e-3)
    statement = accounting.PrivacyStatement.from_json(run.statement_json.read_text())
    assert set(statement.private_outputs) == {"train_loss", "batch_size", "clipped_share"}
    assert "PRIVATE: outside the guarantee" in (run.path / "report.md").read_text()
    assert any("outside the guarantee" in line for line in display.lines)
    assert "seed" not in statement.setting


def test_a_baseline_without_privacy_says_so_everywhere(tmp_path, table, tiny_model):
    path = tmp_path / "small.toml"
    path.write_text(head_only(table, tiny_model, privacy="enabled = false"))
    display = Quiet()
    run = RunDirectory(training.train(training.load_config(path), tmp_path / "run", display))
    assert any("NO privacy guarantee" in line for line in display.lines)
    assert "NO privacy guarantee" in (run.path / "report.md").read_text()
    assert "no privacy guarantee" in run.statement_text.read_text()
    assert all(line["epsilon"] is None for line in lines_of(run))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, tiny_model):
    """A run that got SIGINT after step 15, in its second phase; tests that change it change it back."""
    folder = tmp_path_factory.mktemp("interrupted")
    table = write_table(folder / "mine.csv")
    path = folder / "small.toml"
    path.write_text(two_phases(table, tiny_model))
    # Shells make what they start in the background deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def stop(done: int) -> None:
        if done == 15:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        training.train(training.load_config(path), folder / "run", Quiet(stop))
    return RunDirectory(folder / "run"), table


def test_an_interrupt_lets_the_step_finish_and_saves_it(interrupted):
    run, _ = interrupted
    from jaxdp.training.running._checkpoint import Checkpoints

    checkpoints = Checkpoints(run.checkpoints)
    step, meta = checkpoints.latest()
    checkpoints.close()
    assert (step, meta["phase"]) == (15, 1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not run.result.exists()
    training.write_report(run)
    assert "not finished" in (run.path / "report.md").read_text()


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("data", "the training or held-out data changed"),
        ("config", "config.toml was changed"),
        ("jax", "jax was 0.0.1 and is"),
        ("jaxdp", "jaxdp was"),
        ("noise", "noise was another and is"),
        ("model", "the pretrained model changed"),
    ],
)
def test_resume_refuses_what_would_give_other_results_from_the_same_noise(interrupted, monkeypatch, what, sentence):
    run, table = interrupted
    file = {"data": table, "config": run.config}.get(what, run.manifest)
    before = file.read_text()
    changed = {
        "data": lambda: before.replace("good", "great", 1),
        "config": lambda: before.replace("learning_rate = 0.002", "learning_rate = 0.003"),
        "jax": lambda: resealed(before, lambda fields: fields["environment"]["versions"].update(jax="0.0.1")),
        "noise": lambda: resealed(before, lambda fields: fields["environment"]["versions"].pop("noise")),
        "model": lambda: resealed(before, lambda fields: fields.update(model="0")),
    }.get(what, lambda: before)()
    monkeypatch.setattr(jaxdp, "__version__", "9.9" if what == "jaxdp" else jaxdp.__version__)
    assert (changed == before) == (what == "jaxdp")
    file.write_text(changed)
    try:
        with pytest.raises(UserError) as caught:
            training.resume(run.path, Quiet())
    finally:
        file.write_text(before)
    assert sentence in str(caught.value) and "the same noise" in str(caught.value)


def test_two_processes_cannot_train_the_same_run(interrupted):
    run, _ = interrupted
    with run.lock(), pytest.raises(UserError, match="is being trained by another process"):
        training.resume(run.path, Quiet())


def test_directories_that_hold_something_else_are_refused(finished, tmp_path, config_file):
    run, _ = finished
    with pytest.raises(UserError, match="already exists and is not empty: go on with `jaxdp resume"):
        training.train(training.load_config(config_file), run.path, Quiet())
    with pytest.raises(UserError, match="holds no run"):
        training.resume(tmp_path, Quiet())
    display = Quiet()
    training.resume(run.path, display)
    assert display.lines == [f"{run.path} is complete: see {run.path / 'report.md'}."]


def test_phases_the_model_cannot_do_are_refused_before_anything_is_written(tmp_path, config_file):
    for override, sentence in [
        (("phase.top.train", "last:3"), "phase.2.train: train = 'last:3', but the model has 2 layers"),
        (("phase.top.train", "bias"), 'phase.2.features is "cached", but phase.2.train also trains the embeddings'),
        (("phase.top.train", '["nothing/*"]'), "phase.2.train: train pattern 'nothing/*' matches no parameter"),
    ]:
        with pytest.raises(UserError) as caught:
            training.train(training.load_config(config_file, [override]), tmp_path / "run", Quiet())
        assert sentence in str(caught.value)
        assert not (tmp_path / "run").exists()


def test_each_phase_draws_its_noise_from_a_stream_of_its_own(config_file):
    plan = training.make_plan(training.load_config(config_file), 900)
    root = sampling.key_from_seed(1)
    keys = {tuple(jax.random.key_data(root).tolist())}
    for index in range(2):
        state = phase_transformation(plan, index, root).init({"w": jax.numpy.zeros(2)})
        noise = [x for x in jax.tree.leaves(state) if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)]
        assert len(noise) == 1
        keys.add(tuple(jax.random.key_data(noise[0]).tolist()))
    assert len(keys) == 3
    others = [stream for name, stream in sampling.streams(root)._asdict().items() if name != "noise"]
    near = [jax.random.fold_in(key, i) for key in (root, *others) for i in range(6)]
    assert not keys & {tuple(jax.random.key_data(key).tolist()) for key in (*others, *near)}
