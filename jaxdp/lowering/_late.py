"""Zeros that are made late: XLA makes what it knows at once, to lie in memory until it is wanted."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdp.lowering._shards import shards_of


def zero_after(x: Float[Array, "..."]) -> Int[Array, ""]:
    """Zero, but the compiler does not know it before there is `x`: what is left of a number's bits, all shifted out."""
    first = jax.lax.slice(x, (0,) * x.ndim, tuple(min(1, n) for n in x.shape)).ravel()
    first = jnp.sum(first.astype(x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.float32))
    bits = jax.lax.bitcast_convert_type(first, jnp.uint64 if first.dtype.itemsize == 8 else jnp.uint32)
    return ((bits >> (8 * first.dtype.itemsize - 1)) >> 1).astype(jnp.int32)


def zeros_after(shape: tuple[int, ...], dtype: jnp.dtype, x: Float[Array, "batch ..."]) -> Float[Array, "..."]:
    """Zeros that wait for `x`, which has the batch's axis: on a mesh reading an entry would send it everywhere."""
    if shards_of(x.shape[0]) > 1:
        return jnp.zeros(shape, dtype)
    return jnp.broadcast_to(zero_after(x).astype(dtype), shape)
