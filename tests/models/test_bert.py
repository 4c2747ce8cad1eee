"""The encoder's structure: masking, slices, caching of lower layers, dropout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdp import models

IDS = jnp.array([1, 5, 7, 2, 0, 0], jnp.int32)
MASK = jnp.array([True, True, True, True, False, False])


def test_padded_places_have_no_influence(encoder):
    """Other ids, more padding, or an integer mask give the same hidden states where there are tokens."""
    hidden = encoder(IDS, MASK)
    other = encoder(IDS.at[4:].set(33), MASK.astype(jnp.int32))
    longer = encoder(jnp.pad(IDS, (0, 3)), jnp.pad(MASK, (0, 3)))
    np.testing.assert_allclose(other[:4], hidden[:4], atol=1e-6)
    np.testing.assert_allclose(longer[:4], hidden[:4], atol=1e-6)
    np.testing.assert_allclose(encoder.pooled(longer, jnp.pad(MASK, (0, 3))), jnp.mean(hidden[:4], axis=0), atol=1e-6)


def test_a_token_that_is_not_masked_has_influence(encoder):
    changed = encoder(IDS.at[3].set(9), MASK)
    assert np.abs(changed[0] - encoder(IDS, MASK)[0]).max() > 1e-5


def test_the_mean_ignores_a_nan_in_a_padded_place(encoder):
    hidden = encoder(IDS, MASK)
    poisoned = hidden.at[5].set(jnp.nan)
    np.testing.assert_array_equal(encoder.pooled(poisoned, MASK), encoder.pooled(hidden, MASK))


def test_a_fully_masked_text_is_finite(classifier):
    def loss(classifier):
        return jnp.sum(classifier(IDS, jnp.zeros(6, bool)))

    gradient = nnx.jit(nnx.grad(loss))(classifier)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    np.testing.assert_array_equal(encoder_mean_of_nothing(classifier), np.zeros(8))


def encoder_mean_of_nothing(classifier):
    hidden = classifier.encoder(IDS, jnp.zeros(6, bool))
    return classifier.encoder.pooled(hidden, jnp.zeros(6, bool))


def test_positions_and_the_constant_token_type_are_slices_and_not_gathers(encoder):
    """Only the word table is gathered from; token types are when they are given."""

    def gathers(**kwargs):
        jaxpr = jax.make_jaxpr(lambda ids: encoder.embed(ids, MASK, **kwargs))(IDS)
        return str(jaxpr).count(" = gather[")

    assert gathers() == 1
    assert gathers(token_types=jnp.zeros(6, jnp.int32)) == 2


def test_given_token_types_are_used(encoder):
    zeros = encoder(IDS, MASK, token_types=jnp.zeros(6, jnp.int32))
    ones = encoder(IDS, MASK, token_types=jnp.ones(6, jnp.int32))
    np.testing.assert_allclose(zeros, encoder(IDS, MASK), atol=1e-6)
    assert np.abs(ones - zeros).max() > 1e-4


@pytest.mark.parametrize("start", [0, 1, 3])
def test_stored_lower_layers_give_the_same_logits(classifier, start):
    classifier.head.kernel = nnx.Param(jax.random.normal(jax.random.key(0), (8, 3)))
    below = models.encode(
        classifier.encoder, np.asarray(IDS)[None], np.asarray(MASK)[None], layers=start, hidden=True, batch_size=2
    ).hidden
    got = classifier.from_hidden(jnp.asarray(below[0]), MASK, start)
    np.testing.assert_allclose(got, classifier(IDS, MASK), atol=1e-5)


def test_encoding_in_batches_does_not_depend_on_the_batch_size(encoder):
    ids = np.random.default_rng(0).integers(0, 40, (5, 6)).astype(np.int32)
    mask = np.arange(6)[None] < np.array([[6], [3], [1], [4], [2]])
    whole = models.encode(encoder, ids, mask, layers=3, hidden=False, batch_size=5).means[:, -1]
    parts = models.encode(encoder, ids, mask, layers=3, hidden=False, batch_size=2).means[:, -1]
    assert whole.shape == (5, 8)
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    single = encoder.pooled(encoder(jnp.asarray(ids[3]), jnp.asarray(mask[3])), jnp.asarray(mask[3]))
    np.testing.assert_allclose(whole[3], single, atol=1e-6)


def test_dropout_needs_a_key_and_leaves_evaluation_alone(encoder):
    config = dataclasses.replace(encoder.config, dropout=0.5)
    noisy = models.BertEncoder(config, rngs=nnx.Rngs(1))
    with pytest.raises(ValueError, match=r"dropout is 0\.5, which needs a random key"):
        noisy(IDS, MASK)
    np.testing.assert_array_equal(noisy(IDS, MASK, deterministic=True), encoder(IDS, MASK))
    one = noisy(IDS, MASK, key=jax.random.key(0))
    np.testing.assert_array_equal(one, noisy(IDS, MASK, key=jax.random.key(0)))
    assert np.abs(one - noisy(IDS, MASK, key=jax.random.key(1))).max() > 1e-3
    np.testing.assert_array_equal(encoder(IDS, MASK, key=jax.random.key(0)), encoder(IDS, MASK))


def test_dropout_keeps_the_mean():
    """The kept entries are scaled up: the mean over many draws is the input."""
    from jaxdp.models._layers import dropout

    dropped = dropout(jnp.ones(40_000), 0.25, jax.random.key(3))
    np.testing.assert_allclose(np.unique(dropped), [0.0, 1 / 0.75], rtol=1e-6)
    assert abs(float(dropped.mean()) - 1.0) < 0.02  # 7 standard errors


def test_bfloat16_parameters_give_bfloat16_states_close_to_float32(encoder):
    graphdef, state = nnx.split(encoder)
    half = nnx.merge(graphdef, jax.tree.map(lambda x: x.astype(jnp.bfloat16), state))
    hidden = half(IDS, MASK)
    assert hidden.dtype == jnp.bfloat16
    np.testing.assert_allclose(hidden.astype(jnp.float32), encoder(IDS, MASK), atol=0.1)


@pytest.mark.quick
def test_wrong_calls_are_refused(encoder):
    with pytest.raises(ValueError, match="the sequence has 11 tokens, but max_position_embeddings is 10"):
        encoder(jnp.zeros(11, jnp.int32), jnp.ones(11, bool))
    with pytest.raises(ValueError, match="start = 4 and stop = 3 must satisfy"):
        encoder.layers_from(jnp.zeros((2, 8)), jnp.ones(2, bool), 4)
    with pytest.raises(ValueError, match="ids has no rows"):
        models.encode(encoder, np.zeros((0, 4), np.int32), np.zeros((0, 4), bool), layers=1, hidden=False)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "gpt2"}, "config.json has model_type = 'gpt2', but only 'bert' and 'roberta'"),
        ({"model_type": None}, "config.json has model_type = None"),
        ({"hidden_act": "gelu_new"}, "config.json has hidden_act = 'gelu_new', but only 'gelu'"),
        ({"position_embedding_type": "relative_key"}, "config.json has position_embedding_type"),
        ({"is_decoder": True}, "config.json has is_decoder = True"),
        ({"num_attention_heads": 7}, "hidden_size 8 must be a multiple of num_attention_heads 7"),
        ({"vocab_size": 0}, "vocab_size must be a whole number of at least 1, not 0"),
    ],
)
def test_configs_of_other_architectures_are_refused(encoder, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        models.BertConfig.from_dict(encoder.config.to_dict() | change)


def test_a_config_without_a_size_names_it(encoder):
    values = encoder.config.to_dict()
    del values["vocab_size"]
    with pytest.raises(ValueError, match=r"config\.json lacks vocab_size"):
        models.BertConfig.from_dict(values)
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\)"):
        models.BertConfig(dropout=1.0)


def test_a_config_survives_its_round_trip(encoder):
    config = dataclasses.replace(encoder.config, layer_norm_eps=1e-5, pad_token_id=3)
    assert models.BertConfig.from_dict(config.to_dict()) == config
