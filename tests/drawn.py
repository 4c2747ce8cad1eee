"""Arrays for tests, by NumPy: JAX would compile a program for every shape."""

import jax
import jax.numpy as jnp
import numpy as np


def normal(seed: int, *shape: int) -> jax.Array:
    """Independent standard normal, in JAX's default dtype."""
    return jnp.asarray(np.random.default_rng((7, seed)).standard_normal(shape))


def integers(seed: int, stop: int, *shape: int) -> jax.Array:
    """Independent uniform int32 below `stop`."""
    return jnp.asarray(np.random.default_rng((3, seed)).integers(0, stop, shape, np.int32))
