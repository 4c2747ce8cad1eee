"""Small random models: the same numbers as torch and transformers (see make_reference.py), bit-exact round trips."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from jaxdp import models

DECODERS = ("llama", "llama_tied", "llama_linear")
LOADERS = dict.fromkeys(DECODERS, models.load_decoder) | {
    "roberta": models.load_pretrained,
    "vit": models.load_vision,
}


@functools.cache
def reference() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).with_name("reference.npz")) as file:
        return dict(file)


@pytest.fixture
def directory_of(tmp_path):
    def write(name: str) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(str(reference()[f"{name}/config"]))
        reference()[f"{name}/weights"].tofile(tmp_path / name / "model.safetensors")
        return tmp_path / name

    return write


def outputs(model, name):
    inputs = jnp.asarray(reference()[f"{name}/input"])
    if name == "roberta":
        return jax.jit(jax.vmap(model))(inputs, inputs != 1)
    return jax.jit(jax.vmap(model))(inputs)


@pytest.mark.parametrize("name", [pytest.param("llama", marks=pytest.mark.quick), *list(LOADERS)[1:]])
def test_outputs_equal_the_reference(directory_of, name):
    expected = reference()[f"{name}/output"]
    found = np.asarray(outputs(LOADERS[name](directory_of(name)), name))
    if name == "roberta":
        real = reference()["roberta/input"] != 1
        found, expected = found[real], expected[real]
    assert found.dtype == np.float32
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", list(LOADERS))
def test_saving_keeps_every_tensor_bit_for_bit(directory_of, tmp_path, name):
    directory = directory_of(name)
    model = LOADERS[name](directory)
    models.save_pretrained(model, tmp_path / "again")
    original = load_file(directory / "model.safetensors")
    saved = load_file(tmp_path / "again" / "model.safetensors")
    assert saved.keys() == original.keys()
    for key, tensor in saved.items():
        assert tensor.dtype == original[key].dtype
        np.testing.assert_array_equal(tensor, original[key], err_msg=key)
    again = LOADERS[name](tmp_path / "again")
    assert getattr(again, "config", None) == model.config
    assert models.parameter_paths(again) == models.parameter_paths(model)


@pytest.mark.parametrize("name", ["llama", "vit"])
def test_half_precision_is_bfloat16_inside_and_float32_in_the_parameters(directory_of, name):
    model = LOADERS[name](directory_of(name), compute=models.Compute(dtype="bfloat16", remat="dots"))
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))}
    assert dtypes == {np.dtype("float32")}
    inputs = jnp.asarray(reference()[f"{name}/input"][0])
    assert jax.eval_shape(model.hidden_states, inputs).dtype == jnp.bfloat16
    found, expected = outputs(model, name), reference()[f"{name}/output"]
    # bfloat16 has 8 bits: errors of a few per cent of the largest output, and not of float32's size.
    error = np.abs(np.asarray(found.astype(jnp.float32)) - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < 0.1
    if name == "llama":
        assert found.dtype == jnp.float32
        narrow = jax.jit(jax.vmap(model.hidden_states))(jnp.asarray(reference()[f"{name}/input"]))
        logits = jax.vmap(model.logits)(narrow)
        # Summed in float32 and kept so: most logits are no bfloat16 numbers.
        assert np.mean(np.asarray(logits.astype(jnp.bfloat16).astype(jnp.float32) != logits)) > 0.5


def test_a_directory_of_several_files_is_read(directory_of):
    directory = directory_of("llama")
    whole = models.load_decoder(directory)
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    parts = models.load_decoder(directory)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(parts, nnx.Param), nnx.state(whole, nnx.Param))
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": files | {"model.more": files["lm_head.weight"]}})
    )
    with pytest.raises(ValueError, match=r"has missing tensors: model\.more"):
        models.load_decoder(directory)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("llama", {"model_type": "gpt2"}, "config.json has model_type = 'gpt2', but only 'llama'"),
        ("llama", {"num_key_value_heads": 3}, "num_attention_heads 4 must be a multiple of num_key_value_heads 3"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "config.json has rope type 'yarn'"),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "rope parameters lack factor"),
        ("llama", {"head_dim": 3}, "head_dim must be even"),
        ("llama", {"num_hidden_layers": 3}, r"has missing tensors: layers\.2\.input_layernorm\.weight, "),
        ("llama", {"num_hidden_layers": 1}, r"has unexpected tensors: layers\.1\.input_layernorm\.weight, "),
        ("llama", {"intermediate_size": 13}, r"mlp\.down_proj\.weight has shape \(8, 12\), but config.json asks for"),
        ("llama", {"tie_word_embeddings": True}, "says that the head is tied, but holds another one"),
        ("llama_tied", {"tie_word_embeddings": False}, r"has missing tensors: lm_head\.weight"),
        ("vit", {"hidden_act": "relu"}, "config.json has hidden_act = 'relu', but only 'gelu'"),
        ("vit", {"image_size": 7}, "image_size 7 must be a multiple of patch_size 2"),
        ("vit", {"patch_size": 3}, r"projection\.weight has shape \(8, 8\), but config.json asks for \(8, 18\)"),
        ("roberta", {"max_position_embeddings": 2}, "must be more than pad_token_id \\+ 1 = 2 for RoBERTa"),
    ],
)
def test_what_does_not_fit_is_refused(directory_of, name, change, sentence):
    directory = directory_of(name)
    values = json.loads((directory / "config.json").read_text()) | change
    (directory / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=sentence):
        LOADERS[name](directory)


def test_the_old_spelling_of_rotary_parameters_is_read(directory_of):
    for name in DECODERS:
        directory = directory_of(name)
        values = json.loads((directory / "config.json").read_text())
        modern = models.LlamaConfig.from_dict(values)
        rope = dict(values.pop("rope_parameters"))
        values["rope_theta"] = rope.pop("rope_theta")
        values["rope_scaling"] = None if rope["rope_type"] == "default" else rope
        assert models.LlamaConfig.from_dict(values) == modern


def test_a_tied_head_that_is_stored_twice_is_read_once(directory_of):
    directory = directory_of("llama_tied")
    tensors = load_file(directory / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, directory / "model.safetensors")
    assert models.load_decoder(directory).lm_head is None


def test_a_new_head_for_a_vision_transformer_starts_at_zero(directory_of):
    directory = directory_of("vit")
    model = models.load_vision(directory, num_classes=5)
    np.testing.assert_array_equal(outputs(model, "vit"), np.zeros((2, 5)))
    tensors = {k: t for k, t in load_file(directory / "model.safetensors").items() if not k.startswith("classifier")}
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(ValueError, match="holds no head: give num_classes for a new one"):
        models.load_vision(directory)


def test_a_roberta_classifier_survives_its_round_trip(directory_of, tmp_path):
    encoder = models.load_pretrained(directory_of("roberta"))
    assert encoder.config.max_length == 14
    with pytest.raises(ValueError, match="of which RoBERTa leaves 2 unused: truncate the texts to 14 tokens"):
        encoder(jnp.zeros(15, jnp.int32), jnp.ones(15, bool))
    model = models.SequenceClassifier(encoder, 3)
    models.save_pretrained(model, tmp_path / "again")
    again = models.load_classifier(tmp_path / "again")
    assert again.encoder.config == encoder.config
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again, nnx.Param), nnx.state(model, nnx.Param))


def test_long_inputs_and_other_images_are_refused(directory_of):
    with pytest.raises(ValueError, match="the sequence has 17 tokens, but max_position_embeddings is 16"):
        models.load_decoder(directory_of("llama"))(jnp.zeros(17, jnp.int32))
    with pytest.raises(ValueError, match=r"the image has shape \(6, 6, 1\), but the model was made for \(6, 6, 2\)"):
        models.load_vision(directory_of("vit"))(jnp.zeros((6, 6, 1)))
