"""Which groups are clipped by the same program: the layers of an unrolled model are traced once, not one by one."""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdp.per_example.grouping._families import Family, FamilyLeaf, ReportedUse, clip_family
from jaxdp.per_example.rewriting._taps import Report, UseKey
from jaxdp.per_example.tracing._compat import is_literal
from jaxdp.per_example.tracing._values import ProbeKeys
from jaxdp.per_example.uses._clipping_weights import ClippingWeights
from jaxdp.per_example.uses._use import Use


class FamilyClipper:
    """Clips the groups of one pass, each kind of family by one program.

    Attributes:
      weigh: clipping weights from squared norms.
      keys_axis: the batch axis of the probes' keys, None where the batch shares them.
    """

    def __init__(self, weigh: ClippingWeights, keys_axis: int | None) -> None:
        self.weigh, self.keys_axis = weigh, keys_axis
        self._programs: dict[Hashable, Callable] = {}

    def _once(self, of: FamilyLeaf | ReportedUse, fn: Callable) -> Callable:
        """`fn`, or what was the same function of another member or part."""
        kind = _member_pattern(of) if isinstance(of, FamilyLeaf) else _part_pattern(of)
        return self._programs.setdefault((type(of), kind), jax.jit(fn))

    def __call__(
        self,
        family: Family,
        limits: Float[Array, " groups"] | None,
        others: Float[Array, "batch 4 groups"],
        reports: dict[UseKey, Report],
        keys: dict[int, ProbeKeys],
    ) -> tuple[Float[Array, "batch 4 groups"], dict[UseKey, Array]]:
        """Certificates of a family's groups, and its clipped sums over the batch, as `clip_family` gives them."""
        parts = _parts(family)
        leaves = [member.leaf for member in family.members]
        program = self._programs.setdefault(pattern(family), self._program(family))
        norms, sums = program(
            list(self.weigh.consts), limits, others, [reports[p.key] for p in parts], [keys.get(i) for i in leaves]
        )
        return norms, {part.key: total for part, total in zip(parts, sums, strict=True)}

    def _program(self, family: Family) -> Callable:
        """What is done for this family, and for every other one of its pattern."""
        parts, leaves = _parts(family), [member.leaf for member in family.members]

        def one(consts: Any, limits: Any, shared_entry: Any, others: Any, reports: Any, keys: Any) -> tuple[Any, Any]:
            named = {part.key: report for part, report in zip(parts, reports, strict=True)}
            given = {leaf: key for leaf, key in zip(leaves, keys, strict=True) if key is not None}
            shared_entries = {leaf: shared_entry for leaf in leaves}
            norms, sums = clip_family(
                family, self.weigh.with_consts(consts), limits, others, named, shared_entries, given, self._once
            )
            return norms, [sums[part.key] for part in parts]

        def finished(consts: Any, limits: Any, others: Any, reports: Any, keys: Any) -> tuple[Any, Any]:
            mapped = jax.vmap(one, in_axes=(None, None, None, 0, 0, self.keys_axis), out_axes=(0, None))
            return mapped(consts, limits, jnp.zeros(1, jnp.float32), others, reports, keys)

        return jax.jit(finished)


def pattern(family: Family) -> Hashable:
    """All that `clip_family` looks at in a family, but for the names of its leaves and uses.

    What cannot be compared is equal to nothing but itself.
    """
    return family.num_groups, tuple(map(_member_pattern, family.members))


def _member_pattern(member: FamilyLeaf) -> Hashable:
    return member.groups, tuple(map(_part_pattern, member.parts))


def _part_pattern(part: ReportedUse) -> Hashable:
    site = part.site
    loops = tuple((loop.length, loop.cuts) for loop in part.loops)
    shapes = tuple((i, x.shape, x.dtype) for i, x in sorted(site.operands.items())), tuple(site.cts)
    around = (part.product, loops, site.isometric, site.region, site.axes, site.stack, site.steady)
    return around, shapes, _use_pattern(site.use)


def _use_pattern(use: Use) -> Hashable:
    fields = {field.name: getattr(use, field.name) for field in dataclasses.fields(use)}
    eqn = fields.pop("eqn")
    if eqn is None:
        return type(use), tuple(fields.items())
    # A number that stands in the equation is part of what it does.
    comparable = not any(is_literal(x) for x in eqn.invars)
    avals = tuple(x.aval for x in (*eqn.invars, *eqn.outvars))
    found = type(use), tuple(fields.items()), eqn.primitive, avals, tuple(sorted(eqn.params.items()))
    try:
        hash(found)
    except TypeError:
        comparable = False
    return found if comparable else object()


def _parts(family: Family) -> list[ReportedUse]:
    return [part for member in family.members for part in member.parts]
