"""Normal numbers made in one pass, or block by block: what they are, and that they are as normal as they should be."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxdp.numerics._normals import (
    BLOCK,
    _cosine,
    _radius,
    block_of_pairs,
    derived_words,
    normals_from,
    standard_normal,
)

KEY = jax.random.key(2**40 + 7)


def expected_normals(key: jax.Array, size: int) -> np.ndarray:
    """The method of Box and Muller in float64, from JAX's own generator."""
    place = np.arange(size)
    pair = place // BLOCK * (BLOCK // 2) + place % (BLOCK // 2)
    counts = jnp.asarray(np.concatenate([np.zeros(size), pair]), jnp.uint32)
    first, second = np.split(np.asarray(jax.extend.random.threefry_2x32(jax.random.key_data(key), counts), float), 2)
    angle = 2 * np.pi * (second / 2**32 - np.where(place % BLOCK < BLOCK // 2, 0, 0.25))
    return np.sqrt(-2 * np.log((first + 0.5) / 2**32)) * np.cos(angle)


@pytest.mark.quick
@pytest.mark.parametrize("shape", [(), (0,), (1,), (1000,), (3, 5, 7), (64, 1, 129), (3, BLOCK // 2 + 9)])
def test_the_numbers_are_those_of_box_and_muller(shape: tuple[int, ...]) -> None:
    found = jax.jit(lambda key: standard_normal(key, shape, jnp.float32))(KEY)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected_normals(KEY, found.size).reshape(shape), rtol=1e-5, atol=2e-6)


def test_they_are_normal_and_independent() -> None:
    found = np.asarray(standard_normal(KEY, (1 << 21,), jnp.float32), np.float64)
    size = len(found)
    assert scipy.stats.kstest(found, "norm").pvalue > 1e-3
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(found**power) - moment) < 5 * np.sqrt(variance / size)
    # The tails beyond four, which the sensitivity of a test of the whole distribution does not reach.
    beyond, probability = np.sum(np.abs(found) > 4), 2 * scipy.stats.norm.sf(4)
    assert abs(beyond - size * probability) < 5 * np.sqrt(size * probability)
    # The two halves of a block come from the same runs of the generator.
    first, second = np.split(found.reshape(-1, BLOCK), 2, axis=1)
    for x, y in ((first, second), (np.abs(first), np.abs(second)), (first[:, 1:], first[:, :-1])):
        assert abs(np.corrcoef(x.ravel(), y.ravel())[0, 1]) < 5 / np.sqrt(x.size)


def test_the_largest_and_smallest_words_give_finite_numbers() -> None:
    """The ends of what 32 bits can be, which no draw of a test would meet."""
    words = jnp.asarray([0, 1, 2**32 - 1, 2**31, 2**31 - 1, 2**30, 3 * 2**30], jnp.uint32)
    radius, cosine = np.asarray(_radius(words)), np.asarray(_cosine(words))
    assert radius[0] == pytest.approx(np.sqrt(66 * np.log(2)), rel=1e-6)
    assert radius[2] == 0
    np.testing.assert_allclose(cosine, np.cos(2 * np.pi * np.asarray(words, float) / 2**32), atol=3e-7)


def test_a_block_has_the_numbers_of_its_places() -> None:
    words = jax.random.key_data(KEY)
    for stream, block in ((0, 0), (0, 3), (2, 2**17 - 1)):
        start = jnp.asarray([stream, block * BLOCK], jnp.uint32)
        whole = jax.jit(lambda start: normals_from(words, start, (BLOCK,)))(start)
        pairs = jax.jit(lambda s, b: block_of_pairs(words, s, b))(jnp.uint32(stream), jnp.uint32(block))
        np.testing.assert_allclose(np.concatenate([pairs.real, pairs.imag]), whole, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(
            jax.jit(lambda start: normals_from(words, start, (50,)))(start + jnp.asarray([0, 77], jnp.uint32)),
            whole[77:127],
        )
    assert not np.array_equal(normals_from(words, jnp.zeros(2, jnp.uint32), (9,)), whole[:9])


def test_under_vmap_every_key_has_its_own() -> None:
    keys = jax.random.split(KEY, 5)
    found = jax.jit(jax.vmap(lambda key: standard_normal(key, (4, 6), jnp.float32)))(keys)
    expected = jnp.stack([standard_normal(key, (4, 6), jnp.float32) for key in keys])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    assert len(np.unique(found)) == found.size


def test_derived_words_are_those_of_fold_in() -> None:
    numbers = (0, 7, 2**31 - 1, jnp.int32(12))
    expected = KEY
    for number in numbers:
        expected = jax.random.fold_in(expected, number)
    np.testing.assert_array_equal(derived_words(jax.random.key_data(KEY), *numbers), jax.random.key_data(expected))


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_of_another_generator_are_left_to_jax(impl: str) -> None:
    key = jax.random.key(3, impl=impl)
    np.testing.assert_array_equal(standard_normal(key, (50,), jnp.float32), jax.random.normal(key, (50,)))


def test_other_dtypes_and_cuts_are_left_to_jax() -> None:
    half = standard_normal(KEY, (50,), jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, jax.random.normal(KEY, (50,), jnp.bfloat16))
    with jax.threefry_partitionable(False):
        np.testing.assert_array_equal(standard_normal(KEY, (50,), jnp.float32), jax.random.normal(KEY, (50,)))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what one compiler allocates")
def test_nothing_is_held_beside_the_numbers() -> None:
    draw = jax.jit(lambda key: standard_normal(key, (1 << 20,), jnp.float32))
    temporary = draw.lower(KEY).compile().memory_analysis().temp_size_in_bytes  # pyright: ignore
    assert temporary < 4096
