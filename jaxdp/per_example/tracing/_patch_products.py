"""Convolutions whose windows do not overlap, as vision transformers cut images into patches: matrix products."""

import functools
import math
from typing import Any

import jax
from jaxtyping import Array

from jaxdp.per_example.tracing._convolution_layout import features_last, from_features_last, is_convolution


def is_patchwise(eqn: Any) -> bool:
    """Whether the equation is a convolution whose windows lie side by side, each of them inside the input."""
    if not is_convolution(eqn):
        return False
    p = eqn.params
    kernel = eqn.invars[1].aval.shape
    window = tuple(kernel[d] for d in p["dimension_numbers"].rhs_spec[2:])
    plain = p["feature_group_count"] == p["batch_group_count"] == 1
    dense = set(p["lhs_dilation"]) | set(p["rhs_dilation"]) <= {1} and all(tuple(x) == (0, 0) for x in p["padding"])
    return plain and dense and tuple(p["window_strides"]) == window and math.prod(eqn.outvars[0].aval.shape) > 0


def as_product(eqn: Any) -> Any:
    """The jaxpr of a patchwise convolution as a product of patches, which are a rearranged input, and the kernel.

    A product has more rules than a convolution has, and XLA makes it as fast inside loops as outside.
    """
    return jax.make_jaxpr(functools.partial(_product, params=eqn.params))(*(v.aval for v in eqn.invars))


def _product(x: Array, kernel: Array, params: dict[str, Any]) -> Array:
    lhs, rhs, out = params["dimension_numbers"]
    window = [kernel.shape[d] for d in rhs[2:]]
    rank = len(window)
    x = features_last(x, lhs)
    counts = [n // w for n, w in zip(x.shape[1:-1], window, strict=True)]
    covered = [slice(0, n * w) for n, w in zip(counts, window, strict=True)]
    split = [size for pair in zip(counts, window, strict=True) for size in pair]
    patches = x[(slice(None), *covered)].reshape(x.shape[0], *split, x.shape[-1])
    inside = range(2, 2 * rank + 1, 2)
    # Examples, places, outputs.
    values = jax.lax.dot_general(
        patches,
        kernel,
        (((*inside, 2 * rank + 1), (*rhs[2:], rhs[1])), ((), ())),
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )
    return from_features_last(values, out)
