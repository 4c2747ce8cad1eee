"""What flows through a rewritten jaxpr: ordinary values, and values computed from parameters alone."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Key

from jaxdp._shown import of_shapes

Path = tuple[int, ...]
ProbeKeys = Key[Array, "..."]  # one, or one for each entry of a leaf's stack


class Shadow(NamedTuple):
    """What follows one parameter leaf along a weight: the cotangents of its first three fields are the results.

    The tangents start as zeros, follow the weight through every reshape and slice, and take no part in the forward
    pass. `certificate`, `threshold`, `key` and `basis` have one entry for each entry of the leaf's stack and are
    sliced with it by loops. Where there is a basis, `total` and `whole` have the subspace's shape.
    """

    __repr__ = of_shapes

    total: Array  # float32, shared by the batch: its cotangent is the weighted sum over examples
    whole: Array | None  # float32, one per example: its cotangent is the example's gradient; None if not reported
    certificate: Array  # float32, one per example, `[..., 4]`: its cotangent is the certificate of the gradient's norm
    threshold: Array | None = None  # what the clipping weight is computed with, beside the squared norm
    key: ProbeKeys | None = None  # of the probes that this gradient's norm is estimated from
    basis: Array | None = None  # P of the subspace that the gradient is wanted in, `[*stack, ..., k, r]`


@dataclasses.dataclass(frozen=True)
class Plain:
    """An ordinary value.

    `fixed`: whether it depends on neither the example nor a parameter.
    `active`: whether it depends on a parameter, so that there is a derivative by it.
    `known`: for a fixed integer array, what finds its value while tracing.
    """

    __repr__ = of_shapes

    value: Any
    fixed: bool
    active: bool = True
    known: Callable[[], np.ndarray | None] | None = None


@dataclasses.dataclass(frozen=True)
class Weight:
    """A value computed from parameters alone (a view of one, or a function of several).

    `isometric`: a gradient of this value has the norm of the leaf's gradient it contributes.
    `region`: the part of the leaf this shows, `(start, stop)` per axis; gradients of disjoint regions are orthogonal.
    `aligned`: whether this value's axes are still the leaf's (less the stack), so that a slice is a smaller region.
    `axes`: which axis of the leaf (less the stack) each axis of the value is; None when they are mixed.
    `leaf_shape`: the shape of the leaf, where the value is a view of one.
    `stack`: the leading axes of the leaf that loops have taken slices along.
    `steady`: whether this is the same part of the leaf in every step of the loops that do not slice it.
    `cuts`: the loops that slice this value; in all other loops around a use the same entries are used every time.
    `spans`: where the value is the whole region, but for axes of length one, which axis of it each of its own is.
    `parts`: what lies side by side in this value along its axis `side`, if several parameters or constants do.
    """

    __repr__ = of_shapes

    value: Array
    shadows: dict[int, Shadow]
    isometric: bool
    region: tuple[tuple[int, int], ...]
    aligned: bool
    axes: tuple[int, ...] | None
    leaf_shape: tuple[int, ...]
    stack: tuple[int, ...]
    steady: bool
    cuts: tuple[Path, ...]
    spans: tuple[int, ...] | None = None
    parts: "tuple[Value, ...] | None" = None
    side: int = 0


Value = Plain | Weight


def is_active(entry: Value) -> bool:
    """Whether there is a derivative by a value."""
    return isinstance(entry, Weight) or entry.active
