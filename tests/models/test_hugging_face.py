"""Directories: round trips, and what a broken one says."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdp import models

pytest.importorskip("safetensors")
from safetensors.numpy import load_file, save_file


def leaves(model):
    return {"/".join(map(str, path)): np.asarray(value[...]) for path, value in nnx.to_flat_state(nnx.state(model))}


def assert_same(one, other):
    first, second = leaves(one), leaves(other)
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.fixture
def directory(encoder, tmp_path):
    return models.save_pretrained(encoder, tmp_path / "model")


def rewrite(directory, change):
    tensors = load_file(directory / "model.safetensors")
    save_file(change(tensors), directory / "model.safetensors")


def test_an_encoder_survives_its_round_trip(encoder, directory):
    assert_same(models.load_pretrained(directory), encoder)


def test_dense_weights_are_stored_out_by_in(encoder, directory):
    stored = load_file(directory / "model.safetensors")["encoder.layer.2.intermediate.dense.weight"]
    np.testing.assert_array_equal(stored, np.asarray(encoder.layers[2].up.kernel[...]).T)
    assert stored.shape == (12, 8)


@pytest.mark.parametrize("extras", [False, True])
def test_a_classifier_survives_its_round_trip(encoder, tmp_path, extras):
    constants = {"normalize": True, "feature_center": np.arange(8.0), "feature_scale": 3.0} if extras else {}
    model = models.SequenceClassifier(encoder, 3, label_names=("no", "maybe", "ja, ü"), **constants)
    model.head.kernel = nnx.Param(jax.random.normal(jax.random.key(0), (8, 3)))
    model.head.bias = nnx.Param(jnp.arange(3.0))
    models.save_pretrained(model, tmp_path)
    again = models.load_classifier(tmp_path)
    assert_same(again, model)
    assert again.label_names == model.label_names
    assert again.normalize == model.normalize
    assert_same(models.load_pretrained(tmp_path), encoder)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {"0": "no", "1": "maybe", "2": "ja, ü"}


def test_the_head_is_not_stored_under_a_name_that_transformers_would_misread(classifier, tmp_path):
    """Transformers' sequence classifier puts ``classifier.*`` on its pooler, not on the mean."""
    models.save_pretrained(classifier, tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert {"head.weight", "head.bias"} <= names
    assert not any(name.startswith("classifier") for name in names)


def test_a_prefix_old_norm_names_and_other_heads_are_understood(encoder, directory):
    def old(tensors):
        names = {f"bert.{name}": tensor for name, tensor in tensors.items()}
        renamed = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in names.items()
        }
        return renamed | {"cls.predictions.bias": np.zeros(40, np.float32)}

    rewrite(directory, old)
    assert_same(models.load_pretrained(directory), encoder)


def test_a_pooler_is_kept_as_constants_and_written_back(directory, tmp_path):
    pooler = {
        "pooler.dense.weight": np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32),
        "pooler.dense.bias": np.arange(8, dtype=np.float32),
    }
    rewrite(directory, lambda tensors: tensors | pooler)
    model = models.load_pretrained(directory)
    assert not any("pooler" in path for path in models.parameter_paths(model))
    models.save_pretrained(model, tmp_path / "again")
    saved = load_file(tmp_path / "again" / "model.safetensors")
    for name, tensor in pooler.items():
        np.testing.assert_array_equal(saved[name], tensor)


def test_half_precision_files_load_as_float32_or_as_asked(encoder, directory):
    rewrite(directory, lambda tensors: {name: tensor.astype(np.float16) for name, tensor in tensors.items()})
    kernel = models.load_pretrained(directory).layers[0].up.kernel[...]
    assert kernel.dtype == jnp.float32
    np.testing.assert_allclose(kernel, encoder.layers[0].up.kernel[...], rtol=1e-3, atol=1e-5)
    narrow = models.load_pretrained(directory, dtype=jnp.bfloat16)
    models.save_pretrained(narrow, directory)
    assert_same(models.load_pretrained(directory, dtype=jnp.bfloat16), narrow)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda t: {k: v for k, v in t.items() if k != "encoder.layer.1.output.dense.bias"},
            r"has missing tensors: encoder\.layer\.1\.output\.dense\.bias\.$",
        ),
        (
            lambda t: t | {"encoder.layer.3.output.dense.bias": np.zeros(8, np.float32)},
            r"has unexpected tensors: encoder\.layer\.3\.output\.dense\.bias\.$",
        ),
        (
            lambda t: t | {"embeddings.position_embeddings.weight": np.zeros((9, 8), np.float32)},
            r"tensor embeddings\.position_embeddings\.weight has shape \(9, 8\), but config\.json asks for",
        ),
        (lambda t: {"x": np.zeros(1, np.float32)}, r"has missing tensors: .* and 47 more\.$"),
    ],
)
def test_wrong_tensors_are_listed(directory, change, sentence):
    rewrite(directory, change)
    with pytest.raises(ValueError, match=sentence):
        models.load_pretrained(directory)


def test_a_classifier_with_a_missing_head_says_so(classifier, tmp_path):
    models.save_pretrained(classifier, tmp_path)
    rewrite(tmp_path, lambda t: {k: v for k, v in t.items() if k != "head.bias"})
    with pytest.raises(ValueError, match=r"has missing tensors: head\.bias"):
        models.load_classifier(tmp_path)


def test_broken_directories_are_explained(directory, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        models.load_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no classifier saved by jaxdp"):
        models.load_classifier(directory)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json does not exist"):
        models.save_pretrained(models.load_pretrained(directory), tmp_path / "out", tokenizer_dir=tmp_path)
    (directory / "model.safetensors").write_bytes(b"not one")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        models.load_pretrained(directory)
    (directory / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="save the weights as safetensors"):
        models.load_pretrained(directory)
    (directory / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        models.load_pretrained(directory)
    (directory / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object, not list"):
        models.load_pretrained(directory)
