"""Exact squared norms of one use's gradient from its factors, without holding the gradient of a whole batch."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdp._custom_batching import CustomBatching
from jaxdp._late import zeros_after
from jaxdp._shards import chunk_size, map_examples, shards_of, sum_examples
from jaxdp._weighted import weighted_total
from jaxdp._wide import wide, wide_dtype
from jaxdp.norms._costs import default_machine, gram_cost, product_cost, reuse_cost, sum_cost

# What the user may ask for, and what is done.
Rule = Literal["gram", "materialize"]
ExactRule = Literal["Gram", "product", "tiled product"]

# Gradients or Gram matrices of one use that are alive at a time, in elements (64 MB of float32).
_ALIVE_ELEMENTS = 1 << 24
# Those of several examples at once: fewer, as fresh pages cost more than the products themselves (up to 5 times).
_TOGETHER_ELEMENTS = 1 << 22
# Those of examples of which a loop on a CPU takes several at once, as a trip takes as long as these are multiplied.
_FEW_ELEMENTS = 1 << 16
# Gradients of one use that are alive at a time where they are reused for the sum: few, so that they stay in a cache.
_REUSED_ELEMENTS = 1 << 20
# A Gram norm whose terms cancel below this fraction of their bound has lost its digits: it is not believed below it,
# because an underestimated norm would break the sensitivity while an overestimated one only clips harder.
_GRAM_FLOOR = 2.0**-19
# Of 16-bit factors, whose products matrix units may add up with fewer digits.
_NARROW_GRAM_FLOOR = 2.0**-14
# Squares below float32's smallest normal number are lost. Where norms are products of factors' norms, the loss in one
# factor is multiplied by the other, so what may be lost is added: again an overestimate, of no size unless it matters.
_SMALLEST_SQUARE = 2.0**-126


def _narrow(x: Array, y: Array) -> bool:
    return x.dtype == y.dtype and jnp.finfo(x.dtype).bits <= 16


def full_product(spec: str, x: Array, y: Array, precision: Any = "highest") -> Array:
    """A product in float32 (or better) that rounds nowhere but in adding up.

    Products of two 16-bit numbers are float32 numbers. So 16-bit factors, unless of two kinds, are multiplied as they
    are, at the rate of matrix units; others at the given precision.
    """
    if _narrow(x, y):
        return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)
    return jnp.einsum(spec, wide(x), wide(y), precision=precision)


def exact_rule(k: int, t: int, c: int, p: int, rule: Rule | None = None) -> ExactRule:
    """How `outer_squared_norm` goes about factors of these sizes: the cheaper way, unless a rule says which."""
    if rule is None:
        seconds = default_machine().seconds
        rule = "gram" if seconds(gram_cost(k, t, c, p)) <= seconds(product_cost(k, t, c, p)) else "materialize"
    if rule == "gram":
        return "Gram"
    return "product" if k * c * p <= _ALIVE_ELEMENTS else "tiled product"


def outer_squared_norm(
    a: Float[Array, "k t c"], g: Float[Array, "k t p"], rule: Rule | None = None
) -> Float[Array, ""]:
    r"""$\sum_k \|A_k^\top G_k\|_F^2$ by Gram matrices over t or by the product itself, as `exact_rule` says."""
    k, t, c = a.shape
    p = g.shape[2]
    how = exact_rule(k, t, c, p, rule)
    if how == "Gram":
        return _vector_squared_norm(a, g) if t == 1 else _gram_squared_norm(a, g)
    if how == "product":
        return _product_squared_norm(a, g)
    return _tiled_squared_norm(a, g, max(1, _ALIVE_ELEMENTS // (k * c)))


def _vector_squared_norm(a: Float[Array, "k 1 c"], g: Float[Array, "k 1 p"]) -> Float[Array, ""]:
    aa, gg = (jnp.sum(jnp.square(wide(x)), axis=(1, 2)) for x in (a, g))
    return jnp.sum(aa * gg + _lost_squares(aa, gg, a.shape[2], g.shape[2]))


def _gram_squared_norm(a: Float[Array, "k t c"], g: Float[Array, "k t p"]) -> Float[Array, ""]:
    k, t, _ = a.shape
    sizes = t * a.shape[2], t * g.shape[2]
    tile = max(1, _ALIVE_ELEMENTS // (2 * k * t))
    if t <= tile:
        # Without an axis of length one, for which XLA would copy both factors to bring their axes in order.
        inner, aa, gg = _gram_sums(a, g) if k > 1 else _gram_sums(a[0], g[0])
    else:
        inner = _tiled_gram_inner_product(a, g, tile)
        aa, gg = (jnp.sum(jnp.square(wide(x)), axis=(1, 2)) for x in (a, g))
    floor = _NARROW_GRAM_FLOOR if _narrow(a, g) else _GRAM_FLOOR
    return jnp.maximum(inner, floor * jnp.sum(aa * gg)) + jnp.sum(_lost_squares(aa, gg, *sizes))


def _lost_squares(aa: Float[Array, "*k"], gg: Float[Array, "*k"], a_size: int, g_size: int) -> Float[Array, "*k"]:
    """Most that underflow can have taken from the product of the squared norms of two factors of these sizes."""
    return _SMALLEST_SQUARE * g_size * aa + _SMALLEST_SQUARE * a_size * gg


def _over_batch(elements: Callable[..., int]) -> Callable[[Callable], Callable]:
    """A batch at once where few `elements` (of one example, by its factors) are alive, otherwise in a loop."""

    def wrap(norm: Callable[..., Any]) -> Callable[..., Any]:
        one = CustomBatching(norm)

        @one.def_vmap
        def _(axis_size: int, in_batched: Sequence[bool], *factors: Array) -> tuple[Any, Any]:
            full = lambda x: jnp.broadcast_to(x, (axis_size, *x.shape))
            factors = tuple(x if b else full(x) for x, b in zip(factors, in_batched, strict=True))
            room, alive = min(_ALIVE_ELEMENTS, _TOGETHER_ELEMENTS), elements(*(x.shape[1:] for x in factors))
            each = axis_size // shards_of(axis_size)
            if alive * each <= room:
                found = jax.vmap(norm)(*factors)
            else:
                few = min(room, _FEW_ELEMENTS) // alive
                chunk = chunk_size(each, few) if _on_cpu() else max(1, room // alive)
                found = map_examples(lambda x: norm(*x), factors, batch_size=None if chunk == 1 else chunk)
            return found, jax.tree.map(lambda _: True, found)

        return one

    return wrap


def _on_cpu() -> bool:
    """Whether products of few examples are the fastest: by XLA's CPU compiler those of many take up to 4 times as long,
    once their factors or results are in no cache."""
    return jax.default_backend() == "cpu"


def _gram_elements(a: tuple[int, ...], g: tuple[int, ...]) -> int:
    matrices = 2 * math.prod(a[:-1]) * a[-2]
    # Factors count for half, as they are only read.
    return max(matrices, math.prod(a) // 2, math.prod(g) // 2) if _on_cpu() else matrices


@_over_batch(lambda a, g: a[0] * a[2] * g[2])
def _product_squared_norm(a: Float[Array, "k t c"], g: Float[Array, "k t p"]) -> Float[Array, ""]:
    # As below, without an axis of length one.
    spec, factors = ("ktc,ktp->kcp", (a, g)) if a.shape[0] > 1 else ("tc,tp->cp", (a[0], g[0]))
    return jnp.sum(jnp.square(full_product(spec, *factors)))


@_over_batch(_gram_elements)
def _gram_sums(
    a: Float[Array, "*k t c"], g: Float[Array, "*k t p"]
) -> tuple[Float[Array, ""], Float[Array, "*k"], Float[Array, "*k"]]:
    """Inner product of A A^T and G G^T, and their traces: the factors' squared norms without reading them again."""
    aa = full_product("...rc,...tc->...rt", a, a)
    gg = full_product("...rp,...tp->...rt", g, g)
    row, column = (jax.lax.broadcasted_iota(jnp.int32, aa.shape, aa.ndim - d) for d in (2, 1))
    on_diagonal = lambda x: jnp.where(row == column, x, 0)
    add = lambda x, y: tuple(map(jnp.add, x, y))
    zero = jnp.zeros((), aa.dtype)
    # One pass over both matrices for all three.
    inner, a_trace, g_trace = jax.lax.reduce(
        (aa * gg, on_diagonal(aa), on_diagonal(gg)), (zero, zero, zero), add, (aa.ndim - 2, aa.ndim - 1)
    )
    return jnp.sum(inner), a_trace, g_trace


