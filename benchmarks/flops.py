"""Floating-point operations of a traced program, with the bodies of loops multiplied by their length.

XLA's own count takes a loop's body once, whatever its length, so it cannot compare scanned models.
"""

import math
from typing import Any, NamedTuple

from jax.extend import core

from jaxdp.per_example.tracing._compat import dead_code_eliminated

_CALLS = {
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "core_closed_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "custom_vmap_call",
    "custom_batching",
}
_CHECKPOINTS = {"checkpoint", "remat", "remat2"}


class Flops(NamedTuple):
    """Operations of the matrix products and convolutions of a program.

    Attributes:
      total: multiplications and additions; a conditional counts as its dearest branch.
      unknown_loops: loops with products whose length is known at run time only.
    """

    total: int
    unknown_loops: int


def count_flops(closed: Any, *, unknown_length: int = 1) -> Flops:
    """Count a closed jaxpr, leaving out what no output needs and what was computed before from the same inputs.

    Args:
      closed: the program.
      unknown_length: how often a loop runs whose length the program does not tell; those inside it run once.
    """
    closed, _ = dead_code_eliminated(closed)
    counter = _Counter(unknown_length)
    total, _ = counter.run(closed.jaxpr, [object() for _ in closed.jaxpr.invars], {})
    return Flops(total, counter.unknown_loops)


class _Counter:
    """Walks a jaxpr with a name for every value, so that repeated equations are seen."""

    def __init__(self, unknown_length: int) -> None:
        self.unknown_length = unknown_length
        self.unknown_loops = 0

    def run(self, jaxpr: Any, names: list[Any], known: dict[Any, list[Any]]) -> tuple[int, list[Any]]:
        env = dict(zip(jaxpr.invars, names, strict=True))
        env.update({v: ("const", id(v)) for v in jaxpr.constvars})

        def read(atom: Any) -> Any:
            if isinstance(atom, core.Literal):
                return ("literal", str(atom.val), str(atom.aval))
            return env[atom]

        total = 0
        for eqn in jaxpr.eqns:
            flops, outs = self.equation(eqn, [read(x) for x in eqn.invars], known)
            total += flops
            env.update(zip(eqn.outvars, outs, strict=True))
        return total, [read(x) for x in jaxpr.outvars]

    def equation(self, eqn: Any, names: list[Any], known: dict[Any, list[Any]]) -> tuple[int, list[Any]]:
        name = eqn.primitive.name
        inner = _jaxprs(eqn.params)
        fresh = [object() for _ in eqn.outvars]
        if name in _CALLS and len(inner) == 1 and len(inner[0].invars) == len(names):
            return self.run(inner[0], names, known)
        if name in _CHECKPOINTS:
            # A barrier keeps XLA from merging what is inside with what was computed before.
            apart = eqn.params["prevent_cse"]
            return self.run(inner[0], [object() for _ in names] if apart else names, {} if apart else known)
        if name == "while":
            self.unknown_loops += any(map(_has_products, inner))
            length, self.unknown_length = self.unknown_length, 1
            once = sum(map(self.apart, inner))
            self.unknown_length = length
            return length * once, fresh
        if name == "cond":
            return max((self.apart(branch) for branch in inner), default=0), fresh
        if name == "scan":
            return eqn.params["length"] * sum(map(self.apart, inner)), fresh
        if name == "pallas_call":
            grid = getattr(eqn.params.get("grid_mapping"), "grid", ())
            return math.prod(n for n in grid if isinstance(n, int)) * sum(map(self.apart, inner)), fresh
        if name not in ("dot_general", "conv_general_dilated") and any(map(_has_products, inner)):
            return sum(map(self.apart, inner)), fresh
        key = (name, str(eqn.params), *names)
        if key in known:
            return 0, known[key]
        known[key] = fresh
        return _arithmetic(eqn), fresh

    def apart(self, jaxpr: Any) -> int:
        """A body by itself: none of its values is shared with the outside."""
        if not jaxpr.constvars:
            # JAX does not look into the bodies of `while` for what nobody needs; XLA does.
            jaxpr = dead_code_eliminated(core.ClosedJaxpr(jaxpr, ()))[0].jaxpr
        return self.run(jaxpr, [object() for _ in jaxpr.invars], {})[0]


def _arithmetic(eqn: Any) -> int:
    """Multiplications and additions of one equation without a body."""
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
    if eqn.primitive.name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(eqn.outvars[0].aval.shape) * (math.prod(kernel) // features)
    return 0


def _jaxprs(params: dict[str, Any]) -> list[Any]:
    """Every open jaxpr among an equation's parameters."""
    values = [v for value in params.values() for v in (value if isinstance(value, tuple | list) else (value,))]
    closed = [getattr(v, "jaxpr", v) for v in values]
    return [v for v in (getattr(v, "jaxpr", v) for v in closed) if isinstance(v, core.Jaxpr)]


def _has_products(jaxpr: Any) -> bool:
    return any(
        eqn.primitive.name in ("dot_general", "conv_general_dilated") or any(map(_has_products, _jaxprs(eqn.params)))
        for eqn in jaxpr.eqns
    )
