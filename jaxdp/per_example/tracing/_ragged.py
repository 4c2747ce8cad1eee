"""Matrix products of rows sorted into groups (`jax.lax.ragged_dot`), batched over examples with groups of their own.

JAX has no such batching. The rows of all examples are sorted by group and multiplied in one product with weights that
they share; what has one result for each example (its gradient, say) has a group for each example and group.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxdp.lowering import _target
from jaxdp.per_example.tracing._compat import set_batching_rule


@functools.cache
def teach_jax() -> None:
    """Give JAX the batching rule, once: then every transformation of every loss has it."""
    structs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 1), (1, 1, 1))]
    program = jax.make_jaxpr(lax.ragged_dot)(*structs, jax.ShapeDtypeStruct((1,), jnp.int32))
    found = (eqn.primitive for eqn in program.jaxpr.eqns if eqn.primitive.name == "ragged_dot_general")
    primitive = next(found, None)
    if primitive is not None:
        set_batching_rule(primitive, functools.partial(_batched, primitive))


def _batched(primitive: Any, size: int, args: Sequence[Any], dims: Sequence[Any], **params: Any) -> tuple[Array, int]:
    """The products of all examples, stacked along a new first axis."""
    lhs, rhs, sizes = (x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(args, dims, strict=True))
    lhs_has, rhs_has, sizes_have = (axis is not None for axis in dims)
    numbers = params["ragged_dot_dimension_numbers"]
    (_, _), (lhs_shared, _) = numbers.dot_dimension_numbers
    (ragged,) = numbers.lhs_ragged_dimensions
    (lhs_contract, rhs_contract), _ = numbers.dot_dimension_numbers
    bind = lambda x, y, counts: primitive.bind(x, y, counts, **params)
    every = lambda x, has: x if has else jnp.broadcast_to(x, (size, *x.shape))
    if lhs_shared:
        return _one_by_one(bind, (lhs, rhs, sizes), (lhs_has, rhs_has, sizes_have)), 0
    lhs, sizes = every(lhs, lhs_has), every(sizes, sizes_have)
    if ragged in lhs_contract:
        if _loops():
            return _one_by_one(bind, (lhs, rhs, sizes), (True, rhs_has, True)), 0
        along = rhs_contract[tuple(lhs_contract).index(ragged)]
        return _sums_of_rows(bind, lhs, every(rhs, rhs_has), sizes, ragged, along), 0
    place = [d for d in range(lhs.ndim - 1) if d not in lhs_contract].index(ragged)
    if not rhs_has:
        return _rows_by_group(bind, lhs, rhs, sizes, ragged, place), 0
    if _loops():
        return _one_by_one(bind, (lhs, rhs, sizes), (True, True, True)), 0
    (group,) = numbers.rhs_group_dimensions
    return _rows_by_example(bind, lhs, rhs, sizes, ragged, place, group), 0


def _loops() -> bool:
    """Whether a product with a group for each example would do the work of all examples for each of them."""
    return _target.forms().few_at_a_time


def _one_by_one(bind: Any, operands: tuple[Array, Array, Array], batched: tuple[bool, ...]) -> Array:
    own = [x for x, has in zip(operands, batched, strict=True) if has]

    def one(mine: list[Array]) -> Array:
        rest = iter(mine)
        return bind(*(next(rest) if has else x for x, has in zip(operands, batched, strict=True)))

    return lax.map(one, own)


def _fold(x: Array, axis: int) -> Array:
    """The examples' rows one after the other along an axis of one example's."""
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])


def _unfold(x: Array, axis: int, size: int) -> Array:
    return jnp.moveaxis(x.reshape(*x.shape[:axis], size, -1, *x.shape[axis + 1 :]), axis, 0)


def group_of_rows(sizes: Array, rows: int) -> Array:
    """The group of each row, by the groups' sizes; rows after the last group have the number of groups."""
    return jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(rows, dtype=sizes.dtype), side="right")


def _rows_by_group(bind: Any, lhs: Array, rhs: Array, sizes: Array, ragged: int, place: int) -> Array:
    """All examples' rows, sorted by group, with weights that they share."""
    size, rows = lhs.shape[0], lhs.shape[1 + ragged]
    group = jax.vmap(lambda s: group_of_rows(s, rows))(sizes).reshape(-1)
    order = jnp.argsort(group, stable=True)
    product = bind(jnp.take(_fold(lhs, ragged), order, axis=ragged), rhs, jnp.sum(sizes, axis=0, dtype=sizes.dtype))
    back = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0], dtype=order.dtype))
    return _unfold(jnp.take(product, back, axis=place), place, size)


def _with_rest(sizes: Array, rows: int) -> Array:
    """Sizes with one group more for each example: the rows that are in none."""
    rest = jnp.maximum(0, rows - jnp.sum(sizes, axis=1, keepdims=True, dtype=sizes.dtype))
    return jnp.concatenate([sizes, rest], axis=1).reshape(-1)


def _rows_by_example(bind: Any, lhs: Array, rhs: Array, sizes: Array, ragged: int, place: int, group: int) -> Array:
    """All examples' rows, each with its own example's weights."""
    size, rows = lhs.shape[0], lhs.shape[1 + ragged]
    nothing = jnp.zeros_like(lax.slice_in_dim(rhs, 0, 1, axis=1 + group))
    weights = _fold(jnp.concatenate([rhs, nothing], axis=1 + group), group)
    return _unfold(bind(_fold(lhs, ragged), weights, _with_rest(sizes, rows)), place, size)


def _sums_of_rows(bind: Any, lhs: Array, rhs: Array, sizes: Array, ragged: int, along: int) -> Array:
    """Each example's and group's sum of outer products of its rows."""
    size, rows = lhs.shape[0], lhs.shape[1 + ragged]
    found = bind(_fold(lhs, ragged), _fold(rhs, along), _with_rest(sizes, rows))
    return found.reshape(size, -1, *found.shape[1:])[:, :-1]
