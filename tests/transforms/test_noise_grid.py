"""Sums and noise on a public grid: the lowest bits of a release tell nothing, and the sensitivity pays for it."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp import transforms
from jaxdp.transforms import ClippedSum
from jaxdp.transforms._noise_grid import Grid, largest_power_of_two, on_grid
from tests.drawn import normal


def is_power_of_two(x):
    return np.frexp(np.asarray(x, np.float64))[0] == 0.5


def released(tree, sensitivity, grid, multiplier=0.7, seed=3, **fields):
    tx = transforms.add_gaussian_noise(multiplier, jax.random.key(seed), grid=grid)
    return tx.update(ClippedSum(tree, sensitivity, **fields), tx.init(tree))[0]


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(st.floats(1e-30, 1e30), st.floats(2**-20, 1), st.integers(1, 10**9))
def test_the_spacing_is_a_power_of_two_that_costs_no_more_than_the_share(scale, share, entries):
    scale = np.float32(scale)
    grid = Grid(share, entries)
    found, enlarged = (
        float(grid.spacing(jnp.float32(scale))),
        float(scale) * float(grid.enlargement([jnp.float32(scale)])),
    )
    assert is_power_of_two(found)
    # In numbers of double precision: what it adds to the sensitivity.
    assert float(scale) + found * np.sqrt(entries) <= enlarged * (1 + 2**-22)
    if found > np.finfo(np.float32).tiny:
        assert found * np.sqrt(entries) <= share * float(scale)
        assert 2.1 * found * np.sqrt(entries) > share * float(scale)


def test_a_sensitivity_too_small_for_its_grid_is_enlarged_by_the_smallest_grid_there_is():
    grid = Grid(2**-20, 10_000)
    tiny = float(np.finfo(np.float32).tiny)
    assert float(grid.spacing(jnp.float32(1e-34))) == tiny
    # The others, too: it is one sensitivity that all entries share.
    assert float(grid.enlargement([jnp.float32(1.0), jnp.float32(1e-34)])) >= 1 + 100 * tiny / 1e-34
    assert 1 + 2**-20 <= float(grid.enlargement([jnp.float32(1.0)])) < 1 + 2**-19
    # A share below the last bit of 1 is not rounded away.
    assert float(Grid(2**-30, 1).enlargement([jnp.float32(1.0)])) >= 1 + 2**-30


def test_powers_of_two_are_exact_in_double_precision_too():
    x = np.array([1.0, 1.5, 2.0 - 2**-23, 2.0**-100, 3.7e30])
    np.testing.assert_array_equal(largest_power_of_two(jnp.asarray(x, jnp.float32)), 2.0 ** np.floor(np.log2(x)))
    with jax.enable_x64(True):
        x = np.append(x, [1e-300, 2.0 - 2**-52, 1e300])
        np.testing.assert_array_equal(largest_power_of_two(jnp.asarray(x, jnp.float64)), 2.0 ** np.floor(np.log2(x)))


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_a_release_lies_on_the_grid_and_is_the_rounded_sum_with_rounded_noise(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    draw = lambda i, *shape: 3 * normal(i, *shape)
    tree = {"a": draw(0, 40, 5), "b": draw(1, 7), "c": jax.lax.complex(draw(2, 6), draw(3, 6))}
    entries, share = 200 + 7 + 12, 0.25
    found = jax.jit(lambda tree: released(tree, 0.8, share))(tree)
    plain = jax.jit(lambda tree: released(jax.tree.map(jnp.zeros_like, tree), 0.8 * (1 + share), None))(tree)
    spacing = float(Grid(share, entries).spacing(jnp.float32(0.8)))
    parts = lambda x: np.stack([np.real(x), np.imag(x)]) if np.iscomplexobj(x) else np.asarray(x)
    for ours, leaf, noise in zip(*(jax.tree.leaves(x) for x in (found, tree, plain)), strict=True):
        ours, leaf, noise = map(parts, (ours, leaf, noise))
        np.testing.assert_array_equal(ours / spacing, np.round(ours / spacing))
        np.testing.assert_array_equal(ours, spacing * (np.round(leaf / spacing) + np.round(noise / spacing)))
        assert np.any(ours != leaf + noise)


def test_sums_that_round_alike_give_equal_releases_to_the_last_bit():
    """What Mironov's attack reads: without a grid, which floats come out depends on the lowest bits of the sum."""
    x = jnp.linspace(-2, 2, 1000)
    spacing = float(Grid(0.1, 1000).spacing(jnp.float32(1.0)))
    centre = on_grid(x, jnp.float32(spacing))
    moved = centre + 0.3 * spacing
    assert np.array_equal(released(moved, 1.0, 0.1), released(centre, 1.0, 0.1))
    bits = lambda y: np.asarray(released(y, 1.0, None)) / spacing % 1
    assert np.mean(bits(moved) != bits(centre)) > 0.9


