"""A chain that is wired wrongly is an error while it is traced, with a sentence that says what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp import transforms
from tests.transforms.small import PARAMS, flat64, loss, normal_batch, stacked_grads

BATCH = normal_batch(4)
NOISE = transforms.add_gaussian_noise(1.0, jax.random.key(0))
CLIP = transforms.clip(1.0)
PRIVATE = transforms.dpsgd(max_norm=1.0, noise_multiplier=1.0, expected_batch_size=4.0, key=jax.random.key(0))


def lazy():
    return jaxdp.per_example_grad(loss)(PARAMS, BATCH)


def stacked():
    return stacked_grads(PARAMS, BATCH)


def averaged():
    return jax.tree.map(lambda g: jnp.mean(g, axis=0), stacked())


def update(tx, make, params=PARAMS):
    """One update inside `jit`, where nothing has a value."""
    return jax.jit(lambda: tx.update(make(), tx.init(PARAMS), params)[0])


def nothing_but_tracing(run):
    return jax.eval_shape(run)


@pytest.mark.quick
@pytest.mark.parametrize("make, what", [(lazy, "not clipped"), (stacked, "plain pytree"), (averaged, "plain pytree")])
def test_noise_without_clip(make, what):
    with pytest.raises(TypeError, match=f"add_gaussian_noise was given .*{what}.*sensitivity is unknown.*clip"):
        nothing_but_tracing(update(NOISE, make))


@pytest.mark.parametrize("make", [lazy, stacked])
def test_clip_twice(make):
    with pytest.raises(TypeError, match="already clipped: use one clip"):
        nothing_but_tracing(update(optax.chain(CLIP, transforms.clip(2.0), NOISE), make))


@pytest.mark.parametrize("make", [lazy, stacked])
def test_noise_twice(make):
    with pytest.raises(TypeError, match=r"add_gaussian_noise was given a plain pytree"):
        nothing_but_tracing(update(optax.chain(CLIP, NOISE, NOISE), make))


@pytest.mark.quick
@pytest.mark.parametrize("tx", [CLIP, PRIVATE])
def test_clip_of_averaged_gradients(tx):
    with pytest.raises(TypeError, match=r"grads\['dense'\]\['bias'\] has the parameter's own shape.*per_example_grad"):
        nothing_but_tracing(update(tx, averaged))


def test_clip_of_a_single_example_that_lost_its_axis():
    """Also where the leaf is a scalar and could be taken for anything."""
    with pytest.raises(TypeError, match="parameter's own shape"):
        CLIP.update(jnp.float32(3.0), optax.EmptyState(), jnp.float32(1.0))


def test_clip_of_a_pytree_without_params():
    with pytest.raises(TypeError, match=r"without params.*cannot tell per-example gradients from averaged"):
        nothing_but_tracing(update(CLIP, stacked, params=None))


def test_clip_of_gradients_of_something_else():
    with pytest.raises(TypeError, match="structure is not that of params"):
        nothing_but_tracing(update(CLIP, lambda: {"head": jnp.ones((4, 4))}))
    grads = stacked()
    wrong_shape = {**grads, "head": grads["head"][:, :2]}
    with pytest.raises(TypeError, match=r"grads\['head'\] has shape \(4, 2\) where \[batch\] \+ \(4,\)"):
        nothing_but_tracing(update(CLIP, lambda: wrong_shape))
    other_batch = {**grads, "head": grads["head"][:3]}
    with pytest.raises(TypeError, match=r"different numbers of examples: \[3, 4\]"):
        nothing_but_tracing(update(CLIP, lambda: other_batch))


@pytest.mark.parametrize(
    "gradients, params, message",
    [
        (jnp.int32, jnp.float32, "grads has dtype int32: only floating-point"),
        (
            jnp.complex64,
            jnp.float32,
            "grads has dtype complex64 where the parameter has float32: give what jax.grad",
        ),
        (jnp.float32, jnp.complex64, "grads has dtype float32 where the parameter has complex64"),
    ],
)
def test_clip_of_gradients_of_another_kind_than_the_parameter(gradients, params, message):
    with pytest.raises(TypeError, match=message):
        CLIP.update(jnp.ones((3, 2), gradients), optax.EmptyState(), jnp.zeros(2, params))


def test_a_complex_gradient_is_as_long_as_its_parts():
    """The square of 1 + i is 2i: a norm without absolute values would let it pass unclipped."""
    stacked = jnp.array([[3 + 4j, 0], [-3j, 4], [0, 0.1 + 0j]], jnp.complex64)
    clipped, _ = CLIP.update(stacked, optax.EmptyState(), jnp.zeros(2, jnp.complex64))
    np.testing.assert_allclose(clipped.tree, [0.6 + 0.2j, 0.9], rtol=5e-6)


@pytest.mark.parametrize("make", [lazy, stacked])
@pytest.mark.parametrize("between", [optax.scale(0.5), optax.sgd(0.1), optax.adam(0.1)])
def test_arithmetic_between_clip_and_noise(make, between):
    with pytest.raises(TypeError, match=r"clipped sum reached arithmetic.*add_gaussian_noise directly after clip"):
        nothing_but_tracing(update(optax.chain(CLIP, between, NOISE), make))


OPTIMISERS = {
    "sgd": optax.sgd(0.1),
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1),
    "lion": optax.lion(0.1),
    "rmsprop": optax.rmsprop(0.1),
}


@pytest.mark.parametrize("name", list(OPTIMISERS))
def test_an_optimiser_directly_on_private_values(name):
    with pytest.raises(TypeError, match=r"before they were clipped: start the chain with jaxdp.transforms.clip"):
        nothing_but_tracing(update(OPTIMISERS[name], lazy))
    with pytest.raises(TypeError, match="before noise was added to it"):
        nothing_but_tracing(update(optax.chain(CLIP, OPTIMISERS[name]), lazy))


@pytest.mark.parametrize("tx", [optax.sgd(0.1, momentum=0.9), optax.adafactor(0.1), optax.clip_by_global_norm(1.0)])
def test_other_transformations_fail_too(tx):
    """Some touch their own state first, so that the words are not ours, but none gets through."""
    for chain in (tx, optax.chain(CLIP, tx)):
        with pytest.raises((TypeError, AttributeError)):
            nothing_but_tracing(update(chain, lazy))


def test_private_values_are_no_pytrees():
    """A tree_map over them meets one leaf that refuses; a compiled function neither takes nor returns them."""
    grads = lazy()
    total, _ = CLIP.update(grads, CLIP.init(PARAMS))
    for value in (grads, total):
        assert jax.tree.leaves(value) == [value]
        for operation in (
            lambda x: 2.0 * x,
            lambda x: x / 4,
            lambda x: x + jnp.ones(4),
            lambda x: jnp.ones(4) * x,
            lambda x: -x,
            lambda x: x @ jnp.ones(4),
            lambda x: x > 0,
            abs,
            np.asarray,
            lambda x: x.shape,
            lambda x: x.astype(jnp.float32),
        ):
            with pytest.raises((TypeError, AttributeError), match="reached arithmetic before"):
                jax.tree.map(operation, value)
        with pytest.raises(TypeError):
            jax.jit(lambda x: x)(value)
        with pytest.raises(TypeError):
            jax.jit(lambda x=value: x)()


@pytest.mark.parametrize("make", [lazy, stacked])
@pytest.mark.parametrize("part", [CLIP, PRIVATE])
def test_a_wrapper_that_hides_parameters_is_refused(make, part):
    """The hidden ones would come out as raw gradients, or as a second release that nothing accounts for."""
    mask = {"dense": {"bias": True, "kernel": True}, "head": False}
    labels = {"dense": {"bias": "a", "kernel": "a"}, "head": "b"}
    for tx in (
        optax.masked(part, mask),
        optax.masked(part, lambda params: mask),
        optax.multi_transform({"a": part, "b": optax.set_to_zero()}, labels),
        optax.multi_transform({"a": part, "b": PRIVATE}, labels),
    ):
        with pytest.raises(TypeError, match=r"sees only a part of the parameters.*groups"):
            nothing_but_tracing(update(tx, make))
    with pytest.raises(TypeError, match="add_gaussian_noise sees only a part"):
        optax.masked(NOISE, mask).init(PARAMS)


def test_a_wrapper_that_hides_parameters_later_is_refused():
    """States made without the wrapper do not help."""
    masked = {"dense": PARAMS["dense"], "head": optax.MaskedNode()}
    grads = {**stacked(), "head": optax.MaskedNode()}
    with pytest.raises(TypeError, match="clip sees only a part"):
        CLIP.update(grads, optax.EmptyState(), masked)


def test_a_wrapper_that_hides_nothing_changes_nothing():
    one_group = optax.multi_transform({"a": PRIVATE}, jax.tree.map(lambda _: "a", PARAMS))
    plain, _ = PRIVATE.update(stacked(), PRIVATE.init(PARAMS), PARAMS)
    wrapped, _ = one_group.update(stacked(), one_group.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(flat64(wrapped), flat64(plain))


def test_accumulating_private_values_is_refused():
    """`MultiSteps` would average before clipping; microbatches are what it is wanted for."""
    tx = optax.MultiSteps(PRIVATE, 2)
    with jax.numpy_dtype_promotion("standard"), pytest.raises(TypeError, match="own shape"):
        tx.update(stacked(), tx.init(PARAMS), PARAMS)
