"""The parts of JAX's internals that differ between releases: nothing else in jaxdp touches them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.api_util import debug_info
from jax.extend import core
from jax.interpreters import batching, partial_eval

# The names of one primitive across releases.
INLINE_PRIMITIVES = frozenset({"jit", "pjit", "closed_call", "core_call", "core_closed_call"})
CHECKPOINT_PRIMITIVES = frozenset({"checkpoint", "remat", "remat2"})


def is_literal(atom: Any) -> bool:
    """Whether an operand of an equation is a constant written into the jaxpr."""
    return isinstance(atom, core.Literal)


def eval_eqn(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """Run one equation on other values, whatever higher-order functions its parameters hold."""
    env = {v: x for v, x in zip(eqn.invars, operands, strict=True) if not is_literal(v)}
    names = tuple(f"out{i}" for i in range(len(eqn.outvars)))
    info = debug_info("jaxdp", lambda *xs: xs, tuple(env.values()), {}, result_paths_thunk=lambda: names)
    jaxpr = core.Jaxpr((), list(env), list(eqn.outvars), [eqn], eqn.effects, info)
    return core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, ()))(*env.values())


def eval_jaxpr(closed: Any, consts: Sequence[Any], *args: Any) -> list[Any]:
    """Run a jaxpr with other constants."""
    return core.jaxpr_as_fun(core.ClosedJaxpr(closed.jaxpr, list(consts)))(*args)


def dead_code_eliminated(closed: Any) -> tuple[Any, list[bool]]:
    """The jaxpr without equations that no output needs, and which inputs it still uses."""
    jaxpr, used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)
    return core.ClosedJaxpr(jaxpr, closed.consts), used


def used_inputs(closed: Any) -> list[bool]:
    """Which inputs some output needs."""
    return list(partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))[1])


def sub_jaxpr(eqn: Any) -> tuple[Any, Sequence[Any]]:
    """The open jaxpr and constants inside a call-like equation."""
    inner = eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]
    if isinstance(inner, core.ClosedJaxpr):
        return inner.jaxpr, inner.consts
    return inner, ()


def has_equation(jaxpr: Any, test: Callable[[Any], bool]) -> bool:
    """Whether an equation of an open jaxpr, or of one inside it, is such a one."""
    values = lambda eqn: (v for p in eqn.params.values() for v in (p if isinstance(p, tuple | list) else (p,)))
    opened = lambda eqn: (v.jaxpr if isinstance(v, core.ClosedJaxpr) else v for v in values(eqn))
    return any(
        test(eqn) or any(has_equation(v, test) for v in opened(eqn) if isinstance(v, core.Jaxpr)) for eqn in jaxpr.eqns
    )


def checkpoint_like(eqn: Any, fn: Any) -> Any:
    """`jax.checkpoint` with the options of an existing checkpoint equation."""
    return jax.checkpoint(fn, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])


def scan_like(eqn: Any, body: Any, init: Any, xs: Any) -> Any:
    """`jax.lax.scan` with the options of an existing scan equation."""
    p = eqn.params
    options = {"_split_transpose": True} if p.get("_split_transpose") else {}
    return jax.lax.scan(body, init, xs, length=p["length"], reverse=p["reverse"], unroll=p["unroll"], **options)


def scan_counts(eqn: Any) -> tuple[int, int]:
    """Numbers of constants and of carried values of a scan equation."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].update(list(range(len(eqn.invars)))).unpack()
    return len(list(consts)), len(list(carry))


def set_batching_rule(primitive: Any, rule: Callable) -> None:
    """Batch a primitive by `rule(size, operands, axes, **params) -> (output, axis)`, instead of by JAX's own rule."""

    def fancy(axis_data: Any, args: Sequence[Any], dims: Sequence[Any], **params: Any) -> Any:
        return rule(axis_data.size, args, dims, **params)

    batching.fancy_primitive_batchers[primitive] = fancy
