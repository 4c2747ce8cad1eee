"""Equations on parameters alone: the weight they give is another weight, no example is involved yet."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdp.numerics._wide import is_complex, is_float, wide
from jaxdp.per_example.tracing._compat import eval_eqn, is_literal
from jaxdp.per_example.tracing._joined import covers_once
from jaxdp.per_example.tracing._public import known, picked_once
from jaxdp.per_example.tracing._values import Plain, Shadow, Value, Weight

# Linear in their first operand and free of arithmetic, so they apply to a float32 shadow as they are.
_LINEAR = frozenset(
    {
        "reshape",
        "transpose",
        "squeeze",
        "expand_dims",
        "slice",
        "rev",
        "broadcast_in_dim",
        "dynamic_slice",
        "split",
        "gather",
        "copy",
    }
)
# None of these is worth differentiating twice.
_NEVER_DERIVED = frozenset({"scan", "while", "cond", "custom_vjp_call", "custom_vjp_call_jaxpr"})
# Their derivatives take the zeros that JAX leaves out; those of others (sparse matrices, solvers) may not.
_TAKES_LEFT_OUT_ZEROS = frozenset(
    {"add", "add_any", "concatenate", "custom_jvp_call", "div", "dot_general", "dynamic_update_slice", "exp", "jit"}
    | {"integer_pow", "log", "log1p", "logistic", "max", "min", "mul", "neg", "pjit", "pow", "reduce_max", "reduce_min"}
    | {"reduce_sum", "rsqrt", "select_n", "sqrt", "square", "sub", "tanh"}
)


def is_derivable(eqn: Any, operands: Sequence[Value]) -> bool:
    """Whether the outputs are again functions of parameters and constants only."""
    if eqn.primitive.name in _NEVER_DERIVED or not any(isinstance(x, Weight) for x in operands):
        return False
    if eqn.primitive.name == "gather" and picked_once(eqn, operands) is None:
        # It may repeat rows, and knows how to add them up.
        return False
    return all(isinstance(x, Weight) or x.fixed for x in operands)


def derive(eqn: Any, operands: Sequence[Value], in_branch: bool = False) -> list[Value]:
    """Evaluate an equation on parameters and constants, and carry the shadows along.

    `in_branch` says that an example's value decides whether this is run at all.
    """
    weights = [x for x in operands if isinstance(x, Weight)]
    values = [x.value for x in operands]
    outs = eval_eqn(eqn, values)
    if eqn.primitive.name == "stop_gradient":
        return [Plain(out, fixed=True, active=False) for out in outs]
    leaves = sorted({leaf for w in weights for leaf in w.shadows})
    shadows: list[dict[int, Shadow]] = [{} for _ in outs]
    _check_bases(eqn, weights, outs)
    for leaf in leaves:
        mine = [w.shadows[leaf] for w in weights if leaf in w.shadows]
        totals = _push(eqn, operands, [_tangent(x, leaf, "total") for x in operands], outs, in_branch)
        has_own = any(shadow.whole is not None for shadow in mine)
        wholes = _push(eqn, operands, [_tangent(x, leaf, "whole") for x in operands], outs) if has_own else None
        for i, total in enumerate(totals):
            if total is not None:
                shadows[i][leaf] = mine[0]._replace(total=total, whole=None if wholes is None else wholes[i])
    first = weights[0]
    join = eqn.primitive.name == "concatenate"
    covers = covers_once(operands) if join else len(weights) == 1 and first.isometric and _keeps_norm(eqn)
    parts, side = (tuple(operands), eqn.params["dimension"]) if join and not covers else _moved_parts(eqn, first)
    public = all(isinstance(x, Weight) or known(x) is not None for x in operands[1:])

    def view(i: int, value: Array, shadows: dict[int, Shadow]) -> Weight:
        region, aligned, spans = (_whole(first), False, None) if join else _region(eqn, operands, i)
        return Weight(
            value=value,
            shadows=shadows,
            isometric=covers,
            region=region,
            aligned=aligned,
            axes=_axes(eqn, first) if len(weights) == 1 else None,
            leaf_shape=first.leaf_shape,
            stack=first.stack,
            # Another operand may be a loop's counter.
            steady=all(w.steady for w in weights) and public,
            cuts=first.cuts if all(w.cuts == first.cuts for w in weights) else (),
            spans=spans,
            parts=parts,
            side=int(side),
        )

    return [
        view(i, out, shadow) if shadow else Plain(out, fixed=True, active=False)
        for i, (out, shadow) in enumerate(zip(outs, shadows, strict=True))
    ]


def _check_bases(eqn: Any, weights: Sequence[Weight], outs: Sequence[Any]) -> None:
    """A gradient in a subspace follows a weight only through what keeps its axes."""
    based = any(shadow.basis is not None for w in weights for shadow in w.shadows.values())
    mixed = len(weights) > 1 or _axes(eqn, weights[0]) is None
    if based and mixed and any(map(is_float, outs)):
        raise ValueError(
            f"a parameter that is projected goes through {eqn.primitive.name!r} before it is used, which mixes its "
            "axes: leave it out of the subspace."
        )


def _tangent(entry: Value, leaf: int, kind: str) -> Any:
    """The shadow of `leaf` along one operand, or None where the operand does not depend on it."""
    if isinstance(entry, Weight) and leaf in entry.shadows:
        return getattr(entry.shadows[leaf], kind)
    return None


def _push(
    eqn: Any, operands: Sequence[Value], tangents: Sequence[Any], outs: Sequence[Any], in_branch: bool = False
) -> list[Any]:
    """Push float32 tangents through the equation; None for outputs without a gradient."""
    if not any(map(is_float, outs)):
        return [None] * len(outs)
    if eqn.primitive.name == "convert_element_type":
        return [_of_kind(tangents[0], outs[0])]
    if eqn.primitive.name in _LINEAR and tangents[0] is not None:
        return eval_eqn(eqn, [tangents[0], *[x.value for x in operands[1:]]])
    active = [i for i, t in enumerate(tangents) if t is not None]
    floats = [i for i, out in enumerate(outs) if is_float(out)]

    def push(dots: list[Array], values: list[Any]) -> list[Array]:
        def apply(*xs: Any) -> list[Any]:
            full = list(values)
            for i, x in zip(active, xs, strict=True):
                full[i] = x
            outs = eval_eqn(eqn, full)
            return [outs[i] for i in floats]

        narrow = [dot.astype(values[i].dtype) for i, dot in zip(active, dots, strict=True)]
        pushed = jax.jvp(apply, [values[i] for i in active], narrow)[1]
        if eqn.primitive.name not in _TAKES_LEFT_OUT_ZEROS:
            pushed = [_with_zeros(dot) for dot in pushed]
        return [wide(dot) for dot in pushed]

    pushed = (_zero_from_zero(push) if in_branch else push)([tangents[i] for i in active], [x.value for x in operands])
    found = iter(pushed)
    return [next(found) if is_float(out) else None for out in outs]


def _zero_from_zero(push: Callable[[list[Array], list[Any]], list[Array]]) -> Callable:
    """`push(tangents, values)`, whose cotangents are zero where it is given nothing else, whatever the derivative is.

    A branch that no example takes has a gradient of zero, although a derivative inside may be infinite.
    """
    guarded = jax.custom_vjp(push)

    def backward(saved: tuple[list[Array], list[Any]], cts: list[Array]) -> tuple[list[Array], None]:
        dots, values = saved
        (found,) = jax.vjp(lambda dots: push(dots, values), dots)[1](cts)
        anything = functools.reduce(jnp.logical_or, [jnp.any(ct != 0) for ct in cts])
        return [jnp.where(anything, x, jnp.zeros_like(x)) for x in found], None

    guarded.defvjp(lambda dots, values: (push(dots, values), (dots, values)), backward)
    return guarded


def _of_kind(tangent: Array, out: Any) -> Array:
    """A tangent through a conversion: in its own precision, of the real part or of both as the output has them."""
    if is_complex(tangent) == is_complex(out):
        return tangent
    return jax.lax.complex(tangent, jnp.zeros_like(tangent)) if is_complex(out) else tangent.real


@jax.custom_vjp
def _with_zeros(x: Array) -> Array:
    """`x`, whose cotangent is an array also where nothing depends on it."""
    return x


_with_zeros.defvjp(lambda x: (x, None), lambda _, ct: (ct,))


def _keeps_norm(eqn: Any) -> bool:
    """Whether the transpose of this view preserves norms: it moves or drops entries, and repeats none."""
    name = eqn.primitive.name
    if name == "broadcast_in_dim":
        return eqn.outvars[0].aval.size == eqn.invars[0].aval.size
    if name == "convert_element_type":
        return _is_conversion_of_precision(eqn)
    return name in _LINEAR


def _is_conversion_of_precision(eqn: Any) -> bool:
    """Whether a conversion keeps numbers what they are: the other parts of complex ones come or go with the kind."""
    before, after = eqn.invars[0].aval, eqn.outvars[0].aval
    return is_float(after) and is_complex(before) == is_complex(after)


def _moved_parts(eqn: Any, weight: Weight) -> tuple[tuple[Value, ...] | None, int]:
    """What lies side by side in a view, and along which axis, where the view only moves or converts axes."""
    name = eqn.primitive.name
    if weight.parts is None or name not in ("transpose", "convert_element_type", "copy"):
        return None, 0
    moved = [
        derive(eqn, [x])[0] if isinstance(x, Weight) else dataclasses.replace(x, value=eval_eqn(eqn, [x.value])[0])
        for x in weight.parts
    ]
    return tuple(moved), eqn.params["permutation"].index(weight.side) if name == "transpose" else weight.side


def _whole(weight: Weight) -> tuple[tuple[int, int], ...]:
    return tuple((0, n) for n in weight.leaf_shape[len(weight.stack) :])


def _region(
    eqn: Any, operands: Sequence[Value], number: int
) -> tuple[tuple[tuple[int, int], ...], bool, tuple[int, ...] | None]:
    """The part of the leaf that a view of the first operand shows, whether its axes are the leaf's, and its spans."""
    name, weight = eqn.primitive.name, operands[0]
    if not isinstance(weight, Weight):
        return next(x for x in operands if isinstance(x, Weight)).region, False, None
    spans = tuple(range(len(weight.region))) if weight.aligned else weight.spans
    if spans is None:
        return weight.region, False, None
    region = list(weight.region)

    def within(cuts: Sequence[tuple[int, int] | None]) -> tuple[tuple[int, int], ...]:
        for axis, cut in zip(spans, cuts, strict=True):
            lo = region[axis][0]
            region[axis] = region[axis] if cut is None else (lo + cut[0], lo + cut[1])
        return tuple(region)

    shape: tuple[int, ...] = eqn.invars[0].aval.shape
    if name == "slice":
        strides = eqn.params["strides"]
        exact = strides is None or set(strides) <= {1}
        found = within(list(zip(eqn.params["start_indices"], eqn.params["limit_indices"], strict=True)))
        return found, weight.aligned and exact, spans if exact else None
    if name == "split":
        axis, sizes = int(eqn.params["axis"]), [int(n) for n in eqn.params["sizes"]]
        start = sum(sizes[:number])
        cuts = [(start, start + sizes[number]) if i == axis else None for i in range(len(shape))]
        return within(cuts), weight.aligned, spans
    if name == "dynamic_slice":
        starts = [known(x) for x in operands[1:]]
        if any(start is None for start in starts):
            return weight.region, False, None
        sizes = eqn.params["slice_sizes"]
        clamped = [min(max(int(s), 0), n - size) for s, size, n in zip(starts, sizes, shape, strict=True)]  # pyright: ignore[reportArgumentType]
        return within([(s, s + size) for s, size in zip(clamped, sizes, strict=True)]), weight.aligned, spans
    if name == "gather":
        picked = picked_once(eqn, operands)
        assert picked is not None
        hull = (int(picked[1].min()), int(picked[1].max()) + 1)
        return within([hull if i == picked[0] else None for i in range(len(shape))]), False, None
    if name == "transpose":
        return weight.region, False, tuple(spans[i] for i in eqn.params["permutation"])
    if name == "squeeze":
        gone = {d % len(shape) for d in eqn.params["dimensions"]}
        return weight.region, False, tuple(a for i, a in enumerate(spans) if i not in gone)
    same = name in ("convert_element_type", "copy")
    return weight.region, weight.aligned and same, spans if same else None


def _axes(eqn: Any, weight: Weight) -> tuple[int, ...] | None:
    """Which axes of the leaf a view of `weight` shows, where it only moves or converts them."""
    if weight.axes is None:
        return None
    if eqn.primitive.name == "transpose":
        return tuple(weight.axes[i] for i in eqn.params["permutation"])
    return weight.axes if eqn.primitive.name in ("convert_element_type", "copy") else None


def fixed_outputs(jaxpr: Any, fixed_inputs: Sequence[bool]) -> list[bool]:
    """Which outputs of a jaxpr depend on fixed inputs and constants only."""
    fixed = {v for v, f in zip(jaxpr.invars, fixed_inputs, strict=True) if f} | set(jaxpr.constvars)

    def is_fixed(atom: Any) -> bool:
        return is_literal(atom) or atom in fixed

    for eqn in jaxpr.eqns:
        if all(map(is_fixed, eqn.invars)):
            fixed.update(eqn.outvars)
    return [is_fixed(v) for v in jaxpr.outvars]
