"""Stored outputs of frozen layers stand for the layers; held-out batches hold every row once."""

import jax
import numpy as np
import pytest

from jaxdp import data, models, training
from jaxdp.training.tasks import _features
from jaxdp.training.tasks._classifier import load_classifier
from jaxdp.training.tasks._data import load_dataset, model_directory
from jaxdp.training.tasks._features import by_length
from jaxdp.training.tasks._phase_data import make_evaluation, make_phase_data


@pytest.fixture
def prepared(config_file):
    config = training.load_config(config_file, [("data.train_limit", "60"), ("data.held_out_limit", "50")])
    dataset = load_dataset(config)
    classifier = load_classifier(config.model, model_directory(config), dataset.train.label_names)
    # A head that is not zero, so that the logits say something.
    draw = np.random.default_rng(0)
    params = {
        name: jax.numpy.asarray(draw.normal(size=x.shape).astype(np.float32)) if name.startswith("head/") else x
        for name, x in classifier.params.items()
    }
    return config, dataset, classifier, params


def phase_data(prepared, directory, **changes):
    config, dataset, classifier, params = prepared
    phase = config.phase[1].model_copy(update=changes)
    return make_phase_data(classifier, params, dataset, phase, "phase.2", directory, lambda done, total: None)


@pytest.mark.parametrize(("train", "start", "kind"), [
    ("head", 2, models.FeatureExample),
    ("last:1", 1, models.HiddenExample),
    (("encoder/layers/*", "head/*"), 0, models.HiddenExample),
])  # fmt: skip
def test_stored_outputs_give_the_same_losses_as_the_whole_model(prepared, tmp_path, train, start, kind):
    _, dataset, classifier, params = prepared
    live = phase_data(prepared, tmp_path, features="live")
    cached = phase_data(prepared, tmp_path, features="cached", train=train)
    assert isinstance(cached.train, kind) and cached.start == start
    losses = [jax.vmap(lambda example, d=d: classifier.loss(params, example, d.start))(d.train) for d in (live, cached)]
    np.testing.assert_allclose(*losses, rtol=2e-5, atol=2e-5)
    scores = [make_evaluation(classifier, d.start)(params, d) for d in (live, cached)]
    assert scores[0]["held_out_accuracy"] == scores[1]["held_out_accuracy"]
    assert scores[0]["held_out_loss"] == pytest.approx(scores[1]["held_out_loss"], rel=1e-4)
    assert len(dataset.train) == 60 and len(dataset.held_out) == 50


def test_outputs_are_read_back_and_depend_on_all_they_come_from(prepared, tmp_path, monkeypatch):
    config, dataset, classifier, params = prepared
    folder = tmp_path / "features"
    first = phase_data(prepared, folder, train="head")
    files = set(folder.iterdir())
    assert len(files) == 2 and all(file.stat().st_mode & 0o077 == 0 for file in files)
    other = params | {"encoder/layers/0/up/bias": params["encoder/layers/0/up/bias"] + 0.5}
    changed = phase_data((config, dataset, classifier, other), folder, train="head")
    assert len(set(folder.iterdir())) == 4
    assert np.any(np.asarray(changed.train.features) != np.asarray(first.train.features))
    monkeypatch.setattr(_features.models, "encode", None)
    again = phase_data(prepared, folder, train="head")
    np.testing.assert_array_equal(again.train.features, first.train.features)


def test_stored_outputs_of_a_lower_layer_are_gone_on_from(prepared, tmp_path, monkeypatch):
    config, dataset, classifier, params = prepared
    tuned = params | {"encoder/layers/1/up/bias": params["encoder/layers/1/up/bias"] + 0.5}
    direct = phase_data((config, dataset, classifier, tuned), tmp_path / "direct", train="head")
    folder = tmp_path / "features"
    phase_data(prepared, folder, train="last:1")
    with monkeypatch.context() as patched:
        patched.setattr(_features.models, "encode", None)
        continued = phase_data((config, dataset, classifier, tuned), folder, train="head")
    np.testing.assert_allclose(continued.train.features, direct.train.features, rtol=1e-5, atol=1e-5)
    # A change below what is stored makes it useless.
    lower = params | {"encoder/layers/0/up/bias": params["encoder/layers/0/up/bias"] + 0.5}
    afresh = phase_data((config, dataset, classifier, lower), folder, train="head")
    expected = phase_data((config, dataset, classifier, lower), tmp_path / "lower", train="head")
    np.testing.assert_array_equal(afresh.train.features, expected.train.features)


def test_the_head_does_not_count_among_what_outputs_come_from(prepared, tmp_path):
    config, dataset, classifier, params = prepared
    folder = tmp_path / "features"
    phase_data(prepared, folder, train="head")
    phase_data((config, dataset, classifier, params | {"head/bias": params["head/bias"] + 1}), folder, train="head")
    assert len(set(folder.iterdir())) == 2


@pytest.mark.quick
def test_pieces_by_length_hold_every_row_once_and_every_token():
    lengths = np.random.default_rng(1).integers(0, 21, size=70)
    mask = np.arange(20)[None, :] < lengths[:, None]
    pieces = list(by_length(mask, 16))
    assert sorted(np.concatenate([rows for rows, _ in pieces]).tolist()) == list(range(70))
    assert {length for _, length in pieces} == {8, 16, 20}
    for rows, length in pieces:
        assert len(rows) <= 16 and not mask[rows, length:].any()


def test_held_out_batches_count_every_row_once(prepared, tmp_path):
    live = phase_data(prepared, tmp_path, features="live")
    labels = [np.asarray(examples.label)[real] for examples, real in live.held_out]
    assert sum(len(x) for x in labels) == 50
    assert sum(int(x.sum()) for x in labels) == int(prepared[1].held_out.labels.sum())


def test_features_are_centered_on_a_public_corpus_alone(prepared):
    config, dataset, plain, params = prepared
    section = config.model.model_copy(update={"center": "movie_sentences"})
    first, second = (
        load_classifier(section, model_directory(config), dataset.train.label_names) for _ in range(2)
    )  # a resumed run computes it anew
    center = first.params["feature_center"]
    np.testing.assert_array_equal(center, second.params["feature_center"])
    means = np.random.default_rng(0).normal(size=(5, 3, 16)).astype(np.float32)
    np.testing.assert_allclose(
        first.features(first.params, means), plain.features(params, means) - np.asarray(center), atol=1e-6
    )
    # It is the mean of the features of that corpus, on a sample of it.
    texts = data.tokenise(data.movie_sentences().take(np.arange(400)), models.Tokenizer(model_directory(config)), 16)
    encoder = plain.build(params).encoder
    sample = plain.features(params, models.encode(encoder, texts.ids, texts.mask, layers=2, hidden=False).means)
    spread = sample.std(axis=0).mean()
    assert np.abs(sample.mean(axis=0) - center).max() < 0.5 * spread < 0.5 * np.abs(center).max()
