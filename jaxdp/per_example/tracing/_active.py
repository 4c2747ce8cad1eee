"""Which values depend on a parameter: only by these does JAX differentiate, and only by these may a tap.

A model may rely on it: functions with a derivative of their own can ask which arguments are differentiated by, and
refuse some. In doubt a value counts as dependent, which costs work and no exactness.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxdp.per_example.tracing import _compat


def active_outputs(eqn: Any, active: Sequence[bool]) -> list[bool]:
    """Which outputs of an equation depend on the active ones of its operands."""
    name = eqn.primitive.name
    if name == "stop_gradient" or not any(active):
        return [False] * len(eqn.outvars)
    if name in _compat.INLINE_PRIMITIVES or name in _compat.CHECKPOINT_PRIMITIVES:
        found = _of_jaxpr(_compat.sub_jaxpr(eqn)[0], active)
    elif name == "scan":
        found = _of_scan(eqn, active)
    elif name == "cond" and not active[0]:
        branches = [_of_jaxpr(closed.jaxpr, active[1:]) for closed in eqn.params["branches"]]
        found = [any(outs) for outs in zip(*branches, strict=True)]
    else:
        found = [True] * len(eqn.outvars)
    return [flag and _moves(v) for flag, v in zip(found, eqn.outvars, strict=True)]


def active_carry(eqn: Any, active: Sequence[bool]) -> list[bool]:
    """Which values that a scan carries depend on the active ones of its operands, in some step."""
    jaxpr, _ = _compat.sub_jaxpr(eqn)
    num_consts, num_carry = _compat.scan_counts(eqn)
    consts, now, xs = active[:num_consts], list(active[num_consts:][:num_carry]), active[num_consts + num_carry :]
    while True:
        after = _of_jaxpr(jaxpr, [*consts, *now, *xs])[:num_carry]
        more = [a or b for a, b in zip(now, after, strict=True)]
        if more == now:
            return now
        now = more


def _of_scan(eqn: Any, active: Sequence[bool]) -> list[bool]:
    num_consts, num_carry = _compat.scan_counts(eqn)
    carry = active_carry(eqn, active)
    every = [*active[:num_consts], *carry, *active[num_consts + num_carry :]]
    return [*carry, *_of_jaxpr(_compat.sub_jaxpr(eqn)[0], every)[num_carry:]]


def _of_jaxpr(jaxpr: Any, active: Sequence[bool]) -> list[bool]:
    known = {v: flag for v, flag in zip(jaxpr.invars, active, strict=True) if flag}
    is_active = lambda atom: not _compat.is_literal(atom) and known.get(atom, False)
    for eqn in jaxpr.eqns:
        outs = active_outputs(eqn, [is_active(v) for v in eqn.invars])
        known.update((v, True) for v, flag in zip(eqn.outvars, outs, strict=True) if flag)
    return [is_active(v) for v in jaxpr.outvars]


def _moves(v: Any) -> bool:
    dtype = getattr(v.aval, "dtype", None)
    return dtype is not None and bool(jnp.issubdtype(dtype, jnp.inexact))
