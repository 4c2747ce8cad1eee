"""The tap: an equation that consumes a parameter, with a backward pass that reports what the gradient looks like."""

import enum
from collections.abc import Callable, Container, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxdp._shown import of_shapes
from jaxdp._wide import as_like
from jaxdp.norms import TERMS
from jaxdp.per_example._batching import force_batched, on_its_device
from jaxdp.per_example._use import TAKEN, Use, is_float
from jaxdp.per_example._use_clipping import clipped, contracted
from jaxdp.per_example._values import Entry, Path, Plain, Shadow, Weight
from jaxdp.per_example._weighing import Weighing


class Port(NamedTuple):
    """One leaf's dependence on one weight operand of a tap."""

    operand: int
    leaf: int


Key = tuple[Path, Port]


class Mode(enum.Enum):
    """What the backward pass does at the uses of one leaf."""

    SUM = "sum"  # the weighted sum, for weights known beforehand
    GHOST = "ghost"  # the squared norm, or the weighted sum, whichever the pull asks for
    OWN = "own"  # the gradient itself, as a cotangent of `Shadow.own`
    CLIP = "clip"  # the norm, the weight and the weighted sum at once
    REPORT = "report"  # the factors, for whoever finds the weight later
    PRODUCT = "product"  # likewise, but the gradient that they make: where that is smaller, it is made once for both


class Report(NamedTuple):
    """Zeros whose cotangents are a use's factors (or, for a use without factors, the gradient)."""

    __repr__ = of_shapes

    kept: dict[int, Array]
    cts: list[Array]


class Emitted(NamedTuple):
    """What a tap adds to the forward pass's outputs."""

    __repr__ = of_shapes

    gate: Array  # a zero whose cotangent, chosen by whoever pulls back, is this example's weight
    kept: dict[int, Array]  # integer factors of a use that reports: they have no cotangents


def tap(
    run: Callable[[Sequence[Any]], list[Array]],
    uses: dict[int, Use],
    operands: Sequence[Entry],
    modes: dict[int, Mode],
    weigh: Weighing,
    reports: dict[Port, Report],
    taken: Bool[Array, ""] | None = None,
) -> tuple[list[Plain], dict[Port, Emitted]]:
    r"""Run an equation so that its backward pass reports on its weights as their leaves' `modes` say.

    Cotangents add up by themselves over taps and loop steps, so the cotangent of a slot shared by several taps is the
    sum of their certificates. `taken` says whether this example takes the branch that the equation stands in; where it
    does not, the gradient is zero, whatever there is in the values that came of it.
    """
    weights = {i: x for i, x in enumerate(operands) if isinstance(x, Weight)}
    others = {i: x.value for i, x in enumerate(operands) if isinstance(x, Plain)}
    ports = [Port(i, leaf) for i, w in weights.items() for leaf in sorted(w.shadows)]
    saved = {i for use in uses.values() for i in (range(len(operands)) if use.saved is None else use.saved)}
    movable = [i for i, x in enumerate(operands) if isinstance(x, Plain) and x.active and is_float(x.value)]
    reports = {port: report for port, report in reports.items() if port in ports}

    def forward(values: dict[int, Array], others: dict[int, Any], anchor: Array) -> tuple[list[Array], list[Array]]:
        every = {**values, **others}
        outs = [force_batched(out, anchor) for out in run([every[i] for i in range(len(operands))])]
        return outs, [anchor] * len(ports)

    @jax.custom_vjp
    def tapped(values: Any, shadows: list[Shadow], reports: Any, others: Any, consts: Any, taken: Any) -> Any:
        del consts, taken
        return forward(values, others, _anchor(shadows))

    def fwd(values: Any, shadows: list[Shadow], reports: Any, others: Any, consts: Any, taken: Any) -> tuple[Any, Any]:
        every = {**values, **others}
        unbatched = [shadow.total.reshape(-1)[:1] for shadow in shadows]
        limits = [(shadow.threshold, shadow.key, shadow.basis) for shadow in shadows]
        residuals = ({i: every[i] for i in saved}, unbatched, limits, consts, taken)
        return forward(values, others, _anchor(shadows)), residuals

    def bwd(residuals: tuple[Any, ...], cotangents: tuple[list[Array], list[Array]]) -> tuple[Any, ...]:
        (stored, unbatched, limits, consts, taken), (out_cts, gate_cts) = residuals, cotangents
        floats = [on_its_device(ct) for ct in out_cts if is_float(ct)]
        report_cts: dict[Port, Report] = {}
        shadow_cts = []
        for port, gate_ct, one, (threshold, key, basis) in zip(ports, gate_cts, unbatched, limits, strict=True):
            use, mode = uses[port.operand], modes[port.leaf]
            shadow = weights[port.operand].shadows[port.leaf]
            total = own = norm = None
            kept, cts = use.projected(*_chosen(use, taken, stored, floats, others), basis)
            if mode in (Mode.REPORT, Mode.PRODUCT):
                report_cts[port] = _report(use, mode, kept, cts, reports[port])
            elif mode is Mode.CLIP:
                alone = jnp.zeros(TERMS, jnp.float32)
                norm, total = clipped(use, weigh.with_consts(consts), alone, threshold, one, kept, cts, key)
            elif mode is Mode.OWN:
                own = as_like(use.gradient(kept, cts), shadow.total if shadow.own is None else shadow.own)
            else:
                total = contracted(use, gate_ct, one, kept, cts)
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
    shadows = [weights[p.operand].shadows[p.leaf] for p in ports]
    outs, gates = tapped(values, shadows, reports, others, list(weigh.consts), taken)
    reporting = [port for port in reports if modes[port.leaf] is Mode.REPORT]
    integers = {port: uses[port.operand].factor_operands for port in reporting}
    emitted = {
        port: Emitted(gate, {i: others[i] for i in integers.get(port, ()) if not is_float(others[i])})
        for port, gate in zip(ports, gates, strict=True)
    }
    return [Plain(out, fixed=False) for out in outs], emitted


def _anchor(shadows: Sequence[Shadow]) -> Array:
    """A value with a batch axis, whatever the tap's operands have."""
    return shadows[0].slot.reshape(-1)[0]


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


def _report(use: Use, mode: Mode, kept: dict[int, Array], cts: list[Array], slots: Report) -> Report:
    if use.factor_operands and mode is Mode.REPORT:
        return Report({i: kept[i] for i in slots.kept}, cts)
    return Report({}, [use.gradient(kept, cts)])
