"""Evaluate the jaxpr of one example's loss with every use of a parameter replaced by a tap."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdp.per_example import _compat
from jaxdp.per_example._compat import eval_eqn, is_literal, sub_jaxpr
from jaxdp.per_example._taps import Port, tap
from jaxdp.per_example._uses import Escaped, use_of
from jaxdp.per_example._values import Entry, Plain, Shadow, Weight
from jaxdp.per_example._views import derive, fixed_outputs, is_derivable

Path = tuple[int, ...]
Gates = dict[tuple[Path, Port], Array]


@dataclasses.dataclass(frozen=True)
class Site:
    """A tap seen while tracing: enough to decide how its leaf is reported."""

    leaf: int
    primitive: str
    isometric: bool  # and consumed once: the squared norm found here is that of the leaf's gradient from here
    box: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Rewriter:
    """One evaluation: where each leaf's slot is, and the sites seen so far (by position, as loops retrace)."""

    slot_of: Callable[[int], Array]
    sites: dict[tuple[Path, Port], Site]

    def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Entry], path: Path) -> tuple[list[Entry], Gates]:
        """Evaluate a jaxpr; returns its outputs and the gates of all taps inside."""
        env: dict[Any, Entry] = {}
        env.update(zip(jaxpr.constvars, (Plain(c, fixed=True) for c in consts), strict=True))
        env.update(zip(jaxpr.invars, inputs, strict=True))
        gates: Gates = {}

        def read(atom: Any) -> Entry:
            return Plain(atom.val, fixed=True) if is_literal(atom) else env[atom]

        for number, eqn in enumerate(jaxpr.eqns):
            outs, new_gates = self._equation(eqn, [read(v) for v in eqn.invars], (*path, number))
            env.update(zip(eqn.outvars, outs, strict=True))
            gates.update(new_gates)
        return [read(v) for v in jaxpr.outvars], gates

    def _equation(self, eqn: Any, operands: list[Entry], path: Path) -> tuple[Sequence[Entry], Gates]:
        if not any(isinstance(x, Weight) for x in operands):
            fixed = all(x.fixed for x in operands if isinstance(x, Plain))
            return [Plain(out, fixed) for out in eval_eqn(eqn, [x.value for x in operands])], {}
        name = eqn.primitive.name
        if name in _compat.INLINE_PRIMITIVES:
            return self.run(*sub_jaxpr(eqn), operands, path)
        if name in _compat.CHECKPOINT_PRIMITIVES:
            return self._checkpoint(eqn, operands, path)
        if name == "scan":
            return self._scan(eqn, operands, path)
        if name == "cond":
            return self._cond(eqn, operands, path)
        if name == "while":
            return self._while(eqn, operands, path)
        if is_derivable(eqn, operands):
            return derive(eqn, operands), {}
        several = sum(isinstance(x, Weight) for x in operands) > 1
        uses = {i: use_of(eqn, i, several) for i, x in enumerate(operands) if isinstance(x, Weight)}
        return self._tap(lambda values: eval_eqn(eqn, values), uses, operands, path, name)

    def _tap(
        self, run: Callable, uses: dict, operands: Sequence[Entry], path: Path, name: str
    ) -> tuple[list[Plain], Gates]:
        outs, gates = tap(run, uses, operands, self.slot_of)
        for port in gates:
            weight = operands[port.operand]
            assert isinstance(weight, Weight)
            self.sites[path, port] = Site(port.leaf, name, weight.isometric and not weight.shared, weight.box)
        return outs, {(path, port): gate for port, gate in gates.items()}

    def escape(self, entry: Entry, path: Path) -> tuple[Plain, Gates]:
        """Turn a weight into an ordinary value, one copy per example."""
        if isinstance(entry, Plain):
            return entry, {}
        outs, gates = self._tap(lambda values: [values[0]], {0: Escaped(None, 0)}, [entry], path, "copy")
        return outs[0], gates

    def escape_all(self, entries: Sequence[Entry], path: Path) -> tuple[list[Plain], Gates]:
        """`escape` for a list; positions count down from -1 so that no equation number is met."""
        outs, gates = [], {}
        for i, entry in enumerate(entries):
            out, new = self.escape(entry, (*path, -1 - i))
            outs.append(out)
            gates.update(new)
        return outs, gates

    def _checkpoint(self, eqn: Any, operands: list[Entry], path: Path) -> tuple[Sequence[Entry], Gates]:
        jaxpr, consts = sub_jaxpr(eqn)
        inner_path = path

        def body(arrays: Any) -> tuple[list[Array], Gates]:
            outs, gates = self.run(jaxpr, consts, _unflatten(operands, arrays), inner_path)
            plain, more = self.escape_all(outs, inner_path)
            return [x.value for x in plain], gates | more

        outs, gates = _compat.checkpoint_like(eqn, body)(_flatten(operands))
        return [Plain(out, fixed=False) for out in outs], gates

    def _while(self, eqn: Any, operands: list[Entry], path: Path) -> tuple[Sequence[Entry], Gates]:
        # A loop of unknown length has no reverse derivative: JAX itself says so if a gradient is asked through it.
        plain, gates = self.escape_all(operands, path)
        return [Plain(out, fixed=False) for out in eval_eqn(eqn, [x.value for x in plain])], gates

    def _cond(self, eqn: Any, operands: list[Entry], path: Path) -> tuple[Sequence[Entry], Gates]:
        index, gates = self.escape(operands[0], (*path, -1))
        entries = operands[1:]

        def branch(number: int) -> Callable:
            closed = eqn.params["branches"][number]

            def run() -> tuple[list[Array], Gates]:
                outs, inner = self.run(closed.jaxpr, closed.consts, entries, (*path, number))
                plain, more = self.escape_all(outs, (*path, number))
                return [x.value for x in plain], inner | more

            return run

        branches = [branch(i) for i in range(len(eqn.params["branches"]))]
        if not index.fixed:
            # `vmap` runs all branches anyway when examples differ, and would copy every parameter per example.
            results = [run() for run in branches]
            which = jnp.clip(index.value, 0, len(branches) - 1)
            outs = [jax.lax.select_n(which, *cases) for cases in zip(*(r[0] for r in results), strict=True)]
            for _, inner in results:
                gates = gates | inner
            return [Plain(out, fixed=False) for out in outs], gates
        found = [jax.eval_shape(run)[1] for run in branches]
        union = {key: struct for inner in found for key, struct in inner.items()}

        def padded(run: Callable) -> Callable:
            def full() -> tuple[list[Array], Gates]:
                outs, inner = run()
                return outs, {k: inner[k] if k in inner else jnp.zeros(s.shape, s.dtype) for k, s in union.items()}

            return full

        outs, inner = jax.lax.switch(index.value, [padded(run) for run in branches])
        return [Plain(out, fixed=False) for out in outs], gates | inner

    def _scan(self, eqn: Any, operands: list[Entry], path: Path) -> tuple[Sequence[Entry], Gates]:
        jaxpr, jaxpr_consts = sub_jaxpr(eqn)
        num_consts, num_carry = _compat.scan_counts(eqn)
        consts, carry, xs = (
            operands[:num_consts],
            operands[num_consts : num_consts + num_carry],
            operands[num_consts + num_carry :],
        )
        carry_vars = jaxpr.invars[num_consts : num_consts + num_carry]
        # A parameter handed through the carry unchanged is a constant of the loop.
        constant = [isinstance(x, Weight) and jaxpr.outvars[i] is carry_vars[i] for i, x in enumerate(carry)]
        init, gates = self.escape_all([x for x, c in zip(carry, constant, strict=True) if not c], path)
        body_consts = [_shared(x) for x in consts]
        constant_carry = [_shared(x) for x, c in zip(carry, constant, strict=True) if c]
        fixed_carry = self._fixed_carry(jaxpr, consts, carry, xs, constant)

        def body(state: list[Array], slices: Any) -> tuple[list[Array], tuple[list[Array], Gates]]:
            moving, still = iter(zip(state, fixed_carry, strict=True)), iter(constant_carry)
            now = [next(still) if c else Plain(*next(moving)) for c in constant]
            outs, inner = self.run(jaxpr, jaxpr_consts, [*body_consts, *now, *_unflatten(xs, slices)], (*path, 0))
            outs = [out for i, out in enumerate(outs) if i >= num_carry or not constant[i]]
            plain, more = self.escape_all(outs, (*path, 0))
            values = [x.value for x in plain]
            return values[: len(state)], (values[len(state) :], inner | more)

        final, (ys, inner) = _compat.scan_like(eqn, body, [x.value for x in init], _flatten(xs))
        moved = iter(final)
        after = [x if c else Plain(next(moved), fixed=False) for x, c in zip(carry, constant, strict=True)]
        return [*after, *(Plain(y, fixed=False) for y in ys)], gates | inner

    def _fixed_carry(
        self, jaxpr: Any, consts: list[Entry], carry: list[Entry], xs: list[Entry], constant: list[bool]
    ) -> list[bool]:
        """Which carried values (a loop counter, say) never depend on an example or a parameter."""

        def is_fixed(entry: Entry) -> bool:
            return isinstance(entry, Plain) and entry.fixed

        now = [is_fixed(x) for x in carry]
        while True:
            inputs = [*map(is_fixed, consts), *now, *map(is_fixed, xs)]
            after = [a and b for a, b in zip(now, fixed_outputs(jaxpr, inputs), strict=False)]
            if after == now:
                return [f for f, c in zip(now, constant, strict=True) if not c]
            now = after


def _shared(entry: Entry) -> Entry:
    return dataclasses.replace(entry, shared=True) if isinstance(entry, Weight) else entry


def _flatten(entries: Sequence[Entry]) -> list[Any]:
    """The arrays of entries, as a pytree that loops can slice and checkpoints can trace."""
    return [(x.value, x.shadows) if isinstance(x, Weight) else x.value for x in entries]


def _unflatten(entries: Sequence[Entry], arrays: Sequence[Any]) -> list[Entry]:
    """Entries like the given ones on other arrays."""
    return [
        dataclasses.replace(x, value=a[0], shadows=a[1], aligned=False) if isinstance(x, Weight) else Plain(a, x.fixed)
        for x, a in zip(entries, arrays, strict=True)
    ]


def weights_of(leaves: Sequence[Array], totals: Sequence[Array], owns: dict[int, Array]) -> list[Entry]:
    """The parameters as the rewriter's inputs."""
    return [
        Weight(
            value=leaf,
            shadows={i: Shadow(totals[i], owns.get(i))},
            isometric=True,
            shared=False,
            box=tuple((0, n) for n in leaf.shape),
            aligned=True,
        )
        for i, leaf in enumerate(leaves)
    ]
