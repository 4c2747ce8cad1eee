"""Exact squared norms of one use's gradient from its factors, without holding the gradient of a whole batch."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int

# Gradients of one use that are alive at a time, in elements (64 MB of float32).
_ALIVE_ELEMENTS = 1 << 24
# A Gram norm whose terms cancel below this fraction of their bound has lost its digits: it is not believed below it,
# because an underestimated norm would break the sensitivity while an overestimated one only clips harder.
_GRAM_FLOOR = 2.0**-19
# Squares below float32's smallest normal number are lost. Where norms are products of factors' norms, the loss in one
# factor is multiplied by the other, so what may be lost is added: again an overestimate, of no size unless it matters.
_SMALLEST_SQUARE = 2.0**-126


def outer_squared_norm(a: Float[Array, "k t c"], g: Float[Array, "k t p"]) -> Float[Array, ""]:
    r"""$\sum_k \|A_k^\top G_k\|_F^2$ by Gram matrices over t or by the product itself, whichever needs fewer FLOPs."""
    _, t, c = a.shape
    p = g.shape[2]
    if t == 1:
        aa, gg = jnp.sum(jnp.square(a), axis=(1, 2)), jnp.sum(jnp.square(g), axis=(1, 2))
        return jnp.sum(aa * gg + _lost_squares(aa, gg, c, p))
    if t * (c + p) <= c * p:
        return _gram_squared_norm(a, g)
    if c * p <= _ALIVE_ELEMENTS:
        return _product_squared_norm(a, g)
    return _tiled_squared_norm(a, g, max(1, _ALIVE_ELEMENTS // c))


def _gram_squared_norm(a: Float[Array, "k t c"], g: Float[Array, "k t p"]) -> Float[Array, ""]:
    aa = jnp.einsum("ktc,ksc->kts", a, a, precision="highest")
    gg = jnp.einsum("ktp,ksp->kts", g, g, precision="highest")
    a_squares, g_squares = jnp.sum(jnp.square(a), axis=(1, 2)), jnp.sum(jnp.square(g), axis=(1, 2))
    lost = _lost_squares(a_squares, g_squares, a.shape[1] * a.shape[2], g.shape[1] * g.shape[2])
    return jnp.maximum(jnp.sum(aa * gg), _GRAM_FLOOR * jnp.sum(a_squares * g_squares)) + jnp.sum(lost)


def _lost_squares(aa: Float[Array, " k"], gg: Float[Array, " k"], a_size: int, g_size: int) -> Float[Array, " k"]:
    """Most that underflow can have taken from the product of the squared norms of two factors of these sizes."""
    return _SMALLEST_SQUARE * g_size * aa + _SMALLEST_SQUARE * a_size * gg


@custom_vmap
def _product_squared_norm(a: Float[Array, "k t c"], g: Float[Array, "k t p"]) -> Float[Array, ""]:
    return jnp.sum(jnp.square(jnp.einsum("ktc,ktp->kcp", a, g, precision="highest")))


@_product_squared_norm.def_vmap
def _(axis_size: int, in_batched: Sequence[bool], a: Array, g: Array) -> tuple[Array, bool]:
    a, g = (x if b else jnp.broadcast_to(x, (axis_size, *x.shape)) for x, b in zip((a, g), in_batched, strict=True))
    chunk = max(1, _ALIVE_ELEMENTS // (a.shape[1] * a.shape[-1] * g.shape[-1]))

    def norms(a: Array, g: Array) -> Array:
        return jnp.sum(jnp.square(jnp.einsum("bktc,bktp->bkcp", a, g, precision="highest")), axis=(1, 2, 3))

    if chunk >= axis_size:
        return norms(a, g), True
    one = lambda x: norms(x[0][None], x[1][None])[0]
    return jax.lax.map(one, (a, g), batch_size=chunk), True


def _tiled_squared_norm(a: Float[Array, "k t c"], g: Float[Array, "k t p"], tile: int) -> Float[Array, ""]:
    count = -(-g.shape[2] // tile)
    padded = jnp.pad(g, ((0, 0), (0, 0), (0, count * tile - g.shape[2])))
    tiles = jnp.moveaxis(padded.reshape(*g.shape[:2], count, tile), 2, 0)
    return jnp.sum(jax.lax.map(lambda part: _product_squared_norm(a, part), tiles))


def row_squared_norm(ids: Int[Array, " t"], rows: Float[Array, "t p"]) -> Float[Array, ""]:
    r"""$\sum_v \|\sum_{t: ids_t = v} rows_t\|^2$ by sorting: memory t x p, whatever the table's size."""
    order = jnp.argsort(ids)
    ids, rows = ids[order], rows[order]
    first = jnp.concatenate([jnp.zeros((1,), bool), ids[1:] != ids[:-1]])
    segment = jnp.cumsum(first)
    sums = jax.ops.segment_sum(rows, segment, num_segments=ids.shape[0], indices_are_sorted=True)
    return jnp.sum(jnp.square(sums))
