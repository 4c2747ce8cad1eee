"""Whole numbers that neither an example nor a parameter decides: where a program cuts and picks is known beforehand."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxdp.per_example.tracing._compat import eval_eqn
from jaxdp.per_example.tracing._values import Plain, Value

# Beyond this a list of places is not worth being looked at while tracing.
_MOST = 1 << 16


def known(entry: Value) -> np.ndarray | None:
    """The value of a public integer array, None where it is not known while tracing."""
    if not isinstance(entry, Plain) or not entry.fixed:
        return None
    found = entry.value
    if isinstance(found, Tracer):
        return None if entry.known is None else entry.known()
    concrete = not isinstance(found, jax.Array) or found.is_fully_addressable
    return np.asarray(found) if concrete and _is_small(found) else None


def evaluated_when_asked(eqn: Any, operands: Sequence[Value]) -> list[Callable[[], np.ndarray | None] | None]:
    """For each output of an equation on public values what finds it, should anybody ask."""
    nothing: list[Callable[[], np.ndarray | None] | None] = [None] * len(eqn.outvars)
    if not all(_is_small(v.aval) for v in (*eqn.invars, *eqn.outvars)) or eqn.effects:
        return nothing

    @functools.cache
    def values() -> list[np.ndarray] | None:
        found = [known(x) for x in operands]
        if any(x is None for x in found):
            return None
        with jax.ensure_compile_time_eval():
            return [np.asarray(x) for x in eval_eqn(eqn, found)]

    def one(i: int) -> np.ndarray | None:
        every = values()
        return None if every is None else every[i]

    return [functools.partial(one, i) for i in range(len(eqn.outvars))]


def picked_once(eqn: Any, operands: Sequence[Value]) -> tuple[int, np.ndarray] | None:
    """The axis and the places of a gather of whole rows that picks public ones, each of them once; else None."""
    if eqn.primitive.name != "gather":
        return None
    dims, shape = eqn.params["dimension_numbers"], eqn.invars[0].aval.shape
    axes = tuple(dims.start_index_map)
    if len(axes) != 1 or tuple(dims.collapsed_slice_dims) != axes or dims.operand_batching_dims:
        return None
    whole = tuple(1 if i == axes[0] else n for i, n in enumerate(shape))
    if tuple(eqn.params["slice_sizes"]) != whole:
        return None
    places = known(operands[1])
    if places is None or places.size == 0:
        return None
    places = places.reshape(-1)
    inside = bool(np.all((places >= 0) & (places < shape[axes[0]])))
    return (axes[0], places) if inside and np.unique(places).size == places.size else None


def _is_small(x: Any) -> bool:
    dtype = getattr(x, "dtype", None)
    countable = dtype is not None and any(jnp.issubdtype(dtype, kind) for kind in (jnp.integer, jnp.bool_))
    return countable and math.prod(np.shape(x)) <= _MOST
