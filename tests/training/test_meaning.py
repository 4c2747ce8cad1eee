"""Bounds that descriptions state, and options that do nothing."""

import re

import pytest

from jaxdp import training
from jaxdp.training import UserError, dump_config, load_config
from jaxdp.training.config._config import Config
from jaxdp.training.config._fields import _bounds, needs_of
from jaxdp.training.config._phase import PhaseConfig
from tests.training.small import Quiet, head_only, two_phases
from tests.training.small_decoder import language_model, save_decoder, write_letters
from tests.training.test_config import MINIMAL, load

FIELDS = [
    (f"{name}.{field}", info)
    for name, section in Config.model_fields.items()
    for field, info in (PhaseConfig if name == "phase" else section.annotation).model_fields.items()
]


@pytest.mark.quick
def test_every_number_has_both_bounds_and_states_them():
    for name, info in FIELDS:
        numbers = re.search(r"\b(int|float)\b", str(info.annotation))
        bounds = list(_bounds(info))
        assert bool(numbers) == bool(bounds), name
        for found in bounds:
            assert {"ge", "gt"} & set(found) and {"le", "lt"} & set(found), name
            assert any(f"{bound:,}" in info.description or f"{bound:g}" in info.description for bound in found.values())


def test_every_field_that_a_need_names_exists():
    known = {name for name, _ in FIELDS}
    needed = {need.field.removeprefix("any.") for _, info in FIELDS for need in needs_of(info)}
    assert needed and needed <= known


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ([("phase.steps", str(2**31))], "phase.1.steps is 2147483648: it must be less than or equal to 1,000,000,000."),
        ([("phase.steps", str(10**30))], "it must be less than or equal to 1,000,000,000."),
        ([("phase.steps", "9" * 5000)], "phase.1.steps is "),
        ([("privacy.noise_multiplier", "1e308")], "it must be less than or equal to 1e+07."),
        ([("privacy.noise_multiplier", "1e-320")], "it must be greater than or equal to 0.0001."),
        ([("network.kernel_size", "100"), ("task.kind", "image_classification")], "network.kernel_size is 100"),
        ([("phase.train", "[[[[[[[[1]]]]]]]]")], "is nested too deep"),
        ([("clipping.probes", "9")], 'clipping.probes has no meaning with clipping.norm = "exact": it needs'),
        (
            [("clipping.target_quantile", "0.4")],
            "clipping.target_quantile has no meaning with clipping.adaptive",
        ),
        ([("lora.alpha", "3.0")], "lora.alpha has no meaning without lora.rank: give that as well"),
        ([("lora.rank", "3")], "lora.rank has no meaning, as no phase has train = "),
        (
            [("phase.optimizer", "sgd"), ("phase.betas", "[0.8, 0.9]")],
            'phase.1.betas has no meaning for optimizer = "sgd"',
        ),
        ([("network.heads", "2")], 'network.heads has no meaning for task.kind = "text_classification"'),
        ([("samples.top_k", "2")], 'samples.top_k has no meaning for task.kind = "text_classification"'),
        ([("denoise.width", "4")], "denoise.width has no meaning with denoise.enabled = false"),
        ([("subspace.rank", "4")], 'subspace.rank has no meaning with subspace.method = "none"'),
        ([("data.cache", "x")], "data.cache has no meaning, as no phase has features ="),
        ([("data.cache", "")], "data.cache is an empty text"),
        ([("data.text_column", "a")], 'data.text_column has no meaning for data.source = "tweets"'),
        ([("model.train", "all")], "model.train has no meaning where every phase has a train of its own"),
        ([("model.path", "a\nb")], "leave characters out that cannot be printed"),
        ([("phase.betas", "[0.9, 0.99999999]")], "phase.1.betas"),
    ],
)
def test_what_is_out_of_bounds_or_does_nothing_is_one_sentence(tmp_path, overrides, sentence):
    with pytest.raises(UserError) as caught:
        load(tmp_path, MINIMAL, *overrides)
    assert sentence in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_the_command_line_overrules_what_the_file_says_and_a_text_stays_a_text(tmp_path):
    text = MINIMAL.replace("epsilon = 8", "epsilon = 8\n[clipping]\nadaptive = true\ntarget_quantile = 0.4")
    config = load(tmp_path, text, ("privacy.enabled", "false"))
    assert not config.clipping.adaptive and config.clipping.target_quantile == 0.5
    config = load(tmp_path, MINIMAL, ("data.source", "a.csv"), ("data.text_column", "0"), ("data.label_column", "true"))
    assert (config.data.text_column, config.data.label_column) == ("0", "true")


def test_what_has_no_meaning_is_not_written_out(tmp_path):
    text = dump_config(load(tmp_path, MINIMAL))
    assert "[network]" not in text and "[lora]" not in text and "[samples]" not in text and "probes" not in text
    assert "max_length" in text


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"x = " + b"[" * 5000, "is nested too deep"),
        (b"x = " + b"9" * 5000, "is not valid TOML"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b".".join([b"a"] * 3000) + b" = 1", "is nested too deep"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        load_config(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_byte_order_mark_is_read_and_a_directory_is_not(tmp_path):
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert load_config(tmp_path / "a.toml") == load(tmp_path, MINIMAL)
    with pytest.raises(UserError, match="is a directory, not a file"):
        load_config(tmp_path)


def test_what_the_model_has_no_use_for_is_refused_before_anything_is_written(tmp_path, table, tiny_model):
    decoder, letters = save_decoder(tmp_path / "decoder"), write_letters(tmp_path / "letters.csv", 60)
    head, both, letters_text = (
        head_only(table, tiny_model),
        two_phases(table, tiny_model),
        language_model(letters, decoder),
    )
    lora = letters_text.replace('train = "lora"', 'train = ["top/norm/*", "norm/*"]')
    for text, overrides, sentence in (
        (head, [("data.max_length", "17")], "data.max_length is 17, but the model takes 16 tokens at most."),
        (head, [("denoise.enabled", "true")], "no phase trains a matrix with both sides of at least 8"),
        (both, [("subspace.method", "grape"), ("subspace.rank", "99")], "so that nothing is projected"),
        (lora.replace("top/norm", "top/*norm"), [], "no phase trains an adapter"),
        (letters_text, [("lora.rank", "99")], "lora.rank is 99, more than the sides of every matrix"),
        (head, [("phase.features_dtype", "float16")], "features_dtype has no meaning for an encoder"),
        (both, [("phase.2.padded_batch_size", "99999")], "no batch of "),
    ):
        (tmp_path / "a.toml").write_text(text)
        with pytest.raises(UserError) as caught:
            training.train(load_config(tmp_path / "a.toml", overrides), tmp_path / "run", Quiet())
        assert sentence in str(caught.value)
        assert not (tmp_path / "run").exists()
