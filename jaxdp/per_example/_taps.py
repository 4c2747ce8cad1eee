"""The tap: an equation that consumes a parameter, with a backward pass that reports what the gradient looks like."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdp.per_example._batching import contracted_over_batch, force_batched
from jaxdp.per_example._uses import Use, is_float
from jaxdp.per_example._values import Entry, Plain, Shadow, Weight


class Port(NamedTuple):
    """One leaf's dependence on one weight operand of a tap."""

    operand: int
    leaf: int


def tap(
    run: Callable[[Sequence[Any]], list[Array]],
    uses: dict[int, Use],
    operands: Sequence[Entry],
    slot_of: Callable[[int], Array],
) -> tuple[list[Plain], dict[Port, Array]]:
    r"""Run an equation so that its backward pass serves the three reports.

    * The cotangent of a leaf's *slot* (a zero scalar the forward pass ignores) is the squared norm of this example's
      gradient. Cotangents add up by themselves over taps and loop steps.
    * Each port has a *gate* among the outputs: a zero whose cotangent, chosen by whoever pulls back, is this
      example's weight. The cotangent of `Shadow.total` is the weighted sum over the batch.
    * The cotangent of `Shadow.own`, where there is one, is the gradient itself.
    """
    weights = {i: x for i, x in enumerate(operands) if isinstance(x, Weight)}
    others = {i: x.value for i, x in enumerate(operands) if isinstance(x, Plain)}
    ports = [Port(i, leaf) for i, w in weights.items() for leaf in sorted(w.shadows)]
    saved = {i for use in uses.values() for i in (range(len(operands)) if use.saved is None else use.saved)}
    movable = [i for i, x in others.items() if is_float(x)]

    def forward(values: dict[int, Array], others: dict[int, Array], slots: list[Array]) -> tuple[Any, Any]:
        every = {**values, **others}
        outs = [force_batched(out, slots[0]) for out in run([every[i] for i in range(len(operands))])]
        return outs, slots

    @jax.custom_vjp
    def tapped(values: Any, shadows: Any, slots: Any, others: Any) -> tuple[Any, Any]:
        del shadows
        return forward(values, others, slots)

    def fwd(values: Any, shadows: Any, slots: Any, others: Any) -> tuple[Any, Any]:
        every = {**values, **others}
        probes = [shadow.total.reshape(-1)[:1] for shadow in shadows]
        return forward(values, others, slots), ({i: every[i] for i in saved}, probes)

    def bwd(
        residuals: tuple[dict[int, Array], list[Array]], cotangents: tuple[list[Array], list[Array]]
    ) -> tuple[Any, ...]:
        (kept, probes), (out_cts, gate_cts) = residuals, cotangents
        cts = [ct for ct in out_cts if is_float(ct)]
        shadow_cts, slot_cts = [], []
        for port, gate_ct, probe in zip(ports, gate_cts, probes, strict=True):
            use, shadow = uses[port.operand], weights[port.operand].shadows[port.leaf]
            total = contracted_over_batch(use.weighted_sum, gate_ct, probe, kept, cts)
            own = None if shadow.own is None else use.gradient(kept, cts)
            norm = use.squared_norm(kept, cts) if own is None else jnp.zeros(())
            shadow_cts.append(Shadow(total.astype(shadow.total.dtype), own))
            slot_cts.append(norm.astype(jnp.float32))
        other_cts: dict[int, Any] = dict.fromkeys(others)
        if movable:
            use = next(iter(uses.values()))
            other_cts.update(zip(movable, use.pull_back(kept, movable, cts), strict=True))
        return None, shadow_cts, slot_cts, other_cts

    tapped.defvjp(fwd, bwd)
    values = {i: w.value for i, w in weights.items()}
    shadows = [weights[p.operand].shadows[p.leaf] for p in ports]
    slots = [slot_of(p.leaf) for p in ports]
    outs, gates = tapped(values, shadows, slots, others)
    return [Plain(out, fixed=False) for out in outs], dict(zip(ports, gates, strict=True))