@_over_batch(lambda x, y, a, g: 2 * a[0] * x[1] * a[1])
def _gram_inner_product(
    x: Float[Array, "k r c"], y: Float[Array, "k r p"], a: Float[Array, "k t c"], g: Float[Array, "k t p"]
) -> Float[Array, ""]:
    """Inner product of some rows of A A^T with those of G G^T."""
    aa = full_product("krc,ktc->krt", x, a)
    gg = full_product("krp,ktp->krt", y, g)
    return jnp.sum(aa * gg)


def _tiled_gram_inner_product(a: Float[Array, "k t c"], g: Float[Array, "k t p"], tile: int) -> Float[Array, ""]:
    rows = lambda x: _tiles(x, 1, tile)
    return jnp.sum(jax.lax.map(lambda xy: _gram_inner_product(*xy, a, g), (rows(a), rows(g))))


def _tiled_squared_norm(a: Float[Array, "k t c"], g: Float[Array, "k t p"], tile: int) -> Float[Array, ""]:
    return jnp.sum(jax.lax.map(lambda part: _product_squared_norm(a, part), _tiles(g, 2, tile)))


def _tiles(x: Array, axis: int, tile: int) -> Array:
    """Pieces of equal length along an axis, as a new leading axis; zeros fill up the last one."""
    count = math.ceil(x.shape[axis] / tile)
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, count * tile - x.shape[axis])
    full = jnp.pad(x, padding)
    return jnp.moveaxis(full.reshape(*x.shape[:axis], count, tile, *x.shape[axis + 1 :]), axis, 0)


