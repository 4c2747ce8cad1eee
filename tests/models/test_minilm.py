"""Real weights: the same numbers as torch and transformers (see make_minilm_expected.py)."""

import numpy as np
import pytest

from jaxdp import models


def test_the_tokenizer_gives_the_reference_ids(minilm_directory, expected):
    ids, mask = models.Tokenizer(minilm_directory).encode_batch(expected["sentences"].tolist(), 48)
    np.testing.assert_array_equal(ids, expected["ids"])
    np.testing.assert_array_equal(mask, expected["mask"])
    assert mask.sum(axis=1).tolist() == [10, 19, 30, 3, 48]  # the last one was cut off


def test_the_config_is_read(minilm):
    config = minilm.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (6, 384, 12)
    assert config.layer_norm_eps == 1e-12
    assert config.dropout == 0.0  # the file says 0.1


@pytest.mark.parametrize("layers", [0, 3, 6])
def test_hidden_states_equal_the_reference(minilm, expected, layers):
    ids, mask = expected["ids"], expected["mask"]
    hidden = models.encode(minilm, ids, mask, layers=layers, hidden=True, batch_size=len(ids)).hidden
    difference = np.abs(hidden[..., ::12] - expected["hidden"][layers])[mask]
    assert np.abs(expected["hidden"][layers]).max() > 1.0
    assert difference.max() < 1e-4


def test_mean_pooling_equals_the_reference(minilm, expected):
    features = models.encode(minilm, expected["ids"], expected["mask"], layers=6, hidden=False, batch_size=5).means[
        :, -1
    ]
    np.testing.assert_allclose(features, expected["pooled"], atol=1e-4, rtol=0)


def test_saving_keeps_every_tensor_bit_for_bit(minilm, minilm_directory, tmp_path):
    from safetensors.numpy import load_file

    models.save_pretrained(minilm, tmp_path, tokenizer_dir=minilm_directory)
    original = load_file(minilm_directory / "model.safetensors")
    saved = load_file(tmp_path / "model.safetensors")
    assert set(original) - set(saved) == {"embeddings.position_ids"}  # a stored counter, not a weight
    assert set(saved) <= set(original)
    for name, tensor in saved.items():
        assert tensor.dtype == original[name].dtype
        np.testing.assert_array_equal(tensor, original[name], err_msg=name)
    assert (tmp_path / "tokenizer.json").read_bytes() == (minilm_directory / "tokenizer.json").read_bytes()
    assert models.BertConfig.from_directory(tmp_path) == minilm.config
