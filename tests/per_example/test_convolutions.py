"""Kernels of convolutions: exact in every form, found the cheaper way, and never by patches of a whole batch."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxdp
from jaxdp.norms import ANY_EXACT, NormChoice, default_machine
from jaxdp.per_example.tracing._compat import eval_eqn
from jaxdp.per_example.tracing._convolution_layout import evaluated
from jaxdp.per_example.uses import _convolution_costs as costs
from jaxdp.per_example.uses._convolved import Convolved
from tests.drawn import normal

BATCH = 6

# Input and kernel of one example (with its own batch axis), strides, padding, and the rest.
FORMS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], Any, dict[str, Any]]] = {
    "strided": ((1, 7, 6, 2), (3, 2, 2, 4), (2, 1), "SAME", {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}),
    "kernel dilated": ((1, 2, 8, 7), (3, 2, 2, 3), (1, 2), "VALID", {"rhs_dilation": (3, 2)}),
    "input dilated and cropped": ((2, 2, 5, 4), (3, 2, 3, 2), (1, 2), [(2, -1), (-1, 3)], {"lhs_dilation": (2, 3)}),
    "grouped": (
        (1, 5, 5, 6),
        (2, 2, 2, 9),
        (1, 1),
        "SAME",
        {"feature_group_count": 3, "dimension_numbers": ("NHWC", "HWIO", "NHWC")},
    ),
    "depthwise, many places": ((1, 3, 9, 8), (6, 1, 7, 7), (1, 1), "SAME", {"feature_group_count": 3}),
    "one axis": ((2, 9, 3), (4, 3, 5), (2,), "SAME", {"dimension_numbers": ("NWC", "WIO", "NWC")}),
    "three axes": ((1, 2, 4, 3, 4), (3, 2, 2, 2, 3), (2, 1, 1), "SAME", {"rhs_dilation": (1, 1, 2)}),
    "features in between": (
        (1, 4, 2, 5),
        (2, 3, 2, 3),
        (1, 1),
        "VALID",
        {"dimension_numbers": ("NHCW", "HOIW", "HNWC")},
    ),
}


def make_use(form: str, dtype: Any = jnp.float32, choice: NormChoice = ANY_EXACT) -> tuple[Convolved, Any, Any]:
    """A use, one batch of its inputs and cotangents, and every example's gradient by the convolution's own rule."""
    x_shape, kernel_shape, strides, padding, options = FORMS[form]
    draw = lambda i, *shape: normal(i, *shape).astype(dtype)
    apply = lambda x, w: lax.conv_general_dilated(x, w, strides, padding, **options)
    x, kernel = draw(0, BATCH, *x_shape), draw(1, *kernel_shape)
    eqn = jax.make_jaxpr(apply)(x[0], kernel).eqns[-1]
    assert Convolved.matches(eqn, 1)
    ct = draw(2, BATCH, *eqn.outvars[0].aval.shape)
    wide = lambda y: y.astype(jnp.float32)
    one = lambda x, ct: jax.vjp(lambda w: apply(wide(x), w), wide(kernel))[1](wide(ct))[0]
    return Convolved(eqn, 1, choice), (x, ct), jax.vmap(one)(x, ct)


@pytest.mark.parametrize(
    ("form", "alive"), [*((form, (1, 1 << 30)[i % 2]) for i, form in enumerate(FORMS)), ("strided", 1 << 30)]
)
def test_gradients_norms_and_sums_are_exact(form: str, alive: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One example's patches at a time, and those of all of them."""
    monkeypatch.setitem(costs._ALIVE_ELEMENTS, "cpu", alive)
    use, (x, ct), each = make_use(form)
    gram = Convolved(use.eqn, 1, NormChoice("gram"))
    weights = jnp.linspace(0.2, 1.2, BATCH)

    def found(x: jax.Array, ct: jax.Array) -> Any:
        norm = lambda use: jax.vmap(lambda x, ct: use.certificate({0: x}, [ct])[0])(x, ct)
        gradients = jax.vmap(lambda x, ct: use.gradient({0: x}, [ct]))(x, ct)
        total = use.weighted_sum(weights, {0: x}, {0: True}, [ct])
        folded = use._folded_gradient(weights, x, ct)
        norms, clipped = use.clipped(lambda found, w: w / (1 + found[:, 0]), weights, {0: x}, {0: True}, [ct])
        return gradients, norm(gram), norm(use), total, folded, norms[:, 0], clipped

    squares = jnp.sum(jnp.square(each).reshape(BATCH, -1), axis=1)
    summed = lambda weights: jnp.einsum("b,b...->...", weights, each)
    expected = (each, squares, squares, summed(weights), summed(weights), squares, summed(weights / (1 + squares)))
    for ours, reference in zip(jax.jit(found)(x, ct), expected, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=2e-5, atol=1e-5)


