"""Model files that would train in silence on nonsense, and images that do not fit together."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from jaxdp import data, models, training
from jaxdp.training import UserError, load_config
from tests.training.small import Quiet, head_only
from tests.training.test_other_tasks import write_images

WEIGHT = "encoder.layer.0.output.dense.weight"


@pytest.fixture
def model(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def started(model, table, folder, *overrides):
    """The sentence that refuses a run."""
    (folder / "a.toml").write_text(head_only(table, model))
    with pytest.raises(UserError) as caught:
        training.train(load_config(folder / "a.toml", overrides), folder / "run", Quiet())
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda x: x.astype(np.int32), "tensor encoder.layer.0.output.dense.weight holds int32 values"),
        (lambda x: x > 0, "holds bool values"),
        (lambda x: np.where(x == x.max(), np.nan, x), "has 1 values that are not finite"),
        (lambda x: x.astype(np.float64) * 1e300, "values that are not finite"),
    ],
)
def test_weights_are_finite_floats(model, table, tmp_path, change, sentence):
    tensors = safetensors.numpy.load_file(model / "model.safetensors")
    name = next(key for key in tensors if key.endswith(WEIGHT))
    tensors[name] = np.ascontiguousarray(change(tensors[name]))
    safetensors.numpy.save_file(tensors, model / "model.safetensors")
    assert sentence in started(model, table, tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("layer_norm_eps", float("nan"), "layer_norm_eps must be a number from 0 to 1, not nan"),
        ("layer_norm_eps", -1e-12, "layer_norm_eps must be a number from 0 to 1"),
        ("num_hidden_layers", 10**6, "num_hidden_layers must be at most 4,096, not 1000000"),
        ("hidden_size", [16], "hidden_size must be a whole number of at least 1, not [16]"),
        ("model_type", ["bert"], "has model_type = ['bert']"),
        ("pad_token_id", None, "pad_token_id must be a whole number"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_the_shape_of_a_model_is_checked(model, table, tmp_path, field, value, sentence):
    values = json.loads((model / "config.json").read_text()) | {field: value}
    (model / "config.json").write_text(json.dumps(values))
    said = started(model, table, tmp_path)
    assert sentence in said and str(model / "config.json") in said


def test_token_ids_have_rows(model, table, tmp_path):
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "never": 32}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.save(str(model / "tokenizer.json"))
    said = started(model, table, tmp_path)
    assert "has ids up to 32, but the model's embedding table has 32 rows, for ids up to 31" in said
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A [END]", special_tokens=[("[END]", 77)]
    )
    tokenizer.save(str(model / "tokenizer.json"))
    assert models.Tokenizer(model).largest_id == 77


def test_binary_and_broken_helpers_name_their_file(model, table, tmp_path):
    (model / "tokenizer.json").write_bytes(b"\xff\xfe\x00")
    assert "tokenizer.json is not UTF-8 text" in started(model, table, tmp_path)
    (model / "model.safetensors").unlink()
    for content, sentence in (
        ("[]", "must hold a JSON object"), ('{"weight_map": {"a": 3}}', "must say in weight_map"), ("{}", "weight_map")
    ):  # fmt: skip
        (model / "model.safetensors.index.json").write_text(content)
        with pytest.raises(ValueError, match=sentence):
            models.load_pretrained(model)


def test_images_of_two_sizes_or_none_are_refused(tmp_path):
    first = write_images(tmp_path / "a")
    with pytest.raises(ValueError, match="holds 0 images"):
        data.fashion_mnist(write_images(tmp_path / "b", test=0))
    other = tmp_path / "c"
    shutil.copytree(first, other)
    head = bytes([0, 0, 8, 3]) + (60).to_bytes(4, "big") + (4).to_bytes(4, "big") * 2
    (other / "t10k-images-idx3-ubyte.gz").unlink()
    (other / "t10k-images-idx3-ubyte").write_bytes(head + bytes(60 * 16))
    with pytest.raises(ValueError, match=r"training images of \d+ x \d+ pixels and test images of 4 x 4"):
        data.fashion_mnist(other)
    big = bytes([0, 0, 8, 2]) + b"\xff" * 8
    (tmp_path / "x-ubyte").write_bytes(big)
    with pytest.raises(ValueError, match="does not hold as many bytes as it says"):
        data.read_idx(tmp_path / "x-ubyte")


def test_a_loss_that_is_no_number_stops_before_the_first_step(model, table, tmp_path, monkeypatch):
    from jaxdp.training.tasks import _phase_data

    scores = lambda sums: {"held_out_accuracy": 0.5, "held_out_loss": float("nan"), "details": {}}
    monkeypatch.setattr(_phase_data, "accuracy_scores", scores)
    display = Quiet()
    (tmp_path / "a.toml").write_text(head_only(table, model))
    with pytest.raises(UserError, match="held-out loss that is not finite before the first step, so nothing was spent"):
        training.train(load_config(tmp_path / "a.toml"), tmp_path / "run", display)
    assert display.steps == []
