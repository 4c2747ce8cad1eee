"""Convolutions in the form that XLA makes fast on a CPU everywhere.

It brings convolutions into this form (examples first, features last, in the kernel inputs before outputs) by itself,
but not inside loops, where others take fifty times as long. A backward pass has others, whatever the layout is.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jaxtyping import Array

from jaxdp.lowering import _target
from jaxdp.per_example.tracing._compat import eval_eqn


def is_convolution(eqn: Any) -> bool:
    """Whether the equation is a convolution."""
    return eqn.primitive.name == "conv_general_dilated"


def has_canonical_form(eqn: Any) -> bool:
    """Whether the equation is a convolution to be computed as is done here."""
    return is_convolution(eqn) and eqn.params["batch_group_count"] == 1 and _target.forms().patches


def evaluated(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """The values of any equation."""
    return [_convolved(eqn, *operands)] if has_canonical_form(eqn) else eval_eqn(eqn, operands)


def _convolved(eqn: Any, x: Array, kernel: Array) -> Array:
    """A convolution, with a derivative by `x` in the same form."""

    @jax.custom_vjp
    def run(x: Array, kernel: Array) -> Array:
        return _forward(eqn.params, x, kernel)

    def backward(saved: tuple[Array, Array], ct: Array) -> tuple[Array, Array]:
        x, kernel = saved
        by_kernel = jax.vjp(lambda kernel: eval_eqn(eqn, [x, kernel])[0], kernel)[1]
        return pull_back(eqn, kernel, x, ct), by_kernel(ct)[0]

    run.defvjp(lambda x, kernel: (run(x, kernel), (x, kernel)), backward)
    return run(x, kernel)


def pull_back(eqn: Any, kernel: Array, x: Any, ct: Array) -> Array:
    """The cotangent of the input, which is like `x`: a convolution of the output's with the reversed kernel."""
    p = eqn.params
    dims, groups = p["dimension_numbers"], p["feature_group_count"]
    rank = len(dims.rhs_spec) - 2
    ct, kernel = features_last(ct, dims.out_spec), _outputs_last(kernel, dims.rhs_spec)
    *window, inputs, outputs = kernel.shape
    swapped = lax.rev(kernel, range(rank)).reshape(*window, inputs, groups, outputs // groups)
    swapped = swapped.transpose((*range(rank), rank + 2, rank + 1, rank)).reshape(
        *window, outputs // groups, groups * inputs
    )
    padding = []
    for i in range(rank):
        reach = _dilated(window[i], p["rhs_dilation"][i])
        size = _dilated(x.shape[dims.lhs_spec[2 + i]], p["lhs_dilation"][i])
        before = reach - p["padding"][i][0] - 1
        padding.append((before, size + reach - 1 - _dilated(ct.shape[1 + i], p["window_strides"][i]) - before))
    found = lax.conv_general_dilated(
        ct,
        swapped,
        p["lhs_dilation"],
        padding,
        lhs_dilation=p["window_strides"],
        rhs_dilation=p["rhs_dilation"],
        dimension_numbers=_canonical(rank),
        feature_group_count=groups,
        precision=p["precision"],
        preferred_element_type=p["preferred_element_type"],
    )
    return from_features_last(found, dims.lhs_spec).astype(x.dtype)


def _forward(p: dict[str, Any], x: Array, kernel: Array) -> Array:
    dims = p["dimension_numbers"]
    found = lax.conv_general_dilated(
        features_last(x, dims.lhs_spec),
        _outputs_last(kernel, dims.rhs_spec),
        p["window_strides"],
        p["padding"],
        lhs_dilation=p["lhs_dilation"],
        rhs_dilation=p["rhs_dilation"],
        dimension_numbers=_canonical(len(dims.rhs_spec) - 2),
        feature_group_count=p["feature_group_count"],
        precision=p["precision"],
        preferred_element_type=p["preferred_element_type"],
    )
    return from_features_last(found, dims.out_spec)


def _canonical(rank: int) -> lax.ConvDimensionNumbers:
    spatial = tuple(range(1, rank + 1))
    return lax.ConvDimensionNumbers((0, rank + 1, *spatial), (rank + 1, rank, *range(rank)), (0, rank + 1, *spatial))


def features_last(x: Array, spec: Sequence[int]) -> Array:
    """Examples, places, features."""
    return x.transpose((spec[0], *spec[2:], spec[1]))


def _outputs_last(kernel: Array, spec: Sequence[int]) -> Array:
    return kernel.transpose((*spec[2:], spec[1], spec[0]))


def from_features_last(x: Array, spec: Sequence[int]) -> Array:
    """What `features_last` is made of."""
    order = [0] * x.ndim
    for axis, at in enumerate((spec[0], *spec[2:], spec[1])):
        order[at] = axis
    return x.transpose(order)


def _dilated(size: int, dilation: int) -> int:
    return 0 if size == 0 else 1 + dilation * (size - 1)
