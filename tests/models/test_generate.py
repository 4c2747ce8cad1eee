"""Decoders in parts, token by token, as examples of whole users; and the small convolutional network."""

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
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=12,
    initializer_range=0.4,
)
IDS = jnp.array([[3, 1, 4, 1], [5, 9, 0, 0]], jnp.int32)
MASK = jnp.array([[True] * 4, [True, True, False, False]])


@pytest.fixture(scope="module")
def decoder():
    return models.LlamaDecoder(CONFIG, rngs=nnx.Rngs(0))


def test_divided_layers_compute_the_same_and_are_joined_again(decoder, tmp_path):
    divided = models.split_top(decoder, 2)
    assert divided.layers.up.kernel.shape[0] == 1 and divided.top.up.kernel.shape[0] == 2
    np.testing.assert_allclose(divided(IDS[0]), decoder(IDS[0]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(divided.above(divided.below(IDS[0])), divided.hidden_states(IDS[0]))
    joined = models.join_top(divided)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(joined), nnx.state(decoder))
    models.save_pretrained(divided, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(models.load_decoder(tmp_path)), nnx.state(decoder))
    lowest = models.lowest_layers(decoder, 1)
    np.testing.assert_allclose(lowest.norm(divided.below(IDS[0])), lowest.hidden_states(IDS[0]), rtol=1e-5, atol=1e-6)
    for count in (0, 3):
        with pytest.raises(ValueError, match="top layers must be from 1 to 2"):
            models.split_top(decoder, count)
    with pytest.raises(ValueError, match="divided already"):
        models.split_top(divided, 1)


def test_the_likeliest_tokens_are_those_of_the_whole_decoder(decoder):
    ids, mask = models.generate(
        models.split_top(decoder, 1), IDS, MASK, jax.random.key(0), max_new_tokens=5, temperature=0
    )
    forward = jax.jit(lambda ids: decoder(ids))
    for row, length in enumerate((4, 2)):
        text = np.zeros(9, np.int32)
        text[:length] = IDS[row, :length]
        for place in range(length, length + 5):
            text[place] = np.argmax(forward(jnp.asarray(text))[place - 1])
        np.testing.assert_array_equal(np.asarray(ids[row]), text)
        np.testing.assert_array_equal(np.asarray(mask[row]), np.arange(9) < length + 5)


def test_tokens_are_drawn_from_the_likeliest_k_and_a_text_ends_at_its_end(decoder):
    from jaxdp.models._generate import draw

    logits = jnp.array([0.0, 3.0, 2.0, 1.0])
    keys = jax.random.split(jax.random.key(1), 4000)
    drawn = np.asarray(jax.vmap(lambda key: draw(logits, key, 2.0, 2))(keys))
    share = 1 / (1 + np.exp(-0.5))
    assert set(drawn.tolist()) == {1, 2} and abs(np.mean(drawn == 1) - share) < 4 * np.sqrt(0.25 / 4000)
    # The token that comes third is now the end of a text.
    greedy = {"max_new_tokens": 4, "temperature": 0}
    whole = np.asarray(models.generate(decoder, IDS, MASK, jax.random.key(3), **greedy)[0])
    end = int(whole[0, 6])
    first = int(np.argmax(whole[0, 4:] == end))
    ending = models.LlamaDecoder(dataclasses.replace(CONFIG, eos_token_id=end), rngs=nnx.Rngs(0))
    ids, mask = (np.asarray(x) for x in models.generate(ending, IDS, MASK, jax.random.key(3), **greedy))
    np.testing.assert_array_equal(mask[0], np.arange(8) < 4 + first)
    np.testing.assert_array_equal(ids[0], np.where(mask[0], whole[0], 0))
    with pytest.raises(ValueError, match="are more than max_position_embeddings, 12"):
        models.generate(decoder, IDS, MASK, jax.random.key(0), max_new_tokens=9)
    with pytest.raises(ValueError, match="max_new_tokens and top_k must be at least 1"):
        models.generate(decoder, IDS, MASK, jax.random.key(0), max_new_tokens=0)


def test_a_users_gradient_is_the_mean_of_its_records_gradients(decoder):
    adapted = models.add_lora(models.split_top(decoder, 1), rank=2, targets=("top/*/query",), rngs=nnx.Rngs(1))
    adapted.top.attention.query.lora.b = nnx.Param(jnp.ones_like(adapted.top.attention.query.lora.b[...]))
    graphdef, params, frozen = nnx.split(adapted, models.trainable_filter("lora", adapted), ...)
    loss = models.token_loss(graphdef, frozen)
    # Two users: one with two records, one with a single one and an empty place.
    ids = jnp.stack([IDS, jnp.zeros_like(IDS).at[0].set(jnp.array([2, 7, 1, 8]))])
    mask = jnp.stack([MASK, jnp.zeros_like(MASK).at[0].set(True)])
    users = models.TokenExample(ids, mask)

    @jax.jit
    def measure(params, users):
        each = jax.vmap(jax.grad(loss), in_axes=(None, 0))
        records = [models.TokenExample(ids[0], mask[0]), models.TokenExample(ids[1, :1], mask[1, :1])]
        means = [jax.tree.map(lambda g: jnp.mean(g, axis=0), each(params, record)) for record in records]
        squared = [sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(mean)) for mean in means]
        return jaxdp.per_example_grad(loss)(params, users).squared_norms(), jnp.stack(squared)

    found, expected = measure(params, users)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_convolution_is_that_of_jax_and_its_norms_are_exact(tmp_path):
    config = models.ConvNetConfig(image_size=8, num_channels=2, channels=(4, 8), kernel_size=5, hidden_size=6)
    model = models.ConvNet(config, rngs=nnx.Rngs(0))
    image = jax.random.normal(jax.random.key(1), (8, 8, 2))
    layer = model.convolutions[0]
    kernel = layer.dense.kernel[...].reshape(5, 5, 2, 4)
    padding = [(1, 2), (1, 2)]
    numbers = ("NHWC", "HWIO", "NHWC")
    reference = jax.lax.conv_general_dilated(image[None], kernel, (2, 2), padding, dimension_numbers=numbers)[0]
    np.testing.assert_allclose(layer(image), reference, rtol=1e-4, atol=1e-5)
    model.head.kernel = nnx.Param(jax.random.normal(jax.random.key(2), (6, 10)))
    models.save_pretrained(model, tmp_path)
    again = models.load_convnet(tmp_path)
    np.testing.assert_array_equal(again(image), model(image))
    graphdef, params = nnx.split(models.ConvNet(models.ConvNetConfig(8, 2, (4,), norm="group"), rngs=nnx.Rngs(3)))

    def loss(params, image):
        return models.cross_entropy(nnx.merge(graphdef, params)(image), 1)

    @jax.jit
    def both(params, images):
        each = jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, images)
        squared = sum(jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim))) for x in jax.tree.leaves(each))
        return jaxdp.per_example_grad(loss)(params, images).squared_norms(), squared

    found, expected = both(params, jnp.stack([image, 2 * image, -image]))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    for fields, sentence in [
        ({"channels": (4, 6), "norm": "group"}, "must be multiples of 4"),
        ({"channels": (4,) * 3}, "image_size 28 must be a multiple of 8"),
        ({"kernel_size": 1}, "kernel_size be at least 2"),
        ({"hidden_size": 0}, "hidden_size must be a whole number"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            models.ConvNetConfig(**fields)
