"""Normal numbers made in one pass: those of JAX, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp._normals import standard_normal

KEY = jax.random.key(2**40 + 7)


@pytest.mark.quick
@pytest.mark.parametrize("shape", [(), (0,), (1,), (1000,), (3, 5, 7), (64, 1, 129)])
def test_the_numbers_are_those_of_jax(shape: tuple[int, ...]) -> None:
    found = jax.jit(lambda key: standard_normal(key, shape, jnp.float32))(KEY)
    expected = jax.random.normal(KEY, shape, jnp.float32)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, expected)


def test_under_vmap_every_key_has_its_own() -> None:
    keys = jax.random.split(KEY, 5)
    found = jax.jit(jax.vmap(lambda key: standard_normal(key, (4, 6), jnp.float32)))(keys)
    expected = jnp.stack([jax.random.normal(key, (4, 6)) for key in keys])
    np.testing.assert_array_equal(found, expected)


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
