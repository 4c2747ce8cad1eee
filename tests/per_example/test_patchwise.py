"""Convolutions whose windows lie side by side are matrix products, with the gradients of the convolution."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxpr_as_fun

import jaxdp
from jaxdp.per_example.passes._finite import slow_in_loops
from jaxdp.per_example.tracing._patch_products import as_product, is_patchwise
from tests.drawn import normal

# Input and kernel of one example (with its own batch axis), strides, padding, and the rest.
FORMS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], Any, dict[str, Any]]] = {
    "of an image, rest cut off": (
        (1, 7, 9, 2),
        (3, 2, 2, 4),
        (3, 2),
        "VALID",
        {"dimension_numbers": ("NHWC", "HWIO", "NHWC")},
    ),
    "of an image, whole": ((1, 2, 6, 4), (3, 2, 3, 2), (3, 2), "SAME", {}),
    "one axis": ((2, 9, 3), (4, 3, 5), (4,), "VALID", {"dimension_numbers": ("NWC", "WIO", "NWC")}),
    "three axes": ((1, 2, 4, 6, 4), (3, 2, 2, 3, 4), (2, 3, 4), "VALID", {}),
    "features in between": (
        (2, 4, 3, 6),
        (2, 5, 3, 3),
        (2, 3),
        "VALID",
        {"dimension_numbers": ("NHCW", "HOIW", "HNWC")},
    ),
    "single entries": ((1, 2, 3, 4), (5, 2, 1, 1), (1, 1), "VALID", {"precision": "highest"}),
}


def equation(form: Any) -> tuple[Any, Any]:
    """A convolution, and the equation that it is."""
    x_shape, kernel_shape, strides, padding, options = form
    apply = lambda x, w: lax.conv_general_dilated(x, w, strides, padding, **options)
    return apply, jax.make_jaxpr(apply)(jnp.ones(x_shape), jnp.ones(kernel_shape)).eqns[-1]


@pytest.mark.parametrize("form", FORMS)
def test_the_product_is_the_convolution(form: str) -> None:
    """The same values in the same layout, and no convolution left that would be slow in a loop."""
    apply, eqn = equation(FORMS[form])
    x, kernel = (normal(i, *shape) for i, shape in enumerate(FORMS[form][:2]))
    assert is_patchwise(eqn)
    product = as_product(eqn)
    assert not slow_in_loops(product)
    (found,) = jax.jit(jaxpr_as_fun(product))(x, kernel)
    np.testing.assert_allclose(found, apply(x, kernel), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_norms_and_sums_are_those_of_the_convolution(form: str) -> None:
    """Through the whole engine, where the kernel is also read by another equation."""
    apply, _ = equation(FORMS[form])
    x_shape, kernel_shape = FORMS[form][:2]
    params = {"w": normal(0, *kernel_shape)}
    batch = normal(1, 5, *x_shape)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.tanh(apply(x, params["w"]))) + jnp.sum(jnp.square(params["w"])) * jnp.mean(x)

    weigh = lambda squares: 1 / (1 + squares)
    run = lambda method: jax.jit(
        lambda p, b: jaxdp.per_example_grad(loss, method=method)(p, b).clipped_sum_and_norms(weigh)
    )(params, batch)
    expected = run("materialize")
    for method in ("ghost", "fused"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), run(method), expected)


@pytest.mark.parametrize(
    "change",
    [
        {"strides": (2, 2)},
        {"padding": [(1, 1), (0, 0)]},
        {"options": {"rhs_dilation": (2, 1)}},
        {"options": {"lhs_dilation": (1, 3)}, "padding": [(0, 0), (0, 0)]},
        {"options": {"feature_group_count": 2}, "kernel": (4, 1, 3, 2)},
        {"options": {"batch_group_count": 2}, "x": (2, 2, 6, 4)},
    ],
    ids=lambda change: next(iter(change)) + str(next(iter(change.values()))),
)
def test_other_convolutions_stay_what_they_are(change: dict[str, Any]) -> None:
    """Windows that overlap, leave gaps, reach outside or see some of the features only."""
    x, kernel, strides = (1, 2, 6, 4), (4, 2, 3, 2), (3, 2)
    _, eqn = equation(
        (
            change.get("x", x),
            change.get("kernel", kernel),
            change.get("strides", strides),
            change.get("padding", "VALID"),
            change.get("options", {}),
        )
    )
    assert not is_patchwise(eqn)
