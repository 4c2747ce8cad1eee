"""Exact squared norms of one use's gradient from its factors, without holding the gradient of a whole batch."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdp.lowering import _target
from jaxdp.lowering._custom_batching import CustomBatching
from jaxdp.lowering._late import zeros_after
from jaxdp.lowering._shards import chunk_size, map_examples, shards_of, sum_examples
from jaxdp.lowering._weighted import weighted_total
from jaxdp.norms import _rounding
from jaxdp.norms._certificate import of_array, of_product, of_squared_norms, of_sum, shared_unit
from jaxdp.norms._costs import default_machine, gram_cost, product_cost, reuse_cost, sum_cost
from jaxdp.numerics._wide import wide, wide_dtype

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


def outer_certificate(
    a: Float[Array, "k t c"],
    g: Float[Array, "k t p"],
    rule: Rule | None = None,
    *,
    precision: Any = None,
    examples: int = 1,
) -> Float[Array, "4"]:
    r"""What is known of $\sum_k \|A_k^\top G_k\|_F^2$, found by Gram matrices over t or by the product itself.

    `precision` is that of the product that adds this gradient's terms to those of `examples` in all.
    """
    k, t, c = a.shape
    p = g.shape[2]
    how = exact_rule(k, t, c, p, rule)
    if t == 1 and how == "Gram":
        return _vector_certificate(a, g, precision, examples)
    if how == "Gram":
        squared, margin, magnitudes = _gram_squared_norm(a, g)
        summed = _rounding.sum_unit(t, c, p, a.dtype, precision)
        shared = shared_unit((k, t, c, p), a.dtype, precision, examples)
        return of_sum(squared, margin, magnitudes, 0.0, summed, shared)
    piecewise = lambda: _tiled_sums(a, g, max(1, _ALIVE_ELEMENTS // (k * c)))
    squared, magnitudes = _product_sums(a, g) if how == "product" else piecewise()
    return of_product(squared, magnitudes, (k, t, c, p), a.dtype, precision, examples)


def _vector_certificate(
    a: Float[Array, "k 1 c"], g: Float[Array, "k 1 p"], precision: Any, examples: int
) -> Float[Array, "4"]:
    """Of outer products of two vectors, in which nothing is added up."""
    aa, gg = (jnp.sum(jnp.square(wide(x)), axis=(1, 2)) for x in (a, g))
    squared = jnp.sum(aa * gg)
    c, p = a.shape[2], g.shape[2]
    depth = _rounding.reduction_depth(c) + _rounding.reduction_depth(p) + 4
    margin = squared * (depth * _rounding.unit(a.dtype) * _rounding.UPWARDS) + jnp.sum(_lost_squares(aa, gg, c, p))
    summed = _rounding.sum_unit(1, c, p, a.dtype, precision)
    shared = shared_unit((a.shape[0], 1, c, p), a.dtype, precision, examples)
    return of_sum(squared, margin, jnp.sqrt(aa * gg), 0.0, summed, shared)


def _gram_squared_norm(
    a: Float[Array, "k t c"], g: Float[Array, "k t p"]
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, " k"]]:
    """The squared norm, what rounding can have taken from it, and the terms' magnitude."""
    k, t, c = a.shape
    p = g.shape[2]
    tile = max(1, _ALIVE_ELEMENTS // (2 * k * t))
    if t <= tile:
        # Without an axis of length one, for which XLA would copy both factors to bring their axes in order.
        inner, left, right, magnitudes, aa, gg = _gram_sums(a, g) if k > 1 else _gram_sums(a[0], g[0])
        if k == 1:
            magnitudes, aa, gg = magnitudes[None], aa[None], gg[None]
    else:
        inner, left, right = _tiled_gram_sums(a, g, tile)
        aa, gg = (jnp.sum(jnp.square(wide(x)), axis=(1, 2)) for x in (a, g))
        magnitudes = _rounding.magnitude(wide(a), wide(g))
    u = _rounding.unit(a.dtype)
    # Error of an entry of a Gram matrix, as a share of the norms of the two vectors behind it.
    in_a, in_g = (_rounding.norm_product_unit(n, t, t, a.dtype) for n in (c, p))
    both = 3 * in_a * in_g * jnp.sum(jnp.square(magnitudes))
    margin = (in_a + (2 * t + k + 8) * u) * left + (in_g + u) * right + both
    return jnp.maximum(inner, 0), margin * _rounding.UPWARDS + jnp.sum(_lost_squares(aa, gg, t * c, t * p)), magnitudes


def _lost_squares(aa: Float[Array, "*k"], gg: Float[Array, "*k"], a_size: int, g_size: int) -> Float[Array, "*k"]:
    """Most that underflow can have taken from the product of the squared norms of two factors of these sizes."""
    return _rounding.SMALLEST_SQUARE * g_size * aa + _rounding.SMALLEST_SQUARE * a_size * gg


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
    """Whether products of few examples are the fastest."""
    return _target.forms().few_at_a_time


def _gram_elements(a: tuple[int, ...], g: tuple[int, ...]) -> int:
    matrices = 2 * math.prod(a[:-1]) * a[-2]
    # Factors count for half, as they are only read.
    return max(matrices, math.prod(a) // 2, math.prod(g) // 2) if _on_cpu() else matrices


@_over_batch(lambda a, g: a[0] * a[2] * g[2])
def _product_sums(a: Float[Array, "k t c"], g: Float[Array, "k t p"]) -> tuple[Float[Array, ""], Float[Array, " k"]]:
    """The product's squared norm, and its terms' magnitude."""
    # As below, without an axis of length one.
    spec, factors = ("ktc,ktp->kcp", (a, g)) if a.shape[0] > 1 else ("tc,tp->cp", (a[0], g[0]))
    return jnp.sum(jnp.square(full_product(spec, *factors))), _rounding.magnitude(wide(a), wide(g))


@_over_batch(_gram_elements)
def _gram_sums(a: Float[Array, "*k t c"], g: Float[Array, "*k t p"]) -> tuple[Array, ...]:
    r"""Inner product of $A A^\top$ and $G G^\top$ with what its error is bounded by, magnitudes and squared norms.

    The diagonals hold the rows' squared norms, so the factors are not read again. Two sums are added up along rows
    first: a running sum over all of the matrices' entries would err by their number.
    """
    aa = full_product("...rc,...tc->...rt", a, a)
    gg = full_product("...rp,...tp->...rt", g, g)
    a_squares, g_squares = map(_diagonal, (aa, gg))
    inner, left, right = _along_rows(aa, gg, a_squares, g_squares, a_squares, g_squares)
    total = lambda x: jnp.sum(jax.lax.optimization_barrier(x))
    last = lambda x: jnp.sum(x, axis=-1)
    lost = lambda x, n: x + _rounding.SMALLEST_SQUARE * n
    magnitudes = last(jnp.sqrt(lost(a_squares, a.shape[-1])) * jnp.sqrt(lost(g_squares, g.shape[-1])))
    return total(inner), total(left), total(right), magnitudes, last(a_squares), last(g_squares)


def _diagonal(x: Float[Array, "*k t t"]) -> Float[Array, "*k t"]:
    """Without a gather, and never below zero."""
    row, column = (jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - d) for d in (2, 1))
    return jnp.maximum(jnp.sum(jnp.where(row == column, x, 0), axis=-1), 0)


def _along_rows(
    aa: Float[Array, "*k r t"],
    gg: Float[Array, "*k r t"],
    a_rows: Float[Array, "*k r"],
    g_rows: Float[Array, "*k r"],
    a_columns: Float[Array, "*k t"],
    g_columns: Float[Array, "*k t"],
) -> tuple[Array, Array, Array]:
    """Sums along t of the matrices' product, and of each one's magnitude times the norms behind the other's entries."""
    norms = lambda rows, columns: jnp.sqrt(rows)[..., None] * jnp.sqrt(columns)[..., None, :]
    add = lambda x, y: tuple(map(jnp.add, x, y))
    zero = jnp.zeros((), aa.dtype)
    terms = (aa * gg, norms(a_rows, a_columns) * jnp.abs(gg), norms(g_rows, g_columns) * jnp.abs(aa))
    # One pass over both matrices for all three.
    inner, left, right = jax.lax.reduce(terms, (zero, zero, zero), add, (aa.ndim - 1,))
    return inner, left, right


@_over_batch(lambda x, y, a, g: 2 * a[0] * x[1] * a[1])
def _some_gram_sums(
    x: Float[Array, "k r c"], y: Float[Array, "k r p"], a: Float[Array, "k t c"], g: Float[Array, "k t p"]
) -> tuple[Array, Array, Array]:
    """The first three of `_gram_sums`, over some rows of the matrices."""
    squares = [jnp.sum(jnp.square(wide(z)), axis=-1) for z in (x, y, a, g)]
    found = _along_rows(full_product("krc,ktc->krt", x, a), full_product("krp,ktp->krt", y, g), *squares)
    inner, left, right = (jnp.sum(jax.lax.optimization_barrier(z)) for z in found)
    return inner, left, right


def _tiled_gram_sums(a: Float[Array, "k t c"], g: Float[Array, "k t p"], tile: int) -> tuple[Array, Array, Array]:
    rows = lambda x: _tiles(x, 1, tile)
    found = jax.lax.map(lambda xy: _some_gram_sums(*xy, a, g), (rows(a), rows(g)))
    inner, left, right = map(jnp.sum, found)
    return inner, left, right


def _tiled_sums(a: Float[Array, "k t c"], g: Float[Array, "k t p"], tile: int) -> tuple[Array, Array]:
    """`_product_sums` for a gradient that is made piece by piece."""
    squares, _ = jax.lax.map(lambda part: _product_sums(a, part), _tiles(g, 2, tile))
    return jnp.sum(squares), _rounding.magnitude(wide(a), wide(g))


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
    examples: int = 1,
) -> tuple[Float[Array, "k c p"], Float[Array, "b 4"]]:
    r"""$\sum_i w_i A_i^\top G_i$ with $w_i$ = `weigh(certificates, rest)`, few products alive at a time."""
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
        found = jax.vmap(lambda x: of_array(x, examples))(product)
        return total + weighted_total(weigh(found, rest), product), found

    whole = lambda total: total if several else total[None]
    if chunk == each:
        total, norms = add(jnp.zeros((), dtype), (*given, rest))
        return whole(total), norms
    parts = (*given, rest)
    if not alone:
        parts = jax.tree.map(lambda x: x.reshape(size // chunk, chunk, *x.shape[1:]), parts)
    total, norms = sum_examples(add, zeros_after((k, c, p) if several else (c, p), dtype, g), parts)
    return whole(total), norms.reshape(size, -1)


def mixed_certificate(
    a: Float[Array, "t v"],
    g: Float[Array, "t p"],
    ids: Int[Array, " s"],
    rows: Float[Array, "s p"],
    rule: Rule | None = None,
    *,
    precision: Any = None,
    examples: int = 1,
) -> Float[Array, "4"]:
    r"""Of $\|A^\top G + \sum_s e_{ids_s} rows_s^\top\|_F^2$, a table that is both looked up and multiplied with."""
    (t, v), (s, p) = a.shape, rows.shape
    u = _rounding.unit(a.dtype)
    product, looked_up = outer_certificate(a[None], g[None], rule), rows_certificate(ids, rows)
    inner = jnp.einsum("tp,sp->ts", g, rows, precision="highest")
    picked = a[:, ids]
    cross, size = _cross(picked, inner, _rounding.row_norms(g), _rounding.row_norms(rows))
    apart = product[0] + looked_up[0]
    squared = jnp.maximum(apart + 2 * cross, 0)
    # What is known of either part's norm goes into what rounding can have taken from that of both.
    wider = jnp.square(jnp.sqrt(product[0] + product[1]) + jnp.sqrt(product[2])) - product[0]
    wider += jnp.square(jnp.sqrt(looked_up[0] + looked_up[1]) + jnp.sqrt(looked_up[2])) - looked_up[0]
    unit = _rounding.norm_product_unit(p, t, s, a.dtype) + (t + s + 4) * u
    margin = wider + 2 * unit * size * _rounding.UPWARDS + 4 * u * apart
    magnitudes = _rounding.magnitude(a, g) + jnp.sum(_rounding.row_norms(rows))
    summed = _rounding.sum_unit(t, v, p, a.dtype, precision) + (s + 4) * u
    shared = shared_unit((1, t, v, p), a.dtype, precision, examples) + (s * examples + 4) * u
    return of_sum(squared, margin, magnitudes[None], 0.0, summed, shared)


def _cross(
    picked: Float[Array, "t s"], inner: Float[Array, "t s"], g_norms: Float[Array, " t"], row_norms: Float[Array, " s"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Inner product of a product and of looked-up rows, and what its error is in proportion to."""
    along = lambda x: jnp.sum(jax.lax.optimization_barrier(jnp.sum(x, axis=-1)))
    return along(picked * inner), along(jnp.abs(picked) * g_norms[:, None] * row_norms[None])


def summed_rows(ids: Int[Array, " t"], rows: Float[Array, "t p"]) -> tuple[Int[Array, " t"], Float[Array, "t p"]]:
    r"""Rows of equal number added up where the first of them is, by sorting; zero rows where the others are.

    Memory t x p, whatever the table's size.
    """
    order = jnp.argsort(ids)
    ids, rows = ids[order], rows[order]
    first = jnp.concatenate([jnp.ones((1,), bool), ids[1:] != ids[:-1]])
    begin = jax.lax.cummax(jnp.where(first, jnp.arange(ids.shape[0]), 0))
    # Added to the first row of each run, not to zeros, which would be made at the start of the step and kept.
    repeats = jnp.where(first[:, None], 0, rows)
    sums = jnp.where(first[:, None], rows, 0).at[begin].add(repeats, indices_are_sorted=True, mode="promise_in_bounds")
    return ids, sums


def rows_certificate(ids: Int[Array, " t"], rows: Float[Array, "t p"], examples: int = 1) -> Float[Array, "4"]:
    r"""Of $\sum_v \|\sum_{t: ids_t = v} rows_t\|^2$, whose rows enter the table one by one."""
    t, p = rows.shape
    _, sums = summed_rows(ids, rows)
    squared, u = jnp.sum(jnp.square(sums)), _rounding.unit(rows.dtype)
    margin = squared * ((_rounding.reduction_depth(t * p) + 2) * u * _rounding.UPWARDS)
    magnitudes = jnp.sum(_rounding.row_norms(rows))[None]
    added = (t + _rounding.OTHER_ROUNDINGS) * u * _rounding.UPWARDS
    shared = (t * examples + _rounding.OTHER_ROUNDINGS) * u * _rounding.UPWARDS
    return of_sum(squared, margin, magnitudes, added, added, shared)


def summed_rows_certificate(sums: Float[Array, "t p"], examples: int = 1) -> Float[Array, "4"]:
    """Of rows that were added up where they have equal numbers, and enter the table as they are."""
    return of_squared_norms(jnp.sum(jnp.square(sums)), sums.size, sums.dtype, examples)
