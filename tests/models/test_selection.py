"""What is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdp import models

HEAD = {"head/kernel", "head/bias"}


@pytest.mark.quick
@pytest.mark.parametrize(
    ("spec", "belongs"),
    [
        ("all", lambda p: True),
        ("head", lambda p: p in HEAD),
        ("bias", lambda p: p in HEAD or p.endswith(("/bias", "/scale"))),
        ("last:1", lambda p: p in HEAD or "/layers/2/" in p),
        ("last:3", lambda p: p in HEAD or "/layers/" in p),
        (["encoder/layers/1/*"], lambda p: "/layers/1/" in p),
        (("*/up/kernel", "head/*"), lambda p: p in HEAD or p.endswith("/up/kernel")),
    ],
)
def test_a_spec_selects_exactly_its_parameters(classifier, spec, belongs):
    paths = models.parameter_paths(classifier)
    chosen = models.trainable_paths(spec, classifier)
    assert chosen == tuple(p for p in paths if belongs(p))
    _, trained, rest = nnx.split(classifier, models.trainable_filter(spec, classifier), ...)
    assert {"/".join(map(str, p)) for p, _ in nnx.to_flat_state(trained)} == set(chosen)
    assert len(nnx.to_flat_state(rest)) == len(paths) - len(chosen)


def test_constants_are_never_trained(encoder):
    model = models.SequenceClassifier(encoder, 2, feature_center=np.ones(8), feature_scale=2.0)
    _, trained, frozen = nnx.split(model, models.trainable_filter("all", model), ...)
    assert len(jax.tree.leaves(trained)) == len(models.parameter_paths(model))
    assert {path[-1] for path, _ in nnx.to_flat_state(frozen)} == {"feature_center", "feature_scale"}


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("biases", r"train = 'biases' is not known: give \"all\", \"bias\", \"head\", \"last:K\""),
        ("last:-1", "train = 'last:-1' is not known"),
        ("last:0", r"train = 'last:0', but the model has 3 layers"),
        ("last:4", r"train = 'last:4', but the model has 3 layers"),
        (["head/*", "encoder/layers/7/*"], r"pattern 'encoder/layers/7/\*' matches no parameter"),
        (["Head/*"], r"pattern 'Head/\*' matches no parameter"),
        ([], r"train = \[\] selects nothing"),
    ],
)
def test_a_wrong_spec_is_named(classifier, spec, sentence):
    with pytest.raises(ValueError, match=sentence):
        models.trainable_filter(spec, classifier)


def test_an_encoder_alone_has_no_head(encoder):
    with pytest.raises(ValueError, match="the model has no head"):
        models.trainable_filter("head", encoder)
    assert models.trainable_paths("last:1", encoder)[0] == "layers/2/attention/key/bias"


@pytest.mark.parametrize(
    ("spec", "frozen"),
    [
        ("all", None),
        ("bias", None),
        ("head", 3),
        ("last:1", 2),
        ("last:3", 0),
        (["encoder/layers/1/*", "head/*"], 1),
        (["encoder/embeddings/position"], None),
    ],
)
def test_frozen_layers(classifier, spec, frozen):
    assert models.frozen_layers(spec, classifier) == frozen


@pytest.mark.parametrize("spec", ["last:1", "bias"])
def test_only_the_selected_parameters_get_a_gradient(classifier, spec):
    """The gradient of the loss in functional form has the shape of the trained state."""
    classifier.head.kernel = nnx.Param(jax.random.normal(jax.random.key(0), (8, 3)))
    graphdef, params, frozen = nnx.split(classifier, models.trainable_filter(spec, classifier), ...)
    example = models.TextExample(jnp.arange(1, 6), jnp.ones(5, bool), jnp.array(1))
    gradient = jax.jit(jax.grad(models.example_loss(graphdef, frozen)))(params, example)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    assert all(np.abs(leaf).max() > 0 for path, leaf in flat(gradient) if not path.endswith("/key/bias"))


def flat(state):
    return [("/".join(map(str, path)), np.asarray(value[...])) for path, value in nnx.to_flat_state(state)]
