"""Dtypes in which norms, sums and noise are made, and complex arrays as the real vectors that they are."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def wide_dtype(dtype: Any) -> Any:
    """At least float32 (of complex numbers, of either part): half-precision squares underflow, their sums stall."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def wide(x: Array) -> Array:
    """The same values in float32 or better."""
    return x.astype(wide_dtype(x.dtype))


def is_float(x: Any) -> bool:
    """Whether a value can carry a gradient."""
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def is_complex(x: Any) -> bool:
    """Whether this has real and imaginary parts."""
    return bool(jnp.issubdtype(x.dtype, jnp.complexfloating))


def real_dtype(dtype: Any) -> Any:
    """That of the real part."""
    return jnp.finfo(dtype).dtype


def as_real(x: Array) -> Array:
    """A complex array as a real one, whose last axis is its real and its imaginary part; a real one as it is."""
    return jnp.stack([x.real, x.imag], axis=-1) if is_complex(x) else x


def as_like(x: Array, like: Any) -> Array:
    """What `as_real` gave, again of the kind and dtype of `like`."""
    return (jax.lax.complex(x[..., 0], x[..., 1]) if is_complex(like) else x).astype(like.dtype)