def reuse_chunk(k: int, c: int, p: int) -> int:
    """Products that `clipped_outer_sum` has alive at a time, at most."""
    return max(1, _REUSED_ELEMENTS // (k * c * p))


def prefers_reuse(k: int, t: int, c: int, p: int, rule: Rule | None = None) -> bool:
    """Whether to make the gradient once, for norm and sum, instead of a norm and a sum over the whole batch."""
    if rule == "gram" or k * c * p > _ALIVE_ELEMENTS:
        return False
    if rule == "materialize":
        return True
    seconds = default_machine().seconds
    norm = min(seconds(gram_cost(k, t, c, p)), seconds(product_cost(k, t, c, p)))
    return seconds(reuse_cost(k, t, c, p, reuse_chunk(k, c, p))) < norm + seconds(sum_cost(k, t, c, p))


def clipped_outer_sum(
    a: Float[Array, "b k t c"],
    g: Float[Array, "b k t p"],
    weigh: Callable[[Array, Any], Array],
    rest: Any,
    precision: Any,
) -> tuple[Float[Array, "k c p"], Float[Array, " b"]]:
    r"""$\sum_i w_i A_i^\top G_i$ with $w_i$ = `weigh(squared norms, rest)`, few products alive at a time."""
    size, k, _, c = a.shape
    p = g.shape[-1]
    each = size // shards_of(size)
    chunk = chunk_size(each, reuse_chunk(k, c, p))
    # An axis of length one on what enters a loop has XLA copy it, to bring its axes in order.
    several, alone = k > 1, chunk == 1 < each
    given = (a, g) if several else (a[:, 0], g[:, 0])
    dtype = wide_dtype(a.dtype)

    def add(total: Array, part: Any) -> tuple[Array, Array]:
        a, g, rest = jax.tree.map(lambda x: x[None], part) if alone else part
        product = full_product("b...tc,b...tp->b...cp", a, g, precision)
        norms = jnp.sum(jnp.square(product), axis=tuple(range(1, product.ndim)))
        return total + weighted_total(weigh(norms, rest), product), norms

    whole = lambda total: total if several else total[None]
    if chunk == each:
        total, norms = add(jnp.zeros((), dtype), (*given, rest))
        return whole(total), norms
    parts = (*given, rest)
    if not alone:
        parts = jax.tree.map(lambda x: x.reshape(size // chunk, chunk, *x.shape[1:]), parts)
    total, norms = sum_examples(add, zeros_after((k, c, p) if several else (c, p), dtype, g), parts)
    return whole(total), norms.reshape(size)


def mixed_squared_norm(
    a: Float[Array, "t v"],
    g: Float[Array, "t p"],
    ids: Int[Array, " s"],
    rows: Float[Array, "s p"],
    rule: Rule | None = None,
) -> Float[Array, ""]:
    r"""$\|A^\top G + \sum_s e_{ids_s} rows_s^\top\|_F^2$, a table that is both looked up and multiplied with."""
    apart = outer_squared_norm(a[None], g[None], rule) + row_squared_norm(ids, rows)
    cross = jnp.sum(a[:, ids] * jnp.einsum("tp,sp->ts", g, rows, precision="highest"))
    return jnp.maximum(apart + 2 * cross, _GRAM_FLOOR * apart)


def row_squared_norm(ids: Int[Array, " t"], rows: Float[Array, "t p"]) -> Float[Array, ""]:
    r"""$\sum_v \|\sum_{t: ids_t = v} rows_t\|^2$ by sorting: memory t x p, whatever the table's size."""
    order = jnp.argsort(ids)
    ids, rows = ids[order], rows[order]
    first = jnp.concatenate([jnp.ones((1,), bool), ids[1:] != ids[:-1]])
    begin = jax.lax.cummax(jnp.where(first, jnp.arange(ids.shape[0]), 0))
    # Added to the first row of each run, not to zeros, which would be made at the start of the step and kept.
    repeats = jnp.where(first[:, None], 0, rows)
    sums = jnp.where(first[:, None], rows, 0).at[begin].add(repeats, indices_are_sorted=True, mode="promise_in_bounds")
    return jnp.sum(jnp.square(sums))
