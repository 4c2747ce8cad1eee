"""The evaluation through loops, branches and checkpoints: what is inside them is evaluated in the same way."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxdp._shown import of_shapes
from jaxdp.norms import NormChoice, Randomized, Rule
from jaxdp.per_example.rewriting._sites import Site
from jaxdp.per_example.rewriting._slices import arrays_of, cut_by, entering, inside, rows, with_arrays, with_uncut
from jaxdp.per_example.rewriting._taps import Mode, Report, UseKey
from jaxdp.per_example.subspace._projection import Projection
from jaxdp.per_example.tracing import _compat
from jaxdp.per_example.tracing._active import active_carry
from jaxdp.per_example.tracing._compat import eval_eqn, sub_jaxpr
from jaxdp.per_example.tracing._values import Path, Plain, Value, Weight, is_active
from jaxdp.per_example.tracing._views import fixed_outputs
from jaxdp.per_example.uses._clipping_weights import NO_WEIGHTS, ClippingWeights
from jaxdp.per_example.uses._elementwise import Escaped
from jaxdp.per_example.uses._use import Use


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation: what is to be reported of each leaf, and the sites seen so far (by position, as loops retrace).

    Attributes:
      modes: what the taps do at each leaf's uses; a leaf that is missing is only traced.
      stacks: for each leaf, the leading axes that loops slice its certificate along with.
      weigh: clipping weights from squared norms (and thresholds).
      reports: where factors are reported to.
      step_clippers: for the body of a scan, what wraps it to clip the groups that are complete inside it.
      loops: bodies and lengths of the scans around.
      rules: for leaves for which the user chose, how the norms at their uses are found.
      randomized: the estimator of norms, where they need not be exact.
      remat: whether there is a checkpoint around.
      projections: for leaves whose gradients are found in a subspace, which one.
      parts: for leaves that several devices hold, in how many parts along each axis.
      examples: how many examples' terms meet in one product of a sum.
      taken: in a branch on an example's value, whether the example takes it.
      tables: leaves of which picking public rows is a lookup like others, and no view.
      picked: leaves of which public rows were picked.
    """

    __repr__ = of_shapes

    modes: dict[int, Mode]
    stacks: dict[int, tuple[int, ...]]
    weigh: ClippingWeights = NO_WEIGHTS
    reports: dict[UseKey, Report] = dataclasses.field(default_factory=dict)
    step_clippers: dict[Path, Callable] = dataclasses.field(default_factory=dict)
    loops: tuple[tuple[Path, int], ...] = ()
    sites: dict[UseKey, Site] = dataclasses.field(default_factory=dict)
    rules: dict[int, Rule] = dataclasses.field(default_factory=dict)
    randomized: Randomized | None = None
    remat: bool = False
    projections: dict[int, Projection] = dataclasses.field(default_factory=dict)
    parts: dict[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    examples: int = 1
    taken: Any = None
    tables: frozenset[int] = frozenset()
    picked: set[int] = dataclasses.field(default_factory=set)

    def run(
        self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Value], path: Path
    ) -> tuple[list[Value], dict[UseKey, Any]]:
        """Evaluate a jaxpr; returns its outputs and what all taps inside emitted."""
        raise NotImplementedError("equations are what a subclass is about")

    def _tap(
        self, run: Callable, uses: dict[int, Use], operands: Sequence[Value], path: Path
    ) -> tuple[Sequence[Plain], dict[UseKey, Any]]:
        raise NotImplementedError("taps are what a subclass is about")

    def escape(self, entry: Value, path: Path) -> tuple[Plain, dict[UseKey, Any]]:
        """Turn a weight into an ordinary value, one copy per example."""
        if isinstance(entry, Plain):
            return entry, {}
        outs, emitted = self._tap(
            lambda values: [values[0]], {0: Escaped(None, 0, NormChoice(examples=self.examples))}, [entry], path
        )
        return outs[0], emitted

    def escape_all(self, entries: Sequence[Value], path: Path) -> tuple[list[Plain], dict[UseKey, Any]]:
        """`escape` for a list; positions count down from -1 so that no equation number is met."""
        outs, emitted = [], {}
        for i, entry in enumerate(entries):
            out, more = self.escape(entry, (*path, -1 - i))
            outs.append(out)
            emitted.update(more)
        return outs, emitted

    def _checkpoint(self, eqn: Any, operands: list[Value], path: Path) -> tuple[Sequence[Value], dict[UseKey, Any]]:
        jaxpr, consts = sub_jaxpr(eqn)

        def body(arrays: Any, reports: dict[UseKey, Report], taken: Any) -> tuple[list[Any], dict[UseKey, Any]]:
            inner = dataclasses.replace(self, reports=self.reports | reports, remat=True, taken=taken)
            outs, emitted = inner.run(jaxpr, consts, with_arrays(operands, arrays), path)
            plain, more = inner.escape_all(outs, path)
            return [x.value for x in plain], emitted | more

        outs, emitted = _compat.checkpoint_like(eqn, body)(arrays_of(operands), inside(self.reports, path), self.taken)
        return [Plain(out, fixed=False) for out in outs], emitted

    def _while(self, eqn: Any, operands: list[Value], path: Path) -> tuple[Sequence[Value], dict[UseKey, Any]]:
        # A loop of unknown length has no reverse derivative: JAX itself says so if a gradient is asked through it.
        plain, emitted = self.escape_all(operands, path)
        return [Plain(out, fixed=False) for out in eval_eqn(eqn, [x.value for x in plain])], emitted

    def _cond(self, eqn: Any, operands: list[Value], path: Path) -> tuple[Sequence[Value], dict[UseKey, Any]]:
        index, emitted = self.escape(operands[0], (*path, -1))
        which = jnp.clip(index.value, 0, len(eqn.params["branches"]) - 1)

        def branch(number: int) -> Callable:
            closed = eqn.params["branches"][number]
            chosen = None if index.fixed else which == number
            taken = self.taken if chosen is None else chosen if self.taken is None else self.taken & chosen
            within = dataclasses.replace(self, taken=taken)

            def run() -> tuple[list[Any], dict[UseKey, Any]]:
                entries = [x if chosen is None else entering(x, chosen) for x in operands[1:]]
                outs, inner = within.run(closed.jaxpr, closed.consts, entries, (*path, number))
                plain, more = within.escape_all(outs, (*path, number))
                return [x.value for x in plain], inner | more

            return run

        branches = [branch(i) for i in range(len(eqn.params["branches"]))]
        if not index.fixed:
            # `vmap` runs all branches anyway when examples differ, and would copy every parameter per example.
            results = [run() for run in branches]
            outs = [jax.lax.select_n(which, *cases) for cases in zip(*(r[0] for r in results), strict=True)]
            for _, inner in results:
                emitted = emitted | inner
            return [Plain(out, fixed=False) for out in outs], emitted
        found = [jax.eval_shape(run)[1] for run in branches]
        union = {key: struct for inner in found for key, struct in inner.items()}
        zeros = lambda tree: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), tree)

        def padded(run: Callable) -> Callable:
            def full() -> tuple[list[Any], dict[UseKey, Any]]:
                outs, inner = run()
                return outs, {key: inner[key] if key in inner else zeros(tree) for key, tree in union.items()}

            return full

        outs, inner = jax.lax.switch(index.value, [padded(run) for run in branches])
        return [Plain(out, fixed=False) for out in outs], emitted | inner

    def _scan(self, eqn: Any, operands: list[Value], path: Path) -> tuple[Sequence[Value], dict[UseKey, Any]]:
        jaxpr, jaxpr_consts = sub_jaxpr(eqn)
        num_consts, num_carry = _compat.scan_counts(eqn)
        consts, carry, xs = (
            operands[:num_consts],
            operands[num_consts : num_consts + num_carry],
            operands[num_consts + num_carry :],
        )
        body_path = (*path, 0)
        carry_vars = jaxpr.invars[num_consts : num_consts + num_carry]
        # A parameter handed through the carry unchanged is a constant of the loop.
        constant = [isinstance(x, Weight) and jaxpr.outvars[i] is carry_vars[i] for i, x in enumerate(carry)]
        init, emitted = self.escape_all([x for x, c in zip(carry, constant, strict=True) if not c], path)
        constants = [*consts, *(x for x, c in zip(carry, constant, strict=True) if c)]
        if self.taken is not None:
            constants.append(Plain(self.taken, fixed=True))
        fixed_carry = self._fixed_carry(jaxpr, consts, carry, xs, constant)
        moves = active_carry(eqn, [is_active(x) for x in operands])
        active_state = [flag for flag, c in zip(moves, constant, strict=True) if not c]
        cut = [cut_by(x, body_path) for x in xs]
        stacked = {key: r for key, r in inside(self.reports, body_path).items() if self._is_stacked(key, body_path)}
        around = {key: r for key, r in inside(self.reports, body_path).items() if key not in stacked}

        def inputs(held: list[Any], state: list[Any], slices: list[Any]) -> list[Value]:
            values = with_arrays(constants, held)
            moving, still = iter(zip(state, fixed_carry, active_state, strict=True)), iter(values[num_consts:])
            now = [next(still) if c else Plain(*next(moving)) for c in constant]
            return [*values[:num_consts], *now, *with_arrays(cut, slices)]

        loops = (*self.loops, (body_path, eqn.params["length"]))

        def step(
            rewriter: Evaluation, reports: dict[UseKey, Report], held: list[Any], state: list[Any], slices: list[Any]
        ) -> tuple[list[Any], list[Any], dict[UseKey, Any]]:
            taken = None if self.taken is None else held[-1]
            inner = dataclasses.replace(rewriter, reports=reports, loops=loops, taken=taken)
            outs, emitted = inner.run(jaxpr, jaxpr_consts, inputs(held, state, slices), body_path)
            outs = [out for i, out in enumerate(outs) if i >= num_carry or not constant[i]]
            plain, more = inner.escape_all(outs, body_path)
            every = [x.value for x in plain]
            return every[: len(state)], every[len(state) :], emitted | more

        run_step = (
            self.step_clippers[body_path](step, self, constants, cut, active_state)
            if body_path in self.step_clippers
            else (lambda *args: step(self, *args))
        )
        held = arrays_of(constants)

        def body(state: list[Any], slices: Any) -> tuple[list[Any], Any]:
            arrays, reports = slices
            arrays = [with_uncut(x, row) for x, row in zip(xs, arrays, strict=True)]
            state, ys, emitted = run_step(around | reports, held, state, arrays)
            return state, (ys, emitted)

        sliced = [rows(x, entry, self.stacks) for x, entry in zip(xs, cut, strict=True)]
        final, (ys, inner) = self._loop(eqn, body_path, body, [x.value for x in init], (sliced, stacked))
        moved = iter(final)
        after = [x if c else Plain(next(moved), fixed=False) for x, c in zip(carry, constant, strict=True)]
        return [*after, *(Plain(y, fixed=False) for y in ys)], emitted | inner

    def _loop(self, eqn: Any, path: Path, body: Callable, init: Any, xs: Any) -> Any:
        del path
        return _compat.scan_like(eqn, body, init, xs)

    def _is_stacked(self, key: UseKey, body: Path) -> bool:
        """Whether a report has an axis for this loop: gradients of the same entries add up instead."""
        site = self.sites[key]
        in_factors = site.use.factor_operands and self.modes.get(site.leaf) is not Mode.GRADIENT
        return bool(in_factors) or any(loop.cuts for loop in site.loops if loop.body == body)

    def _fixed_carry(
        self, jaxpr: Any, consts: list[Value], carry: list[Value], xs: list[Value], constant: list[bool]
    ) -> list[bool]:
        """Which carried values (a loop counter, say) never depend on an example or a parameter."""

        def is_fixed(entry: Value) -> bool:
            return isinstance(entry, Plain) and entry.fixed

        now = [is_fixed(x) for x in carry]
        while True:
            inputs = [*map(is_fixed, consts), *now, *map(is_fixed, xs)]
            after = [a and b for a, b in zip(now, fixed_outputs(jaxpr, inputs), strict=False)]
            if after == now:
                return [f for f, c in zip(now, constant, strict=True) if not c]
            now = after
