"""The tap: an equation that consumes a parameter, with a backward pass that reports what the gradient looks like."""

import enum
from collections.abc import Callable, Container, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxdp._shown import of_shapes
from jaxdp.norms import TERMS
from jaxdp.numerics._wide import as_like, is_float
from jaxdp.per_example.tracing._values import Path, Plain, Shadow, Value, Weight
from jaxdp.per_example.uses._batching import force_batched, on_its_device
from jaxdp.per_example.uses._clipping import clipped, contracted
from jaxdp.per_example.uses._clipping_weights import ClippingWeights
from jaxdp.per_example.uses._use import TAKEN, Use


class LeafOperand(NamedTuple):
    """One leaf's dependence on one weight operand of a tap."""

    operand: int
    leaf: int


UseKey = tuple[Path, LeafOperand]


class Mode(enum.Enum):
    """What the backward pass does at the uses of one leaf."""

    SUM = "sum"  # the weighted sum, for weights known beforehand
    GHOST = "ghost"  # the squared norm, or the weighted sum, whichever the pull asks for
    WHOLE = "whole"  # the leaf's gradient itself, as a cotangent of `Shadow.whole`
    CLIP = "clip"  # the norm, the weight and the weighted sum at once
    FACTORS = "factors"  # the factors, for whoever finds the weight later
    GRADIENT = "gradient"  # likewise, but the gradient that they make: where that is smaller, it is made once for both


class Report(NamedTuple):
    """Zeros whose cotangents are a use's factors (or, for a use without factors, the gradient)."""

    __repr__ = of_shapes

    kept: dict[int, Array]
    cts: list[Array]


class TapOutputs(NamedTuple):
    """What a tap adds to the forward pass's outputs."""

    __repr__ = of_shapes

    clip_weight: Array  # a zero whose cotangent, chosen by whoever pulls back, is this example's weight
    kept: dict[int, Array]  # integer factors of a use that reports: they have no cotangents


