"""The classifier and its loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdp import models

IDS = jnp.array([1, 5, 7, 2, 0], jnp.int32)
MASK = jnp.array([True, True, True, True, False])


def test_the_head_starts_at_zero(classifier):
    np.testing.assert_array_equal(classifier(IDS, MASK), np.zeros(3))
    assert classifier.num_classes == 3


def test_normalisation_is_the_formula(encoder):
    center, scale = np.linspace(-1, 1, 8), np.linspace(1, 2, 8)
    model = models.SequenceClassifier(encoder, 2, normalize=True, feature_center=center, feature_scale=scale)
    model.head.kernel = nnx.Param(jax.random.normal(jax.random.key(0), (8, 2)))
    pooled = np.asarray(encoder.pooled(encoder(IDS, MASK), MASK), np.float64)
    features = (pooled / np.linalg.norm(pooled) - center) * scale
    np.testing.assert_allclose(model(IDS, MASK), features @ np.asarray(model.head.kernel[...]), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2, not 1"),
        ({"num_classes": 2, "label_names": ("a",)}, "label_names must be 2 different names"),
        ({"num_classes": 2, "label_names": ("a", "a")}, "label_names must be 2 different names"),
        ({"num_classes": 2, "feature_center": np.ones(3)}, "feature_center must be one number or 8 of them"),
        ({"num_classes": 2, "feature_scale": np.inf}, "feature_scale must hold finite numbers only"),
    ],
)
def test_wrong_arguments_are_named(encoder, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        models.SequenceClassifier(encoder, **arguments)


@pytest.mark.quick
def test_cross_entropy_is_minus_the_log_probability():
    logits = np.array([1.0, -2.0, 0.5])
    expected = np.log(np.exp(logits).sum()) - logits[2]
    np.testing.assert_allclose(models.cross_entropy(jnp.asarray(logits, jnp.float32), 2), expected, rtol=1e-6)


def test_cross_entropy_is_float32_and_survives_large_half_precision_logits():
    loss = models.cross_entropy(jnp.array([30_000.0, 0.0], jnp.float16), jnp.array(1))
    assert loss.dtype == jnp.float32
    assert float(loss) == 30_000.0


def test_the_three_kinds_of_example_give_the_same_loss_and_head_gradient(classifier):
    classifier.head.kernel = nnx.Param(jax.random.normal(jax.random.key(0), (8, 3)))
    graphdef, params, frozen = nnx.split(classifier, models.trainable_filter("head", classifier), ...)
    loss = jax.jit(jax.value_and_grad(models.example_loss(graphdef, frozen, start=2)))
    encoder = classifier.encoder
    hidden = encoder.layers_from(encoder.embed(IDS, MASK), MASK, 0, stop=2)
    pooled = encoder.pooled(encoder(IDS, MASK), MASK)
    label = jnp.array(2)
    value, gradient = loss(params, models.TextExample(IDS, MASK, label))
    np.testing.assert_allclose(value, models.cross_entropy(classifier(IDS, MASK), label), rtol=1e-6)
    for example in (
        models.HiddenExample(hidden, MASK, label),
        models.FeatureExample(classifier.features(pooled[None]), label),
    ):
        other_value, other = loss(params, example)
        np.testing.assert_allclose(other_value, value, rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), other, gradient)


def test_the_loss_is_vmapped_over_a_batch_with_dropout_keys(encoder):
    import dataclasses

    config = dataclasses.replace(encoder.config, dropout=0.5, num_hidden_layers=1)
    model = models.SequenceClassifier(models.BertEncoder(config, rngs=nnx.Rngs(1)), 3)
    model.head.kernel = nnx.Param(jax.random.normal(jax.random.key(0), (8, 3)))
    graphdef, params = nnx.split(model)
    loss = models.example_loss(graphdef)
    batch = models.TextExample(
        jnp.stack([IDS, IDS]), jnp.stack([MASK, MASK]), jnp.array([1, 1]), jax.random.split(jax.random.key(5))
    )
    losses = jax.jit(jax.vmap(loss, in_axes=(None, 0)))(params, batch)
    assert losses.shape == (2,)
    assert abs(float(losses[0] - losses[1])) > 1e-4  # the same text under two keys
    with pytest.raises(ValueError, match="needs a random key"):
        loss(params, models.TextExample(IDS, MASK, jnp.array(1)))


@pytest.mark.parametrize("start", [0, 1, 3])
def test_a_head_that_sees_every_layer_may_start_anywhere(encoder, start):
    model = models.SequenceClassifier(encoder, 3, pooling="every_layer", normalize=True)
    model.head.kernel = nnx.Param(jax.random.normal(jax.random.key(0), (32, 3)))
    embedded = encoder.embed(IDS, MASK)
    means = encoder.means_from(embedded, MASK, 0)
    levels = [encoder.layers_from(embedded, MASK, 0, stop=count) for count in range(4)]
    np.testing.assert_allclose(means, jnp.stack([encoder.pooled(level, MASK) for level in levels]), atol=1e-6)
    unit = np.asarray(means, np.float64) / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(model.features(means), unit.reshape(-1) / 2, atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(model.features(means)), 1.0, rtol=1e-5)
    expected = model(IDS, MASK)
    np.testing.assert_allclose(
        model.from_hidden(levels[start], MASK, start, below=means[:start]), expected, rtol=1e-5, atol=1e-6
    )
    if start:
        with pytest.raises(ValueError, match="below"):
            model.from_hidden(levels[start], MASK, start)
