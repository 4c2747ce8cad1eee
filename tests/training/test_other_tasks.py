"""Whole runs of the other tasks: images by a new network, and texts by a decoder with a head."""

import gzip
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp import data, models, training
from jaxdp.training import RunDirectory, UserError
from jaxdp.training.tasks._load import count_examples, load_task
from jaxdp.training.tasks._shapes import trained_shapes

from .small import Quiet
from .small_decoder import save_decoder


def write_images(directory, train=300, test=60):
    """Bright left halves and bright right halves, in the files of Fashion-MNIST."""
    directory.mkdir()
    draw = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        labels = draw.integers(0, 2, count).astype(np.uint8)
        images = draw.integers(0, 90, (count, 8, 8)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[:, slice(0, 4) if label else slice(4, 8)] += 120
        for name, array in ((f"{part}-images-idx3", images), (f"{part}-labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (directory / f"{name}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
    return directory


def images_config(images, network="convnet", steps=15):
    return f"""
[task]
kind = "image_classification"

[data]
source = "fashion_mnist"
path = {json.dumps(str(images))}

[model]
path = "{network}"

[network]
channels = [4, 4]
norm = "group"
kernel_size = 3
hidden_size = 8
patch_size = 4
layers = 1
heads = 2

[privacy]
epsilon = 30.0
delta = 1e-4

[[phase]]
batch_size = 100
microbatch_size = 50
steps = {steps}
optimizer = "sgd"
momentum = 0.9
learning_rate = 0.5
evaluations = 3
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "fashion")


def configured(folder, text, *overrides):
    path = folder / "small.toml"
    path.write_text(text)
    return training.load_config(path, list(overrides))


def test_a_network_for_images_learns_from_scratch_and_is_read_back(tmp_path, images):
    config = configured(tmp_path, images_config(images))
    run = RunDirectory(training.train(config, tmp_path / "run", Quiet(), 3))
    accuracy = json.loads(run.result.read_text())["held_out_accuracy"]
    assert accuracy > 0.9 and "held-out accuracy" in (run.path / "report.md").read_text()
    model = models.load_convnet(run.model)
    held_out = load_task(config).held_out
    logits = jax.jit(jax.vmap(model))(jnp.asarray(held_out.images, jnp.float32) / 127.5 - 1.0)
    assert np.mean(np.argmax(np.asarray(logits), axis=1) == held_out.labels) == pytest.approx(accuracy)
    assert count_examples(config) == 300


def test_a_vision_transformer_is_the_same_task(tmp_path, images):
    config = configured(tmp_path, images_config(images, "vit"))
    task = load_task(config)
    prepared = task.prepare(task.params, config.phase[0], "phase.1", tmp_path, lambda done, total: None)
    example = jax.tree.map(lambda rows: rows[0], prepared.train)
    # The head starts at zero.
    assert float(prepared.loss(task.params, example)) == pytest.approx(np.log(10), rel=1e-5)
    assert "layers/attention/query/kernel" in task.trained_paths("all", "phase.1.train")
    planned = trained_shapes(config, config.phase[0])
    assert {name: x.shape for name, x in planned.items()} == {name: x.shape for name, x in task.params.items()}
    task.save({}, tmp_path / "model")
    assert models.load_vision(tmp_path / "model").config.hidden_size == 8


@pytest.mark.quick
def test_what_is_no_file_of_images_is_named(tmp_path, images):
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        data.fashion_mnist(tmp_path)
    for content, sentence in [
        (b"\x00\x00\x0d\x01\x00\x00\x00\x00", "is not an IDX file of unsigned bytes"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x05ab", "does not hold as many bytes as it says"),
        (b"\x00\x00\x08\x03\x00", "does not hold as many bytes as it says"),
    ]:
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            data.read_idx(tmp_path / "bad")
    (tmp_path / "bad.gz").write_bytes(b"no")
    with pytest.raises(ValueError, match="is not a gzip file"):
        data.read_idx(tmp_path / "bad.gz")
    train, test = data.fashion_mnist(images)
    assert train.images.shape == (300, 8, 8, 1) and len(test) == 60 and test.label_names[8] == "bag"


def test_stored_features_of_images_are_refused(tmp_path, images):
    for override, sentence in [
        (("phase.features", "cached"), "nothing of a network for images is stored"),
        (("network.channels", "[4, 4, 4, 4]"), "image_size 8 must be a multiple of 16"),
        (("data.path", "elsewhere"), "elsewhere"),
        (("lora.rank", "2"), "are for decoders: remove them"),
    ]:
        with pytest.raises(UserError) as caught:
            training.train(configured(tmp_path, images_config(images), override), tmp_path / "run", Quiet())
        assert sentence in str(caught.value) and not (tmp_path / "run").exists()


def decoder_config(table, decoder):
    return f"""
[data]
source = {json.dumps(str(table))}
text_column = "text"
label_column = "label"
max_length = 8
held_out = 0.2

[model]
path = {json.dumps(str(decoder))}
layers = 2
top_layers = 1
feature_scale = 2.0

[lora]
rank = 2
targets = ["decoder/top/attention/query"]

[privacy]
epsilon = 30.0
delta = 1e-4

[[phase]]
train = "head"
features = "cached"
batch_size = "full"
steps = 8
learning_rate = 0.5
evaluations = 1

[[phase]]
train = "lora"
features = "cached"
features_dtype = "float16"
batch_size = 60
microbatch_size = 30
steps = 2
learning_rate = 0.01
evaluations = 1
"""


def test_a_decoder_with_a_head_classifies_texts(tmp_path):
    table, draw = tmp_path / "table.csv", np.random.default_rng(1)
    rows = [(("cat", "dog")[label], label) for label in draw.integers(0, 2, 240)]
    lines = [
        f"the {word} {draw.choice(['sat', 'ran'])} on {draw.choice(['mat', 'sea'])},{label}" for word, label in rows
    ]
    table.write_text("\n".join(["text,label", *lines]))
    config = configured(tmp_path, decoder_config(table, save_decoder(tmp_path / "decoder")))
    run = RunDirectory(training.train(config, tmp_path / "run", Quiet(), 3))
    accuracy = json.loads(run.result.read_text())["held_out_accuracy"]
    assert accuracy > 0.9
    model = models.load_classifier(run.model)
    assert isinstance(model, models.DecoderClassifier) and model.decoder.config.num_hidden_layers == 2
    held_out = load_task(config).dataset.held_out
    logits = jax.jit(jax.vmap(model))(held_out.ids, held_out.mask)
    assert np.mean(np.argmax(np.asarray(logits), axis=1) == held_out.labels) == pytest.approx(accuracy)
    assert [file.stat().st_mode & 0o077 for file in run.features.iterdir()] == [0] * 4


def test_what_is_for_decoders_is_refused_for_encoders(config_file):
    config = training.load_config(config_file, [("model.top_layers", "1")])
    with pytest.raises(UserError, match="top_layers is given, but"):
        load_task(config)