def tap(
    run: Callable[[Sequence[Any]], list[Array]],
    uses: dict[int, Use],
    operands: Sequence[Value],
    modes: dict[int, Mode],
    weigh: ClippingWeights,
    reports: dict[LeafOperand, Report],
    taken: Bool[Array, ""] | None = None,
) -> tuple[list[Plain], dict[LeafOperand, TapOutputs]]:
    r"""Run an equation so that its backward pass reports on its weights as their leaves' `modes` say.

    Cotangents add up by themselves over taps and loop steps, so that of a certificate which several taps share is the
    sum of theirs. `taken` says whether this example takes the branch that the equation stands in; where it
    does not, the gradient is zero, whatever there is in the values that came of it.
    """
    weights = {i: x for i, x in enumerate(operands) if isinstance(x, Weight)}
    others = {i: x.value for i, x in enumerate(operands) if isinstance(x, Plain)}
    places = [LeafOperand(i, leaf) for i, w in weights.items() for leaf in sorted(w.shadows)]
    saved = {i for use in uses.values() for i in (range(len(operands)) if use.saved is None else use.saved)}
    movable = [i for i, x in enumerate(operands) if isinstance(x, Plain) and x.active and is_float(x.value)]
    reports = {place: report for place, report in reports.items() if place in places}

    def forward(values: dict[int, Array], others: dict[int, Any], zero: Array) -> tuple[list[Array], list[Array]]:
        every = {**values, **others}
        outs = [force_batched(out, zero) for out in run([every[i] for i in range(len(operands))])]
        return outs, [zero] * len(places)

    @jax.custom_vjp
    def tapped(values: Any, shadows: list[Shadow], reports: Any, others: Any, consts: Any, taken: Any) -> Any:
        del consts, taken
        return forward(values, others, _batched_zero(shadows))

    def fwd(values: Any, shadows: list[Shadow], reports: Any, others: Any, consts: Any, taken: Any) -> tuple[Any, Any]:
        every = {**values, **others}
        shared_entries = [shadow.total.reshape(-1)[:1] for shadow in shadows]
        limits = [(shadow.threshold, shadow.key, shadow.basis) for shadow in shadows]
        residuals = ({i: every[i] for i in saved}, shared_entries, limits, consts, taken)
        return forward(values, others, _batched_zero(shadows)), residuals

    def bwd(residuals: tuple[Any, ...], cotangents: tuple[list[Array], list[Array]]) -> tuple[Any, ...]:
        (stored, shared_entries, limits, consts, taken), (out_cts, weight_cts) = residuals, cotangents
        floats = [on_its_device(ct) for ct in out_cts if is_float(ct)]
        report_cts: dict[LeafOperand, Report] = {}
        shadow_cts = []
        each = zip(places, weight_cts, shared_entries, limits, strict=True)
        for place, weight_ct, shared_entry, (threshold, key, basis) in each:
            use, mode = uses[place.operand], modes[place.leaf]
            shadow = weights[place.operand].shadows[place.leaf]
            total = own = norm = None
            kept, cts = use.projected(*_chosen(use, taken, stored, floats, others), basis)
            if mode in (Mode.FACTORS, Mode.GRADIENT):
                report_cts[place] = _report(use, mode, kept, cts, reports[place])
            elif mode is Mode.CLIP:
                alone = jnp.zeros(TERMS, jnp.float32)
                norm, total = clipped(use, weigh.with_consts(consts), alone, threshold, shared_entry, kept, cts, key)
            elif mode is Mode.WHOLE:
                own = as_like(use.gradient(kept, cts), shadow.total if shadow.whole is None else shadow.whole)
            else:
                total = contracted(use, weight_ct, shared_entry, kept, cts)
                norm = use.certificate(kept, cts, key) if mode is Mode.GHOST else None
            total = None if total is None else as_like(total, shadow.total)
            shadow_cts.append(Shadow(total, own, norm))  # pyright: ignore[reportArgumentType]
        other_cts: dict[int, Any] = dict.fromkeys(others)
        if movable:
            use = next(iter(uses.values()))
            other_cts.update(zip(movable, use.pull_back(stored, movable, floats), strict=True))
        return None, shadow_cts, report_cts, other_cts, None, None

    tapped.defvjp(fwd, bwd)
    values = {i: w.value for i, w in weights.items()}
    shadows = [weights[p.operand].shadows[p.leaf] for p in places]
    outs, clip_weights = tapped(values, shadows, reports, others, list(weigh.consts), taken)
    reporting = [place for place in reports if modes[place.leaf] is Mode.FACTORS]
    integers = {place: uses[place.operand].factor_operands for place in reporting}
    emitted = {
        place: TapOutputs(clip_weight, {i: others[i] for i in integers.get(place, ()) if not is_float(others[i])})
        for place, clip_weight in zip(places, clip_weights, strict=True)
    }
    return [Plain(out, fixed=False) for out in outs], emitted


def _batched_zero(shadows: Sequence[Shadow]) -> Array:
    """A value with a batch axis, whatever the tap's operands have."""
    return shadows[0].certificate.reshape(-1)[0]


def _chosen(
    use: Use, taken: Bool[Array, ""] | None, stored: dict[int, Any], cts: list[Array], others: Container[int]
) -> tuple[dict[int, Any], list[Array]]:
    """What the gradient is made of, such that it is zero if the branch is not taken: 0 * inf is NaN."""
    if taken is None:
        return stored, cts
    if not use.bilinear:
        return stored | {TAKEN: taken}, cts
    select = lambda x: jnp.where(taken, x, jnp.zeros_like(x))
    return {i: select(x) if i in others and is_float(x) else x for i, x in stored.items()}, [select(ct) for ct in cts]


def _report(use: Use, mode: Mode, kept: dict[int, Array], cts: list[Array], zeros: Report) -> Report:
    if use.factor_operands and mode is Mode.FACTORS:
        return Report({i: kept[i] for i in zeros.kept}, cts)
    return Report({}, [use.gradient(kept, cts)])