def test_neighbouring_sums_stay_within_the_sensitivity_that_the_noise_is_for():
    """The worst rounding: every entry of one sum is just below the middle of two places, and of the other above it."""
    entries, sensitivity, share = 10_000, 1.0, 0.125
    grid = Grid(share, entries)
    spacing = grid.spacing(jnp.float32(sensitivity))
    middle = (jnp.arange(entries, dtype=jnp.float32) % 50 + 0.5) * spacing
    step = jnp.full(entries, sensitivity / np.sqrt(entries))
    before, after = on_grid(middle * (1 - 1e-6), spacing), on_grid(middle * (1 + 1e-6) + step, spacing)
    moved = np.linalg.norm(np.asarray(after - before, np.float64))
    assert moved > sensitivity * 1.02
    assert moved <= sensitivity * float(grid.enlargement([jnp.float32(sensitivity)]))


def test_shaped_noise_has_a_spacing_for_each_group_and_the_stddev_is_told():
    groups = {"['a']": 1.0, "['b']": 8.0}
    params = {"a": jnp.zeros((50, 2)), "b": jnp.zeros(60)}
    batch = jax.tree.map(lambda x: normal(1, 4, *x.shape), params)
    share = 0.5
    clip = transforms.clip(groups, groups="param", noise_shape="equal_budget")
    noise = transforms.add_gaussian_noise(0.7, jax.random.key(0), with_stddev=True, grid=share)
    clipped = clip.update(batch, clip.init(params), params)[0]
    found = noise.update(clipped, noise.init(params))[0]
    for name, leaf in found.tree.items():
        scale = clipped.noise_scales[name]
        np.testing.assert_allclose(found.noise_stddev[name], 0.7 * scale * (1 + share), rtol=1e-6)
        spacing = np.asarray(Grid(share, 160).spacing(jnp.asarray(scale, jnp.float32)))
        np.testing.assert_array_equal(leaf / spacing, np.round(leaf / spacing))
        # Over all groups, in units of each one's scale.
        assert 160 * (spacing / np.asarray(scale, np.float64)) ** 2 <= share**2


def test_the_recipe_takes_it_and_impossible_grids_are_refused():
    key, loss = jax.random.key(0), lambda w, x: w @ x
    params, batch = jnp.ones(2), jnp.array([[3.0, 4.0], [0.0, 0.5]])
    tx = transforms.dpsgd(max_norm=1.0, noise_multiplier=0.5, expected_batch_size=2.0, key=key, grid=0.01)
    grads = jaxdp.per_example_grad(loss)(params, batch)
    updates = tx.update(grads, tx.init(params), params)[0]
    spacing = Grid(0.01, 2).spacing(jnp.float32(1.0 * (1 + grads.slack().total)))
    np.testing.assert_array_equal(2 * updates / spacing, np.round(2 * updates / spacing))
    adaptive = transforms.adaptive_dpsgd(
        initial_norm=1.0,
        noise_multiplier=0.5,
        expected_batch_size=2.0,
        key=key,
        indicator_noise_stddev=2.0,
        grid=0.01,
    )
    assert bool(jnp.all(jnp.isfinite(adaptive.update(grads, adaptive.init(params), params)[0])))
    for grid, error in ((0, ValueError), (-1.0, ValueError), (1.5, ValueError), (float("nan"), ValueError)):
        with pytest.raises(error, match=f"grid is {grid}: give the share of the sensitivity"):
            transforms.add_gaussian_noise(1.0, key, grid=grid)
    with pytest.raises(TypeError, match="grid"):
        transforms.add_gaussian_noise(1.0, key, grid="fine")  # pyright: ignore
