"""The std of the noise goes with the gradient to what needs it, is true, and cannot get lost or stale."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp import transforms

WIDE = 48
LAYERS = 3
PARAMS = {
    "body": jnp.zeros((LAYERS, 16, WIDE)),
    "head": jnp.zeros((WIDE, 16)),
}
B = 8.0
SHAPES = {"isotropic": "isotropic", "by group": {"body": 1.0, "head": 20.0}}


def loss(params, example):
    """Zero gradients: what comes out is the noise and nothing else."""

    def layer(x, w):
        return x, jnp.sum(w) * 0.0 * x

    _, terms = jax.lax.scan(layer, example, params["body"])
    return jnp.sum(terms) + 0.0 * jnp.sum(params["head"]) * example


def zero_grads():
    return jaxdp.per_example_grad(loss)(PARAMS, jnp.ones(2))


def stacked_zeros():
    """The same as a plain pytree with a batch axis, which traces faster."""
    return jax.tree.map(lambda p: jnp.zeros((2, *p.shape)), PARAMS)


def chains(key):
    """Chains that end in a noisy gradient, by what is particular about their noise."""

    def by_hand(clip):
        return optax.chain(clip, transforms.add_gaussian_noise(0.7, key, with_stddev=True), optax.scale(-1 / B))

    shared = {"noise_multiplier": 0.7, "expected_batch_size": B, "key": key, "with_stddev": True}
    tops = {"body": 0.2, "head": 3.0}
    top = lambda path: "body" if "body" in path else "head"
    found = {
        f"dpsgd {name}": transforms.dpsgd(max_norm=tops, groups=top, noise_shape=shape, **shared)
        for name, shape in SHAPES.items()
    }
    names = zero_grads().groups("param").names
    gammas = {name: 2.0**i for i, name in enumerate(names)}
    found["stacked"] = by_hand(
        transforms.clip(5.0, groups=zero_grads().groups("param"), noise_shape=gammas, normalize=True)
    )
    # Indicators that take half of the budget: the sum's noise is 1.4 times what the multiplier alone says.
    found["adaptive"] = transforms.adaptive_dpsgd(
        initial_norm=tops, groups=top, noise_shape="equal_budget", indicator_noise_stddev=0.7, **shared
    )
    return found


NAMES = [*(f"dpsgd {name}" for name in SHAPES), "stacked", "adaptive"]


@pytest.mark.parametrize("name", NAMES)
def test_the_std_is_that_of_the_noise_drawn_and_reaches_the_denoiser(key, name):
    """Per leaf and per layer: the noise over the std it came with has mean square 1, and never opens the gate."""
    chain = chains(key)[name]
    seen = []
    spy = optax.GradientTransformation(lambda params: (), lambda u, s, p=None: (seen.append(u) or u, s))
    tx = optax.chain(chain, spy, transforms.rmt_denoise())

    @jax.jit
    def step(state):
        updates, state = tx.update(zero_grads(), state, PARAMS)
        noisy = seen.pop()
        return updates, state, noisy.tree, noisy.noise_stddev

    state = tx.init(PARAMS)
    for _ in range(2):
        updates, state, tree, stddev = step(state)
        relative = jax.tree.map(lambda g, s: np.asarray(g / jnp.broadcast_to(s, g.shape)), tree, stddev)
        for leaf in [*relative["body"], relative["head"]]:
            assert np.mean(leaf**2) == pytest.approx(1, abs=0.25)
        for path, ratio in state[2].leading_ratio.items():
            assert np.all((ratio > 0.8) & (ratio < 1.08)), path
        jax.tree.map(np.testing.assert_array_equal, updates, tree)


def test_inside_a_random_subspace_it_is_that_of_the_projected_coordinates(key):
    """Layers of a scan and groups of their own: what is denoised there is the projected matrix, with its own noise."""
    params = {"body": jnp.zeros((LAYERS, 20, 20)), "head": jnp.zeros((20, 40))}

    def loss(params, x):
        hidden, _ = jax.lax.scan(lambda h, w: (h + 0.0 * (h @ w), None), x, params["body"])
        return 0.0 * jnp.sum(hidden @ params["head"])

    grads = jaxdp.per_example_grad(loss)(params, jnp.ones((2, 20)))
    private = transforms.dpsgd(
        max_norm={"body": 0.2, "head": 3.0},
        groups=lambda path: "body" if "body" in path else "head",
        noise_shape={"body": 1.0, "head": 20.0},
        noise_multiplier=0.7,
        expected_batch_size=B,
        key=key,
        with_stddev=True,
    )
    seen = []
    spy = optax.GradientTransformation(lambda params: (), lambda u, s, p=None: (seen.append(u) or u, s))
    inner = optax.chain(private, spy, transforms.rmt_denoise())
    tx = transforms.grape(inner, rank=10, refresh_every=5, key=key, matrices=grads.matrices())

    @jax.jit
    def step():
        updates, state = tx.update(grads, tx.init(params), params)
        noisy = seen.pop()
        return updates, state.inner[2], noisy.tree, noisy.noise_stddev

    updates, denoiser, tree, stddev = step()
    assert jax.tree.map(jnp.shape, tree) == {"body": (LAYERS, 20, 10), "head": (10, 40)}
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    relative = jax.tree.map(lambda g, s: np.asarray(g / jnp.broadcast_to(s, g.shape)), tree, stddev)
    for leaf in [*relative["body"], relative["head"]]:
        assert np.mean(leaf**2) == pytest.approx(1, abs=0.35)
    assert jnp.max(stddev["head"]) > 5 * jnp.max(stddev["body"])
    for path, ratio in denoiser.leading_ratio.items():
        assert np.all((ratio > 0.7) & (ratio < 1.15)), path
    assert {path: rank.tolist() for path, rank in denoiser.rank.items()} == {"['body']": [0] * LAYERS, "['head']": [0]}


def test_asking_for_the_std_changes_no_draw(key):
    shared = {"max_norm": 1.0, "noise_multiplier": 0.7, "expected_batch_size": B, "key": key}
    plain, carrying = (transforms.dpsgd(**shared, with_stddev=flag) for flag in (False, True))

    @jax.jit
    def both():
        expected, _ = plain.update(stacked_zeros(), plain.init(PARAMS), PARAMS)
        noisy, _ = carrying.update(stacked_zeros(), carrying.init(PARAMS), PARAMS)
        assert isinstance(noisy, transforms.NoisyGradient) and isinstance(expected, dict)
        return expected, noisy.tree, noisy.noise_stddev

    expected, tree, stddev = both()
    jax.tree.map(np.testing.assert_array_equal, tree, expected)
    assert jax.tree.map(float, stddev) == pytest.approx({"body": 0.7 / B, "head": 0.7 / B}, rel=1e-4)


@pytest.mark.quick
def test_a_scalar_product_keeps_it_true_and_nothing_else_is_possible():
    noisy = transforms.NoisyGradient({"w": jnp.ones((2, 2))}, {"w": jnp.float32(3.0)})
    for factor in (-0.5, jnp.float32(-0.5), np.float64(-0.5), np.float32(-0.5)):
        for product in (factor * noisy, noisy * factor):
            assert float(product.tree["w"][0, 0]) == -0.5 and float(product.noise_stddev["w"]) == 1.5
    for operation in (
        lambda x: x * jnp.ones(2),
        lambda x: x * x,
        lambda x: x + 1.0,
        lambda x: x - jnp.ones(()),
        lambda x: x / 2,
        lambda x: jnp.ones(2) @ x,
        lambda x: -x,
        np.asarray,
        lambda x: x.dtype,
    ):
        with pytest.raises((TypeError, AttributeError), match="carries the std of its noise reached arithmetic"):
            jax.tree.map(operation, noisy)
    with pytest.raises(TypeError):
        jax.jit(lambda: noisy)()


NEEDS = {
    "rmt_denoise": transforms.rmt_denoise,
    "scale_by_corrected_adam": transforms.scale_by_corrected_adam,
}


def trace(key, *parts, with_stddev=True):
    private = transforms.dpsgd(
        max_norm=1.0, noise_multiplier=0.7, expected_batch_size=B, key=key, with_stddev=with_stddev
    )
    tx = optax.chain(private, *parts)
    return jax.eval_shape(lambda: tx.update(stacked_zeros(), tx.init(PARAMS), PARAMS)[0])


@pytest.mark.parametrize("name", NEEDS)
def test_what_needs_the_std_refuses_a_gradient_without(key, name):
    part = NEEDS[name]()
    for updates in (trace(key, part), trace(key, NEEDS[name](0.1), with_stddev=False)):
        assert {k: x.shape for k, x in updates.items()} == {k: p.shape for k, p in PARAMS.items()}
    with pytest.raises(TypeError, match=f"{name} was given a plain pytree.*noise is unknown.*with_stddev=True"):
        trace(key, part, with_stddev=False)
    for before in (
        transforms.rmt_denoise(),
        transforms.scale_by_corrected_adam(),
        transforms.prune_blocks(0.5),
    ):
        with pytest.raises(TypeError, match="only one of rmt_denoise and scale_by_corrected_adam fits in a chain"):
            trace(key, before, part)
    with pytest.raises(ValueError, match="carries the std of its noise already: leave noise_stddev out"):
        trace(key, NEEDS[name](0.1))
    for given, what in (
        (zero_grads(), "not clipped"),
        (transforms.ClippedSum(PARAMS, 1.0), "already clipped"),
    ):
        with pytest.raises(TypeError, match=f"{name} was given .*{what}, which is private"):
            part.update(given, part.init(PARAMS), PARAMS)


@pytest.mark.parametrize("name", NEEDS)
def test_a_std_of_another_shape_is_named(name):
    gradient = {"w": jnp.ones((8, 8))}
    for stddev, sentence in (
        ({"v": 1.0}, "neither a number nor a pytree like"),
        ({"w": jnp.ones(8)}, r"shape \(8,\) for a gradient of shape \(8, 8\)"),
        ({"w": jnp.ones((9, 1))}, r"shape \(9, 1\)"),
    ):
        tx = NEEDS[name](stddev)
        with pytest.raises(TypeError, match=sentence):
            tx.update(gradient, tx.init(gradient))
    with pytest.raises(TypeError, match="noise_stddev is True"):
        NEEDS[name](True)


@pytest.mark.parametrize(
    "part", [optax.adam(0.1), optax.sgd(0.1, momentum=0.9), optax.clip_by_global_norm(1.0), optax.clip(1.0)]
)
def test_an_optimiser_directly_on_it_is_refused(key, part):
    with pytest.raises((TypeError, AttributeError, ValueError)):
        trace(key, part)


def test_noise_and_clip_refuse_it(key):
    with pytest.raises(TypeError, match="a gradient that noise was already added to"):
        trace(key, transforms.add_gaussian_noise(1.0, key))
    with pytest.raises(TypeError):
        trace(key, transforms.clip(1.0))
