"""Complex parameters are real vectors of twice the length: what is clipped, accounted for and drawn is theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp import transforms
from jaxdp.interop.jax_privacy import clipped_grad
from tests.interop.models import assert_equal_but_for_slack
from tests.per_example.model_zoo import complex_normal, normal, promoting

SIZE = 100_000
PARAMS = {"z": complex_normal(1, 4, 3), "w": normal(2, 3)}
BATCH = normal(3, 6, 4)


@promoting
def loss(params, x):
    return jnp.sum(jnp.abs(jnp.fft.fft(x) @ params["z"] + params["w"]) ** 2)


def lazy(params=PARAMS, batch=BATCH):
    return jaxdp.per_example_grad(loss)(params, batch)


def by_hand(bound):
    grads = jax.vmap(jax.grad(loss), (None, 0))(PARAMS, BATCH)
    norms = np.sqrt(sum(np.square(np.abs(g)).reshape(6, -1).sum(axis=1) for g in jax.tree.leaves(grads)))
    return jax.tree.map(lambda g: np.einsum("b,b...->...", np.minimum(1, bound / norms), g), grads)


def noise_of(tx, tree, **options):
    noisy, _ = tx.update(transforms.ClippedSum(tree, 0.5, **options), tx.init(tree))
    return noisy


@pytest.mark.quick("lazy")
@pytest.mark.parametrize("form", ["lazy", "stacked", "adaptive"])
def test_clipping_bounds_the_norm_of_both_parts(key, form):
    grads = lazy().materialize() if form == "stacked" else lazy()
    clip = transforms.clip(0.7)
    if form == "adaptive":
        clip = transforms.adaptive_clip(0.7, expected_batch_size=6.0, key=key)
    clipped, _ = clip.update(grads, clip.init(PARAMS), PARAMS)
    for name, expected in by_hand(0.7).items():
        assert clipped.tree[name].dtype == PARAMS[name].dtype
        np.testing.assert_allclose(clipped.tree[name], expected, rtol=1e-5, atol=1e-6)
    one, _ = clip.update(jax.tree.map(lambda g: 1e3 * g[:1], lazy().materialize()), clip.init(PARAMS), PARAMS)
    size = jnp.sqrt(sum(jnp.sum(jnp.square(jnp.abs(x))) for x in jax.tree.leaves(one.tree)))
    np.testing.assert_allclose(size, 0.7, rtol=1e-5)


def test_a_normalised_adaptive_sum_is_divided_by_its_bound(key):
    clip = transforms.adaptive_clip(0.7, expected_batch_size=6.0, key=key, normalize=True)
    clipped, _ = clip.update(lazy(), clip.init(PARAMS), PARAMS)
    for name, expected in by_hand(0.7).items():
        np.testing.assert_allclose(clipped.tree[name], expected / 0.7, rtol=1e-5, atol=1e-6)


@pytest.mark.quick
def test_both_parts_have_the_noise_that_is_accounted_for(key):
    tree = {"z": jnp.zeros(SIZE, jnp.complex64), "w": jnp.zeros(SIZE)}
    noisy = noise_of(transforms.add_gaussian_noise(3.0, key), tree)
    assert noisy["z"].dtype == jnp.complex64
    parts = [np.asarray(x, np.float64) for x in (noisy["z"].real, noisy["z"].imag, noisy["w"])]
    for part in parts:
        assert abs(part.std() / 1.5 - 1) < 0.01 and abs(part.mean()) < 0.02
    assert np.max(np.abs(np.corrcoef(parts) - np.eye(3))) < 0.015
    assert len(np.unique(np.concatenate([parts[0], parts[1]]))) > 1.9 * SIZE


def test_shaped_noise_and_double_precision(key):
    with jax.enable_x64(True):
        tree = {"z": jnp.zeros((2, SIZE), jnp.complex128), "w": jnp.zeros(3)}
        scales = {"z": jnp.array([[1.0], [4.0]], jnp.float32), "w": jnp.ones((), jnp.float32)}
        tx = transforms.add_gaussian_noise(2.0, key, with_stddev=True)
        noisy = noise_of(tx, tree, noise_scales=scales)
        z = np.asarray(noisy.tree["z"])
        assert z.dtype == np.complex128
        np.testing.assert_allclose([z.real.std(axis=1), z.imag.std(axis=1)], [[2.0, 8.0]] * 2, rtol=0.01)
        np.testing.assert_allclose(noisy.noise_stddev["z"], [[2.0], [8.0]])
        scaled = 0.5 * noisy
        np.testing.assert_allclose(scaled.noise_stddev["z"], [[1.0], [4.0]])
        with pytest.raises(TypeError, match="would make the std wrong"):
            _ = 1j * noisy


def test_corrected_adam_is_adam_without_noise_and_takes_the_variance_of_both_parts():
    gradient = {"z": complex_normal(1, 5), "w": normal(2, 5)}
    ours, theirs = transforms.scale_by_corrected_adam(0.0), optax.scale_by_adam()
    found, _ = ours.update(gradient, ours.init(gradient))
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = theirs.update(gradient, theirs.init(gradient))
    for name in gradient:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
    noise = {"z": 0.3 * complex_normal(3, SIZE), "w": 0.3 * normal(4, SIZE)}
    ours = transforms.scale_by_corrected_adam(0.3)
    _, state = ours.update(noise, ours.init(noise))
    for name in noise:
        assert state.nu[name].dtype == jnp.float32
        # Five standard deviations of a mean of squares.
        assert abs(float(jnp.mean(state.nu[name]))) < 5 * np.sqrt(2 / SIZE) * (1 - 0.999) * 0.09


def test_blocks_of_complex_entries_have_the_score_of_their_parts():
    noise = {"z": complex_normal(1, SIZE), "w": 1.01 * normal(2, SIZE)}
    tx = transforms.prune_blocks(0.5)
    pruned, _ = tx.update(noise, tx.init(noise))
    assert not np.any(pruned["z"]) and np.all(pruned["w"] == noise["w"])


def test_zeroth_order_updates_are_gradients_as_jax_has_them(key):
    params = {"z": jnp.array([1 + 1j, 2 - 1j])}
    of_one = promoting(lambda p, x: jnp.sum(jnp.abs(p["z"] - x) ** 2) + jnp.sum((p["z"] * (1 - 2j)).real))
    private = transforms.dpsgd(max_norm=1e4, noise_multiplier=0.0, expected_batch_size=1.0, key=key)
    tx = transforms.zeroth_order(private, key=jax.random.key(1), directions=4000)
    grads = jaxdp.per_example_grad(of_one)(params, jnp.array([1.5]))
    found, _ = jax.jit(lambda: tx.update(grads, tx.init(params), params))()
    np.testing.assert_allclose(found["z"], jax.grad(of_one)(params, 1.5)["z"], atol=0.3)


def test_what_needs_real_matrices_refuses_complex_ones(key):
    with pytest.raises(TypeError, match=r"\['z'\] is complex, and rmt_denoise is about real matrices"):
        transforms.rmt_denoise(select=lambda path, shape: "matrix").init({"z": jnp.ones((8, 8), jnp.complex64)})
    private = transforms.dpsgd(max_norm=1.0, noise_multiplier=1.0, expected_batch_size=6.0, key=key)
    with pytest.raises(TypeError, match=r"params\['z'\] is complex, and a subspace is one of real matrices"):
        transforms.grape(private, rank=2, refresh_every=5, key=key).init(PARAMS)
    tx = transforms.grape(private, rank=2, refresh_every=5, key=key, matrices=lazy().matrices())
    updates, _ = tx.update(lazy(), tx.init(PARAMS), PARAMS)
    assert updates["z"].dtype == jnp.complex64


def test_the_drop_in_sums_complex_gradients():
    of_batch = lambda params, batch: loss(params, batch[0])
    found = clipped_grad(of_batch, l2_clip_norm=0.7, dtype=jnp.float32)(PARAMS, BATCH)
    expected = by_hand(0.7)
    assert all(found[name].dtype == PARAMS[name].dtype for name in expected)
    assert_equal_but_for_slack({name: found[name] for name in expected}, expected, atol=1e-6)
