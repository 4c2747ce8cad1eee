"""What flows through a rewritten jaxpr: ordinary values, and values computed from parameters alone."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array


def wide_dtype(dtype: Any) -> Any:
    """At least float32: half-precision squares underflow and half-precision sums stall."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


class Shadow(NamedTuple):
    """The tangents of one parameter leaf along a weight; their cotangents are the results.

    They start as zeros, follow the weight through every reshape and slice, and take no part in the forward pass.
    """

    total: Array  # float32, shared by the batch: its cotangent is the weighted sum over examples
    own: Array | None  # float32, one per example: its cotangent is the example's gradient; None if not reported


@dataclasses.dataclass(frozen=True)
class Plain:
    """An ordinary value; `fixed` when it depends on neither the example nor a parameter."""

    value: Any
    fixed: bool


@dataclasses.dataclass(frozen=True)
class Weight:
    """A value computed from parameters alone (a view of one, or a function of several).

    `isometric`: a gradient of this value has the norm of the leaf's gradient it contributes.
    `shared`: the same entries are consumed more than once (a constant of a loop), so that contributions add up.
    `box`: the part of the leaf this is a view of, `(start, stop)` per axis; gradients of disjoint boxes are orthogonal.
    `aligned`: whether this value's axes are still the leaf's, so that a slice of it is a smaller box.
    """

    value: Array
    shadows: dict[int, Shadow]
    isometric: bool
    shared: bool
    box: tuple[tuple[int, int], ...]
    aligned: bool


Entry = Plain | Weight
