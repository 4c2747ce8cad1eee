"""Evaluate the jaxpr of one example's loss with every use of a parameter replaced by a tap."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdp._shown import of_shapes
from jaxdp.norms import NormChoice, Rule
from jaxdp.numerics._wide import is_float
from jaxdp.per_example.rewriting._control_flow import Evaluation
from jaxdp.per_example.rewriting._sites import Loop, Site
from jaxdp.per_example.rewriting._taps import Mode, UseKey, tap
from jaxdp.per_example.subspace._projected import factor_structs, projected_use
from jaxdp.per_example.tracing import _compat
from jaxdp.per_example.tracing._active import active_outputs
from jaxdp.per_example.tracing._compat import has_equation, is_literal, sub_jaxpr
from jaxdp.per_example.tracing._convolution_layout import evaluated, is_convolution
from jaxdp.per_example.tracing._joined import as_concatenations, is_product_of_parts, product_of_parts
from jaxdp.per_example.tracing._patch_products import as_product, is_patchwise
from jaxdp.per_example.tracing._public import evaluated_when_asked
from jaxdp.per_example.tracing._values import Path, Plain, Value, Weight, is_active
from jaxdp.per_example.tracing._views import derive, is_derivable
from jaxdp.per_example.uses._sharded import sharded_use
from jaxdp.per_example.uses._table import use_of
from jaxdp.per_example.uses._use import Chosen, Use


@dataclasses.dataclass(frozen=True)
class Rewriter(Evaluation):
    """Equation by equation: parameters stay `Weight`s through views of them, and every other equation that takes one is
    tapped."""

    __repr__ = of_shapes

    def run(
        self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Value], path: Path
    ) -> tuple[list[Value], dict[UseKey, Any]]:
        """Evaluate a jaxpr; returns its outputs and what all taps inside emitted."""
        env: dict[Any, Value] = {}
        env.update(zip(jaxpr.constvars, (Plain(c, fixed=True, active=False) for c in consts), strict=True))
        env.update(zip(jaxpr.invars, inputs, strict=True))
        emitted: dict[UseKey, Any] = {}

        def read(atom: Any) -> Value:
            return _literal(atom) if is_literal(atom) else env[atom]

        for number, eqn in enumerate(jaxpr.eqns):
            operands = [read(v) for v in eqn.invars]
            outs, more = self._equation(eqn, operands, (*path, number))
            outs = _marked(eqn, operands, outs)
            env.update(zip(eqn.outvars, outs, strict=True))
            emitted.update(more)
        return [read(v) for v in jaxpr.outvars], emitted

    def _equation(self, eqn: Any, operands: list[Value], path: Path) -> tuple[Sequence[Value], dict[UseKey, Any]]:
        if is_patchwise(eqn):
            product = as_product(eqn)
            return self.run(product.jaxpr, product.consts, operands, path)
        name = eqn.primitive.name
        plain = not any(isinstance(x, Weight) for x in operands)
        if name in _compat.INLINE_PRIMITIVES and (not plain or has_equation(sub_jaxpr(eqn)[0], is_convolution)):
            return self.run(*sub_jaxpr(eqn), operands, path)
        if plain:
            return self._plain(eqn, operands), {}
        if name in _compat.CHECKPOINT_PRIMITIVES:
            return self._checkpoint(eqn, operands, path)
        if name == "scan":
            return self._scan(eqn, operands, path)
        if name == "cond":
            return self._cond(eqn, operands, path)
        if name == "while":
            return self._while(eqn, operands, path)
        if is_product_of_parts(eqn, operands):
            product, parts = product_of_parts(eqn, operands)
            return self.run(product.jaxpr, product.consts, parts, path)
        if is_derivable(eqn, operands) and not (name == "gather" and self._looks_up(operands[0])):
            joined = as_concatenations(eqn)
            if joined is not None:
                return self.run(joined.jaxpr, joined.consts, operands, path)
            return derive(eqn, operands, self.taken is not None), {}
        several = sum(isinstance(x, Weight) for x in operands) > 1
        active = tuple(i for i, x in enumerate(operands) if is_active(x) and is_float(x.value))
        uses = {
            i: projected_use(
                sharded_use(use_of(eqn, i, several, self._choice(x), active), x, self.parts), x, self.projections
            )
            for i, x in enumerate(operands)
            if isinstance(x, Weight)
        }
        if self.taken is not None:
            uses = {i: use if use.bilinear else Chosen(eqn, i, use.choice) for i, use in uses.items()}
        return self._tap(lambda values: evaluated(eqn, values), uses, operands, path)

    def _choice(self, weight: Weight) -> NormChoice:
        rule: Rule | None = next((self.rules[leaf] for leaf in sorted(weight.shadows) if leaf in self.rules), None)
        return NormChoice(rule, self.randomized, self.examples)

    def _plain(self, eqn: Any, operands: list[Value]) -> list[Plain]:
        fixed = all(x.fixed for x in operands if isinstance(x, Plain))
        outs = evaluated(eqn, [x.value for x in operands])
        found = evaluated_when_asked(eqn, operands) if fixed else [None] * len(outs)
        return [Plain(out, fixed, known=value) for out, value in zip(outs, found, strict=True)]

    def _looks_up(self, entry: Value) -> bool:
        """Whether picking public rows of a parameter is a use like other lookups of it, and notes that it is picked."""
        leaves = entry.shadows if isinstance(entry, Weight) else {}
        self.picked.update(leaves)
        return any(leaf in self.tables for leaf in leaves)

    def _tap(
        self, run: Callable, uses: dict[int, Use], operands: Sequence[Value], path: Path
    ) -> tuple[Sequence[Plain], dict[UseKey, Any]]:
        modes = {
            leaf: self.modes.get(leaf, Mode.GHOST) for x in operands if isinstance(x, Weight) for leaf in x.shadows
        }
        reports = {place: report for (at, place), report in self.reports.items() if at == path}
        outs, emitted = tap(run, uses, operands, modes, self.weigh, reports, self.taken)
        for place in emitted:
            weight, use = operands[place.operand], uses[place.operand]
            assert isinstance(weight, Weight)
            basis = weight.shadows[place.leaf].basis
            needed = use.factor_operands if basis is None else range(len(operands))
            factors, cts = factor_structs(
                use,
                {i: _struct(operands[i].value) for i in needed},
                [_struct(out.value) for out in outs if is_float(out.value)],
                basis,
            )
            self.sites[path, place] = Site(
                leaf=place.leaf,
                use=use,
                isometric=weight.isometric,
                region=weight.region,
                axes=weight.axes,
                stack=weight.stack,
                steady=weight.steady,
                loops=tuple(Loop(body, length, body in weight.cuts) for body, length in self.loops),
                operands=factors,
                cts=cts,
                remat=self.remat,
                whole=_is_whole(weight),
            )
        return outs, {(path, place): x for place, x in emitted.items()}


def _literal(atom: Any) -> Plain:
    """A constant that is written into the program: of Python's numbers, too, the dtype is the program's."""
    value = atom.val if isinstance(atom.val, jax.Array) else np.asarray(atom.val, atom.aval.dtype)
    return Plain(value, fixed=True, active=False)


def _marked(eqn: Any, operands: Sequence[Value], outs: Sequence[Value]) -> Sequence[Value]:
    """Outputs that turn out not to depend on a parameter, marked as such."""
    if all(isinstance(x, Weight) or not x.active for x in outs):
        return outs
    active = active_outputs(eqn, [is_active(x) for x in operands])
    mark = lambda x, flag: x if flag or isinstance(x, Weight) else dataclasses.replace(x, active=False)
    return [mark(x, flag) for x, flag in zip(outs, active, strict=True)]


def _is_whole(weight: Weight) -> bool:
    """Whether this is a leaf as it is, but for its dtype and the slices that loops take along its first axes."""
    shape = weight.leaf_shape[len(weight.stack) :]
    return weight.aligned and weight.isometric and weight.region == tuple((0, n) for n in shape)


def _struct(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(x), x.dtype)
