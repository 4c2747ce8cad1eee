"""Adam for a known variance of the noise, and pruning by blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdp import transforms

SHAPE = (6, 10)


def gradients(steps: int = 4):
    return np.random.default_rng(0).normal(size=(steps, *SHAPE)).astype(np.float32)


def run(tx, given):
    params = {"w": jnp.zeros(SHAPE)}
    state, found = tx.init(params), []
    step = jax.jit(tx.update)
    for gradient in given:
        # Optax raises floats to an integer count.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = step({"w": jnp.asarray(gradient)}, state)
        found.append(np.asarray(updates["w"]))
    return found


@pytest.mark.quick
def test_without_noise_it_is_adam():
    found = run(transforms.scale_by_corrected_adam(0.0, b2=0.99), gradients())
    expected = run(optax.scale_by_adam(b2=0.99), gradients())
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_it_is_adam_with_the_variance_of_the_noise_taken_off():
    stddev, b1, b2, floor = 0.8, 0.9, 0.95, 0.05
    given = gradients() * np.linspace(0.2, 2, 10, dtype=np.float32)
    found = run(transforms.scale_by_corrected_adam(stddev, b1=b1, b2=b2, floor=floor), given)
    m = v = np.zeros(SHAPE)
    floored = 0
    for t, g in enumerate(given.astype(np.float64), 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        net = v / (1 - b2**t) - stddev**2
        floored += np.mean(net < floor * stddev**2) / len(given)
        expected = m / (1 - b1**t) / (np.sqrt(np.maximum(net, floor * stddev**2)) + 1e-8)
        np.testing.assert_allclose(found[t - 1], expected, rtol=2e-3, atol=1e-6)
    assert 0.1 < floored < 0.9


def test_each_step_takes_off_its_own_variance():
    """Adaptive thresholds change the noise from step to step."""
    params = {"w": jnp.zeros(SHAPE)}
    tx = transforms.scale_by_corrected_adam(b2=0.5)
    state = tx.init(params)
    net = np.zeros(SHAPE)
    for gradient, stddev in zip(gradients(3), (0.1, 3.0, 1.0), strict=True):
        noisy = transforms.NoisyGradient({"w": jnp.asarray(gradient)}, {"w": jnp.full((1, 10), stddev)})
        _, state = tx.update(noisy, state)
        net = 0.5 * net + 0.5 * (gradient**2 - stddev**2)
    np.testing.assert_allclose(state.nu["w"], net, rtol=1e-5)


@pytest.mark.parametrize(("options", "name"), [({"b2": 1.0}, "b2"), ({"floor": 0.0}, "floor"), ({"eps": -1}, "eps")])
@pytest.mark.usefixtures("without_type_checks")
def test_impossible_arguments_of_adam_are_named(options, name):
    with pytest.raises(ValueError, match=f"{name} is"):
        transforms.scale_by_corrected_adam(**options)
    with pytest.raises(TypeError, match=f"{name} is 'x'"):
        transforms.scale_by_corrected_adam(**{name: "x"})


def prune(tree, keep, **options):
    tx = transforms.prune_blocks(keep, **options)
    return jax.jit(lambda t: tx.update(t, tx.init(t))[0])(tree)


def test_the_largest_tiles_of_all_leaves_are_kept():
    """Tiles of 2 x 4 of a 5 x 6 matrix and runs of 4 of a vector of 5: 6 + 2 blocks, the smaller ones at the ends."""
    values = {"m": jnp.full((5, 6), 0.1), "v": jnp.full(5, 0.2)}
    values["m"] = values["m"].at[4, 5].set(2.0).at[0, 0].set(1.0)
    kept = prune(values, 3 / 8, block=(2, 4))
    expected = np.zeros((5, 6))
    expected[4:, 4:] = values["m"][4:, 4:]
    expected[:2, :4] = values["m"][:2, :4]
    np.testing.assert_array_equal(kept["m"], expected)
    # Equal scores of the vector's blocks: exactly one of them stays.
    assert [np.count_nonzero(kept["v"][:4]), np.count_nonzero(kept["v"][4:])] in ([4, 0], [0, 1])


def test_whole_leaves_stacks_and_runs():
    values = {"a": jnp.full((2, 3), 0.5), "b": jnp.ones(4), "c": jnp.zeros(())}
    kept = prune(values, 1 / 3)
    assert jax.tree.map(lambda x: bool(jnp.any(x != 0)), kept) == {"a": False, "b": True, "c": False}
    stack = jnp.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(
        prune(stack, 0.25, block=2), np.where(np.arange(24) >= 18, stack.ravel(), 0).reshape(2, 3, 4)
    )
    np.testing.assert_array_equal(prune(stack, 1), stack)


def test_blocks_are_judged_by_their_noise_where_it_is_known():
    tree = {"loud": jnp.full((2, 4), 3.0, jnp.bfloat16), "quiet": jnp.full((2, 4), 1.0)}
    stddev = {"loud": jnp.float32(10.0), "quiet": jnp.array([[0.1], [5.0]])}
    tx = transforms.prune_blocks(0.25, block=4)
    kept, _ = tx.update(transforms.NoisyGradient(tree, stddev), optax.EmptyState())
    assert not np.any(kept["loud"]) and kept["loud"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(kept["quiet"], [[1] * 4, [0] * 4])
    plain, _ = tx.update(tree, optax.EmptyState())
    assert np.count_nonzero(plain["loud"]) == 4 and not np.any(plain["quiet"])


@pytest.mark.usefixtures("without_type_checks")
def test_impossible_arguments_of_pruning_are_named():
    for keep in (0, 1.5, -1.0):
        with pytest.raises(ValueError, match="keep is"):
            transforms.prune_blocks(keep)
    for block in (1.5, (1,), (1, 2, 3), True):
        with pytest.raises(TypeError, match="block is"):
            transforms.prune_blocks(0.5, block=block)
    with pytest.raises(ValueError, match="block is"):
        transforms.prune_blocks(0.5, block=(0, 2))
    with pytest.raises(TypeError, match="which is private"):
        clipped = transforms.ClippedSum(jnp.ones(3), 1.0)
        transforms.prune_blocks(0.5).update(clipped, optax.EmptyState())
