"""Whole runs of a tiny language model: records and users, stored outputs, samples, what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp import data, models, training
from jaxdp.training import RunDirectory, UserError
from jaxdp.training.running._statement import make_statement
from jaxdp.training.tasks._load import count_examples, load_task
from jaxdp.training.tasks._shapes import trained_shapes

from .small import Quiet
from .small_decoder import language_model, save_decoder, write_letters


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    return write_letters(tmp_path_factory.mktemp("letters") / "letters.csv")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return save_decoder(tmp_path_factory.mktemp("decoder"))


def configured(folder, text, *overrides):
    path = folder / "small.toml"
    path.write_text(text)
    return training.load_config(path, list(overrides))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, letters, decoder):
    folder = tmp_path_factory.mktemp("finished")
    config = configured(folder, language_model(letters, decoder))
    return RunDirectory(training.train(config, folder / "run", Quiet(), 3)), config


def lines_of(run):
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def test_a_run_lowers_the_perplexity_that_it_measured_before_the_first_step(finished):
    run, _ = finished
    lines = lines_of(run)
    assert [line["step"] for line in lines] == [0, 4, 8]
    assert lines[0]["epsilon"] == 0.0 and 0 < lines[1]["epsilon"] < lines[2]["epsilon"] <= 40.0
    assert lines[2]["held_out_perplexity"] < 0.7 * lines[0]["held_out_perplexity"]
    result = json.loads(run.result.read_text())
    assert result["held_out_perplexity"] == lines[2]["held_out_perplexity"]
    report = (run.path / "report.md").read_text()
    assert "held-out perplexity before training" in report and "after training: " in report
    assert "<td>the dog</td>" in (run.path / "report.html").read_text()


def test_the_saved_model_has_its_adapters_merged_and_writes_the_samples_shown(finished):
    run, config = finished
    decoder, tokenizer = models.load_decoder(run.model), models.Tokenizer(run.model)
    assert decoder.top is None and not any("lora" in path for path in models.parameter_paths(decoder))
    task = load_task(config)
    ids, mask = task.held_out.ids[:, 0], task.held_out.mask[:, 0]
    losses = jax.vmap(models.next_token_loss)(jax.vmap(decoder)(jnp.asarray(ids)), jnp.asarray(ids), jnp.asarray(mask))
    counts = mask.sum(axis=1) - 1
    loss = float(np.sum(np.asarray(losses) * counts) / counts.sum())
    assert loss == pytest.approx(json.loads(run.result.read_text())["held_out_loss"], rel=1e-4)
    samples = json.loads(run.samples.read_text())
    assert [sample["prompt"] for sample in samples] == ["the", "the dog"]
    assert all(sample["before"] != sample["after"] for sample in samples)
    words = set(tokenizer.decode(list(range(15))).split())
    assert all(set(sample["after"].split()) <= words for sample in samples)


def test_only_adapters_of_the_top_layer_are_trained_and_saved_in_checkpoints(finished, letters, decoder):
    run, config = finished
    task = load_task(config)
    trained = task.trained_paths("lora", "phase.1.train")
    assert trained and all(name.startswith("top/") and "/lora/" in name for name in trained)
    planned = trained_shapes(config, config.phase[0])
    assert {name: x.shape for name, x in planned.items()} == {name: task.params[name].shape for name in trained}
    before, after = models.load_decoder(decoder), models.load_decoder(run.model)
    for name in ("query", "value"):
        old, new = (getattr(model.layers.attention, name).kernel[...] for model in (before, after))
        np.testing.assert_array_equal(old[:2], new[:2])
        assert np.any(np.asarray(old[2]) != np.asarray(new[2]))
    np.testing.assert_array_equal(before.embedding[...], after.embedding[...])


def test_a_run_that_crashed_goes_on_to_the_same_model_and_samples(finished, tmp_path, letters, decoder):
    run, _ = finished

    def crash(done: int) -> None:
        if done == 5:
            raise MemoryError

    config = configured(tmp_path, language_model(letters, decoder, log="checkpoint_seconds = 0.0"))
    with pytest.raises(MemoryError):
        training.train(config, tmp_path / "run", Quiet(crash), 3)
    broken, display = RunDirectory(tmp_path / "run"), Quiet()
    assert not broken.result.exists()
    training.resume(broken.path, display)
    # The newest checkpoint may not have been whole yet when the run crashed.
    assert display.steps in ([5, 6, 7, 8], [4, 5, 6, 7, 8])
    for name in ("model/model.safetensors", "samples.json", "metrics.jsonl"):
        assert (broken.path / name).read_bytes() == (run.path / name).read_bytes(), name


@pytest.mark.parametrize("unit", ["record", "user"])
def test_stored_outputs_give_the_losses_of_the_whole_model(tmp_path, letters, decoder, unit):
    config = configured(tmp_path, language_model(letters, decoder, unit=unit), ("data.train_limit", "20"))
    task = load_task(config)
    draw = np.random.default_rng(0)
    params = {
        name: jnp.asarray(draw.normal(size=x.shape).astype(np.float32)) if "/lora/" in name else x
        for name, x in task.params.items()
    }
    found = []
    for features in ("live", "cached", "cached"):
        phase = config.phase[0].model_copy(update={"features": features})
        prepared = task.prepare(params, phase, "phase.1", tmp_path / "features", lambda done, total: None)
        losses = jax.jit(jax.vmap(prepared.loss, in_axes=(None, 0)))(params, prepared.train)
        found.append((np.asarray(losses), prepared.evaluate(params, prepared.held_out)["held_out_perplexity"]))
    # Copies of a text stay together, so that there may be more records than asked for.
    assert found[0][0].shape == (task.num_train,) and (unit == "record" or task.num_train == 20)
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    np.testing.assert_array_equal(found[1][0], found[2][0])
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)
    files = list((tmp_path / "features").iterdir())
    assert len(files) == 2 and all(file.stat().st_mode & 0o077 == 0 for file in files)


def test_a_user_is_one_example_whatever_its_number_of_records(tmp_path, letters, decoder):
    config = configured(tmp_path, language_model(letters, decoder, unit="user", steps=2))
    task = load_task(config)
    assert task.num_train + task.num_held_out == 240 and task.train.ids.shape[1:] == (3, 8)
    assert count_examples(config) == task.num_train
    statement = make_statement(training.make_plan(config, task.num_train), seeded=False)
    statement.verify()
    assert "one user" in statement.unit_of_privacy and "at most 3 are used" in statement.unit_of_privacy
    assert statement.phases[0].num_examples == task.num_train
    assert statement.phases[0].mechanism.startswith("sum of gradients of users")
    assert "one user" in " ".join(statement.to_text().split())


@pytest.mark.quick
def test_adding_a_user_changes_nobody_else(letters):
    records = data.read_records(letters, "body", "writer")
    more = data.TextRecords((*records.texts, *["the sea"] * 9), (*records.users, *["new"] * 9))

    class Lengths:
        def encode_batch(self, texts, max_length):
            ids = np.array([[len(text)] * max_length for text in texts], np.int32)
            return ids, ids > 0

    for held_out in (0.2, 0.0):
        parts = [data.split_users(each, held_out, 0) for each in (records, more)]
        tokens = [[data.tokenise_users(part, Lengths(), 2, 3).ids for part in both] for both in parts]
        added = [len(new) - len(old) for old, new in zip(*tokens, strict=True)]
        assert sorted(added) == [0, 1]
        for old, new in zip(*tokens, strict=True):
            np.testing.assert_array_equal(old, new[: len(old)])
    train, out = data.split_users(records, 0.2, 0)
    assert not set(train.users) & set(out.users) and len(train) + len(out) == len(records)


def test_what_does_not_fit_is_refused_in_a_sentence(tmp_path, letters, decoder):
    text = language_model(letters, decoder)
    for override, sentence in [
        (("data.source", "tweets"), 'data.source is "tweets", which is for task.kind = "text_classification"'),
        (("model.path", "convnet"), 'model.path is "convnet", which is for images'),
        (("data.max_records_per_user", "3"), 'data.max_records_per_user has no meaning with data.unit = "record"'),
        (("data.unit", "user"), "data.user_column is missing"),
        (("task.kind", "image_classification"), 'but images are read from "fashion_mnist" only'),
    ]:
        with pytest.raises(UserError) as caught:
            configured(tmp_path, text, override)
        assert sentence in str(caught.value)
    for override, sentence in [
        (("lora.targets", '["*/query"]'), 'phase.1.features is "cached", but phase.1.train also trains layers/'),
        (("model.top_layers", "3"), "model.top_layers: top layers must be from 1 to 2"),
        (("model.layers", "9"), "model.layers: layers must be from 1 to 3"),
        (("samples.max_new_tokens", "40"), "samples.prompts must not be empty, and with max_new_tokens fit into"),
        (("data.max_length", "25"), "data.max_length is 25, but the model takes 24 tokens"),
    ]:
        with pytest.raises(UserError) as caught:
            training.train(configured(tmp_path, text, override), tmp_path / "run", Quiet())
        assert sentence in str(caught.value)
        assert not (tmp_path / "run").exists()
