"""Dtypes in which norms, sums and noise are made."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array


def wide_dtype(dtype: Any) -> Any:
    """At least float32: half-precision squares underflow and half-precision sums stall."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def wide(x: Array) -> Array:
    """The same values in float32 or better."""
    return x.astype(wide_dtype(x.dtype))
