"""A decoder's loss of one record, and its per-example gradients: all parameters, adapters alone, biases and norms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxdp
from jaxdp import models

CONFIG = models.LlamaConfig(
    vocab_size=13,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=8,
    tie_word_embeddings=True,
    initializer_range=0.4,
)
IDS = jnp.array([[3, 1, 4, 1, 5, 9], [2, 7, 1, 8, 0, 0], [11, 12, 10, 6, 6, 0]], jnp.int32)
BATCH = models.TokenExample(IDS, IDS != 0)


@pytest.fixture(scope="module")
def decoder() -> models.LlamaDecoder:
    return models.LlamaDecoder(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def adapted(decoder) -> models.LlamaDecoder:
    """With adapters whose second factor is no longer zero."""
    model = models.add_lora(decoder, rank=2, alpha=6.0, targets=("*/query", "*/down"), rngs=nnx.Rngs(1))
    for layer in (model.layers.attention.query, model.layers.down):
        layer.lora.b = nnx.Param(0.3 * jax.random.normal(jax.random.key(2), layer.lora.b.shape))
    return model


def clip_to(bound: float):
    return lambda squared: jnp.minimum(1.0, bound / jnp.sqrt(squared))


def assert_close(tree, reference):
    assert jax.tree.structure(tree) == jax.tree.structure(reference)
    size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(reference))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * size), tree, reference)


def test_every_method_takes_the_decoder_with_its_scan_its_remat_and_its_tied_head(decoder):
    graphdef, params = nnx.split(decoder)
    loss = models.token_loss(graphdef)

    @jax.jit
    def run(params, batch):
        return {
            method: jaxdp.per_example_grad(loss, method=method)(params, batch).clipped_sum_and_norms(
                clip_to(0.5), groups
            )
            for method, groups in (
                ("materialize", "layer"),
                ("fused", "layer"),
                ("ghost", "all"),
                ("bookkeeping", "all"),
            )
        }

    found = run(params, BATCH)
    by_layer, norms = found["materialize"]
    np.testing.assert_allclose(found["fused"][1], norms, rtol=1e-5)
    assert_close(found["fused"][0], by_layer)
    for method in ("ghost", "bookkeeping"):
        np.testing.assert_allclose(found[method][1][:, 0], norms.sum(axis=1), rtol=1e-5)
    assert_close(found["ghost"][0], found["bookkeeping"][0])
    stacked = jaxdp.explain(loss, params, BATCH, groups="layer")
    assert "layers" in str(stacked) and "embedding" in str(stacked)


def test_adapters_alone_are_trained_with_everything_else_closed_over(decoder, adapted):
    graphdef, params, frozen = nnx.split(adapted, models.trainable_filter("lora", adapted), ...)
    assert {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(params)} == {
        f"layers/{layer}/lora/{factor}" for layer in ("attention/query", "down") for factor in "ab"
    }

    @jax.jit
    def run(params, frozen, batch):
        loss = models.token_loss(graphdef, frozen)
        return [
            jaxdp.per_example_grad(loss, method=method)(params, batch).clipped_sum_and_norms(clip_to(0.1), "all")
            for method in ("ghost", "materialize")
        ]

    (total, norms), (expected, expected_norms) = run(params, frozen, BATCH)
    np.testing.assert_allclose(norms, expected_norms, rtol=1e-5)
    assert_close(total, expected)
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected)) > 0
    plan = str(jaxdp.explain(models.token_loss(graphdef, frozen), params, BATCH))
    assert "lora" in plan and "kernel" not in plan and "embedding" not in plan


def test_an_adapter_is_the_formula_and_begins_at_nothing(decoder, adapted):
    run = jax.jit(lambda model, ids: model(ids))
    fresh = models.add_lora(decoder, rank=2, alpha=6.0, rngs=nnx.Rngs(1))
    np.testing.assert_array_equal(run(fresh, IDS[0]), run(decoder, IDS[0]))
    assert decoder.layers.attention.query.lora is None
    # By hand: alpha / rank = 3.
    by_hand = nnx.clone(decoder)
    for plain, layer in (
        (by_hand.layers.attention.query, adapted.layers.attention.query),
        (by_hand.layers.down, adapted.layers.down),
    ):
        update = np.asarray(layer.lora.a[...], np.float64) @ np.asarray(layer.lora.b[...], np.float64)
        plain.kernel = nnx.Param(jnp.asarray(np.asarray(plain.kernel[...]) + 3.0 * update, jnp.float32))
    expected = run(by_hand, IDS[0])
    assert np.abs(expected - run(decoder, IDS[0])).max() > 0.1
    np.testing.assert_allclose(run(adapted, IDS[0]), expected, atol=2e-5)
    merged = models.merge_lora(adapted)
    assert models.parameter_paths(merged) == models.parameter_paths(decoder)
    np.testing.assert_allclose(run(merged, IDS[0]), expected, atol=2e-5)
    assert adapted.layers.down.lora is not None


def test_adapters_are_merged_on_export(adapted, tmp_path):
    again = models.load_decoder(models.save_pretrained(adapted, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(models.merge_lora(adapted)))


def test_adapters_go_into_encoders_too():
    config = models.BertConfig(13, 8, 2, 2, 12, 8)
    classifier = models.SequenceClassifier(models.BertEncoder(config, rngs=nnx.Rngs(0)), 3)
    model = models.add_lora(classifier, rank=2, rngs=nnx.Rngs(1))
    paths = models.trainable_paths("lora", model)
    assert len(paths) == 2 * 2 * 2 + 2
    assert {"head/bias", "head/kernel", "encoder/layers/1/attention/value/lora/b"} <= set(paths)
    assert models.parameter_paths(models.merge_lora(model)) == models.parameter_paths(classifier)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"rank": 0}, "rank must be at least 1, not 0"),
        ({"rank": 2, "alpha": 0.0}, r"alpha must be finite and positive, not 0\.0"),
        ({"rank": 2, "targets": ("*/q_proj",)}, r"target '\*/q_proj' matches no dense layer: paths look like "),
    ],
)
def test_wrong_adapters_are_named(decoder, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        models.add_lora(decoder, rngs=nnx.Rngs(0), **arguments)


def test_selections_of_stacked_layers(decoder, adapted):
    """Biases and norms (BiTFiT) of a decoder without biases are its norms."""
    assert models.trainable_paths("bias", decoder) == (
        "layers/attention_norm/scale",
        "layers/mlp_norm/scale",
        "norm/scale",
    )
    with pytest.raises(ValueError, match="layers are stacked and cannot be told apart"):
        models.trainable_paths("last:1", decoder)
    with pytest.raises(ValueError, match="the model has no adapters: put them in with add_lora"):
        models.trainable_paths("lora", decoder)
    with pytest.raises(ValueError, match="has an adapter already"):
        models.add_lora(adapted, rank=1, rngs=nnx.Rngs(0))


def test_the_loss_is_the_mean_over_real_tokens_but_the_first(decoder):
    logits = np.random.default_rng(0).normal(size=(6, 13)).astype(np.float32)
    ids, mask = np.array([3, 1, 4, 1, 5, 9]), np.array([True] * 4 + [False] * 2)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -np.mean([log_p[t, ids[t + 1]] for t in range(3)])
    loss = jax.jit(models.next_token_loss)
    np.testing.assert_allclose(loss(logits, ids, mask), expected, rtol=1e-5)
    poisoned = np.where(mask[:, None], logits, np.nan).astype(np.float32)
    np.testing.assert_allclose(loss(poisoned, ids, mask), expected, rtol=1e-5)
    assert float(loss(logits, ids, np.arange(6) < 1)) == 0.0
    one = models.token_loss(*nnx.split(decoder)[:1])
    np.testing.assert_allclose(
        jax.jit(one)(nnx.state(decoder), models.TokenExample(IDS[1].at[4:].set(12), IDS[1] != 0)),
        jax.jit(one)(nnx.state(decoder), models.TokenExample(IDS[1], IDS[1] != 0)),
        rtol=1e-6,
    )


def test_what_is_recomputed_changes_no_gradient():
    """Only what is kept for the backward pass."""
    example = jax.tree.map(lambda rows: rows[0], BATCH)
    params = nnx.state(models.LlamaDecoder(CONFIG, rngs=nnx.Rngs(0)))
    gradients, kept = {}, {}
    for remat in ("none", "dots", "full"):
        config = dataclasses.replace(CONFIG, compute=models.Compute(remat=remat))
        graphdef, _ = nnx.split(nnx.eval_shape(lambda config=config: models.LlamaDecoder(config, rngs=nnx.Rngs(0))))
        loss = models.token_loss(graphdef)

        @jax.jit
        def run(params, example, loss=loss):
            _, pullback = jax.vjp(lambda params: loss(params, example), params)
            return pullback(jnp.ones(()))[0], jax.tree.leaves(pullback)

        kept[remat] = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(run, params, example)[1]))
        if remat != "dots":
            gradients[remat] = run(params, example)[0]
    assert kept["full"] < kept["dots"] < kept["none"]
    assert_close(gradients["none"], gradients["full"])


def test_a_vision_transformer_has_per_example_gradients():
    config = models.ViTConfig(4, 2, 1, 8, 2, 2, 12, 3, initializer_range=0.4)
    model = models.VisionTransformer(config, rngs=nnx.Rngs(0))
    model.head.kernel = nnx.Param(jax.random.normal(jax.random.key(0), (8, 3)))
    graphdef, params = nnx.split(model)
    batch = models.ImageExample(jax.random.normal(jax.random.key(1), (3, 4, 4, 1)), jnp.array([0, 2, 1]))
    loss = models.image_loss(graphdef)

    @jax.jit
    def run(params, batch):
        return [
            jaxdp.per_example_grad(loss, method=method)(params, batch).squared_norms("layer")
            for method in ("ghost", "materialize")
        ]

    norms, expected = run(params, batch)
    assert norms.keys() == expected.keys()
    for group, squared in norms.items():
        np.testing.assert_allclose(squared, expected[group], rtol=1e-4, err_msg=group)


@pytest.mark.quick
def test_wrong_ways_to_compute_are_named():
    for arguments, sentence in (
        ({"dtype": "int8"}, "compute.dtype must be"),
        ({"remat": "some"}, 'compute.remat must be "none", "dots" or "full"'),
        ({"attention": "flash"}, 'compute.attention must be "xla", "cudnn" or None'),
        ({"attention": "cudnn"}, "needs 16-bit activations"),
    ):
        with pytest.raises(ValueError, match=sentence):
            models.Compute(**arguments)