@pytest.mark.quick
@pytest.mark.parametrize("form", FORMS)
def test_values_and_input_gradients_are_those_of_the_convolution(form: str) -> None:
    """Computed in the form that is fast on a CPU; also where the kernel is no parameter."""
    use, (x, ct), _ = make_use(form)
    eqn, kernel = use.eqn, normal(3, *FORMS[form][1])

    def both(run: Any) -> Any:
        value, pull = jax.vjp(lambda x, kernel: run(eqn, [x, kernel])[0], x[0], kernel)
        return value, *pull(ct[0])

    expected = jax.jit(lambda: both(eval_eqn))()
    for ours, reference in zip(jax.jit(lambda: both(evaluated))(), expected, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-5, atol=1e-5)
    (pulled,) = jax.jit(lambda: use.pull_back({0: x[0], 1: kernel}, [0], [ct[0]]))()
    np.testing.assert_allclose(pulled, expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other backends bring convolutions into any form anywhere")
@pytest.mark.parametrize("layout", [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")])
def test_all_convolutions_of_a_step_are_in_the_form_that_is_fast_in_loops(layout: Any) -> None:
    """Forward and backward, of parameters and of constants, in functions under jit and checkpoints."""
    ones = lambda spec, **sizes: jnp.ones([sizes[axis] for axis in spec])
    kernel = ones(layout[1], H=3, W=3, I=4, O=4)
    convolve = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layout)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        hidden = convolve(x[None], params["first"]) + params["bias"]
        hidden = jax.checkpoint(convolve)(jnp.tanh(hidden), params["second"])
        return jnp.sum(jnp.tanh(jax.jit(convolve)(hidden, kernel)))

    params = {"first": kernel, "second": kernel, "bias": jnp.zeros(())}
    batch = jnp.ones((BATCH, *ones(layout[0], N=1, H=6, W=6, C=4).shape[1:]))
    step = lambda p, b: jaxdp.per_example_grad(loss, method="ghost")(p, b).clipped_sum(lambda sq: 1 / (1 + sq))
    program = jax.jit(step).lower(params, batch).compile().as_text()
    labels = re.findall(r"dim_labels=(\S+?)[,\s]", program)
    assert len(labels) >= 3 + 2  # forward, and backward through what has another convolution below it
    assert set(labels) == {"b01f_01io->b01f"}


@pytest.mark.parametrize("rule", ["gram", "materialize"])
def test_norms_of_half_precision_kernels_are_single_precision(rule: Any) -> None:
    use, (x, ct), each = make_use("strided", jnp.float16, NormChoice(rule))
    # Squares of such cotangents vanish in half precision.
    norms = jax.jit(jax.vmap(lambda x, ct: use.certificate({0: x}, [ct])[0]))(x, ct * jnp.float16(2.0**-12))
    assert norms.dtype == jnp.float32
    small = jax.vmap(lambda g: jnp.sum(jnp.square(g)))(each) * 2.0**-24
    np.testing.assert_allclose(norms, small, rtol=2e-2)


def conv_loss(params: Any, x: jax.Array) -> jax.Array:
    y = x[None]
    for kernel in params:
        y = jnp.tanh(lax.conv_general_dilated(y, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
    return jnp.sum(jnp.square(y))


def shapes(size: int, channels: int) -> tuple[Any, Any]:
    struct = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    return [struct(3, 3, channels, channels)] * 2, struct(8, size, size, channels)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("size", "channels", "rules"),
    [
        # Many positions and a small kernel; few positions and a large one.
        (32, 32, {"fused": "product, once", "ghost": "product, kept", "bookkeeping": "product, kept"}),
        (4, 256, {"fused": "Gram", "ghost": "Gram", "bookkeeping": "Gram"}),
    ],
)
def test_the_cheaper_way_is_chosen_and_explained(size: int, channels: int, rules: dict[Any, str]) -> None:
    params, batch = shapes(size, channels)
    for method, rule in rules.items():
        plan = jaxdp.explain(conv_loss, params, batch, method=method, groups="param" if method == "fused" else "all")
        assert [row.rule for row in plan.rows] == [rule] * 2
    sizes = (1, size * size, 9 * channels, channels)
    seconds = default_machine().seconds
    exact = [costs.convolution_norm(*sizes, NormChoice(rule)) for rule in ("gram", "materialize")]
    assert [how for how, _ in exact] == ["Gram", "product"]
    cheaper = min(exact, key=lambda found: seconds(found[1]))
    assert costs.convolution_norm(*sizes, NormChoice()) == cheaper
    apart = seconds(cheaper[1]) + seconds(costs.convolution_sum_cost(*sizes))
    assert (seconds(costs.convolution_reuse_cost(*sizes)) < apart) == (rules["fused"] == "product, once")
    # What the user asks for goes first.
    asked = jaxdp.explain(conv_loss, params, batch, method="fused", groups="param", rules={"*": "gram"})
    assert {row.rule for row in asked.rows} == {"Gram"}


def largest_array(method: Any, groups: str, size: int, channels: int) -> int:
    """Entries of the largest array in a compiled clipped sum."""
    grad = jaxdp.per_example_grad(conv_loss, method=method)
    step = lambda p, x: grad(p, x).clipped_sum(lambda sq: jnp.minimum(1.0, 1.0 / jnp.sqrt(sq)), groups)
    hlo = jax.jit(step).lower(*shapes(size, channels)).compile().as_text() or ""
    return max(math.prod(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", hlo))


@pytest.mark.parametrize(("method", "groups"), [("fused", "param"), ("ghost", "all")])
def test_no_array_is_as_large_as_the_patches_of_a_batch(
    method: str, groups: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, channels, batch = 16, 8, 8
    patches = batch * size * size * 9 * channels
    monkeypatch.setitem(costs._ALIVE_ELEMENTS, "cpu", patches // batch)
    assert largest_array(method, groups, size, channels) <= patches // 4
    if method == "ghost":
        return
    # Nothing but the bound on what is alive keeps them away.
    monkeypatch.setitem(costs._ALIVE_ELEMENTS, "cpu", patches)
    assert largest_array(method, groups, size, channels) >= patches
