"""Parameters side by side in one array: a product with it is a product with each of them."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxdp.per_example.tracing._values import Value, Weight


def as_concatenations(eqn: Any) -> Any:
    """The jaxpr of a `stack`, or of a `pad` without gaps, as concatenations and slices; None for other equations."""
    name = eqn.primitive.name
    if name == "stack":
        axis = eqn.params["axis"]
        run: Any = lambda *xs: lax.concatenate([lax.expand_dims(x, (axis,)) for x in xs], axis)
    elif name == "pad" and all(gap == 0 for _, _, gap in eqn.params["padding_config"]):
        run = lambda x, value: _padded(x, value, [(int(lo), int(hi)) for lo, hi, _ in eqn.params["padding_config"]])
    else:
        return None
    return jax.make_jaxpr(run)(*(v.aval for v in eqn.invars))


def _padded(x: Array, value: Array, widths: Sequence[tuple[int, int]]) -> Array:
    starts = [max(0, -lo) for lo, _ in widths]
    x = lax.slice(x, starts, [n - max(0, -hi) for n, (_, hi) in zip(x.shape, widths, strict=True)])
    for axis, (lo, hi) in enumerate(widths):
        block = lambda n, axis=axis, x=x: jnp.broadcast_to(value, (*x.shape[:axis], n, *x.shape[axis + 1 :]))
        if lo > 0 or hi > 0:
            x = lax.concatenate([*([block(lo)] if lo > 0 else []), x, *([block(hi)] if hi > 0 else [])], axis)
    return x


def is_product_of_parts(eqn: Any, operands: Sequence[Value]) -> bool:
    """Whether this is a matrix product with several parameters side by side, each with a norm of its own."""
    weights = [x for x in operands if isinstance(x, Weight)]
    return eqn.primitive.name == "dot_general" and len(weights) == 1 and weights[0].parts is not None


def product_of_parts(eqn: Any, operands: Sequence[Value]) -> tuple[Any, list[Value]]:
    """The jaxpr of such a product, part by part, and its operands."""
    at = next(i for i, x in enumerate(operands) if isinstance(x, Weight))
    joined, other = operands[at], operands[1 - at]
    assert isinstance(joined, Weight) and joined.parts is not None
    axis = joined.side
    contract, batch = eqn.params["dimension_numbers"]
    free = [d for d in range(joined.value.ndim) if d not in contract[at] and d not in batch[at]]
    others_free = jnp.ndim(other.value) - len(contract[1 - at]) - len(batch[1 - at])
    # Batch dimensions lead in the output; the free ones of the left operand come before those of the right one.
    before = len(batch[at]) + (others_free if at == 1 else 0)

    def along(dims: Sequence[Sequence[int]]) -> int | None:
        return dims[1 - at][tuple(dims[at]).index(axis)] if axis in dims[at] else None

    contracted, shared = along(contract), along(batch)
    cut = contracted if contracted is not None else shared

    def run(x: Array, *parts: Array) -> Array:
        outs, start = [], 0
        for part in parts:
            stop = start + part.shape[axis]
            mine = x if cut is None else lax.slice_in_dim(x, start, stop, axis=cut)
            start = stop
            both = (mine, part) if at == 1 else (part, mine)
            outs.append(
                lax.dot_general(
                    *both,
                    eqn.params["dimension_numbers"],
                    precision=eqn.params["precision"],
                    preferred_element_type=eqn.params["preferred_element_type"],
                )
            )
        if contracted is not None:
            return sum(outs[1:], outs[0])
        where = tuple(batch[at]).index(axis) if shared is not None else before + free.index(axis)
        return lax.concatenate(outs, where)

    entries = [other, *joined.parts]
    return jax.make_jaxpr(run)(*(jax.ShapeDtypeStruct(jnp.shape(x.value), x.value.dtype) for x in entries)), entries


def covers_once(parts: Sequence[Value]) -> bool:
    """Whether parts side by side are views of one parameter that show each entry once, if at all."""
    weights = [x for x in parts if isinstance(x, Weight)]
    if len(weights) < len(parts) or len({tuple(w.shadows) for w in weights}) > 1 or len(weights[0].shadows) > 1:
        return False
    apart = lambda a, b: any(p[1] <= q[0] or q[1] <= p[0] for p, q in zip(a.region, b.region, strict=True))
    same_axes = len({len(w.region) for w in weights}) == 1 and math.prod(weights[0].leaf_shape) > 0
    pairs = ((a, b) for i, a in enumerate(weights) for b in weights[:i])
    return same_axes and all(w.isometric for w in weights) and all(apart(a, b) for a, b in pairs)
