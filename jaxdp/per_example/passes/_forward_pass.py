"""One forward pass over a microbatch, and what its backward passes give."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdp.norms import TERMS, certified_norm
from jaxdp.numerics._wide import as_like, as_real
from jaxdp.per_example.grouping._by_group import add_up, spread
from jaxdp.per_example.grouping._families import group_norms
from jaxdp.per_example.grouping._groups import Groups
from jaxdp.per_example.grouping._patterns import FamilyClipper
from jaxdp.per_example.passes._loop_step import clipping_step
from jaxdp.per_example.passes._probes import each_example_draws
from jaxdp.per_example.planning._plan import Plan, whole_gradient_key
from jaxdp.per_example.rewriting._operand_views import OperandViews
from jaxdp.per_example.rewriting._rewrite import Rewriter
from jaxdp.per_example.rewriting._taps import Mode, Report, UseKey
from jaxdp.per_example.rewriting._traced import TracedLoss, weight_of, zero_total
from jaxdp.per_example.tracing._values import ProbeKeys, Shadow
from jaxdp.per_example.uses._clipping_weights import ClippingWeights

PyTree = Any

# By how much a second pass may find an example larger than the first one did: its program rounds in other places.
_SECOND_PASS, _SECOND_NARROW_PASS = 2.0**-20, 2.0**-9


def size_of(batch: PyTree) -> int:
    """How many examples there are."""
    return jax.tree.leaves(batch)[0].shape[0]


class ForwardPass:
    """A forward pass over one microbatch, and what its backward passes give."""

    def __init__(
        self,
        traced: TracedLoss,
        leaves: Sequence[Array],
        batch: PyTree,
        groups: Groups,
        plan: Plan,
        weigh: ClippingWeights,
        thresholds: Array | None,
        keys: dict[int, ProbeKeys],
    ) -> None:
        self.traced, self.leaves, self.batch, self.groups = traced, leaves, batch, groups
        self.plan, self.weigh, self.thresholds = plan, weigh, thresholds
        self.size, self.keys = size_of(batch), keys
        self._each_example_keys = 0 if each_example_draws(traced.randomized) else None
        modes = plan.modes
        wrapped = {body: clipping_step(families, weigh) for body, families in plan.step_clippers.items()}
        stacks = dict(enumerate(groups.stacks))
        # Whose certificates are found there: a family that is clipped in a loop's body uses its first leaf's.
        self._norms_in = {leaf for leaf, mode in modes.items() if mode in (Mode.GHOST, Mode.CLIP)}
        self._norms_in |= {f.members[0].leaf for families in plan.step_clippers.values() for f in families}

        def by_leaf(leaf: int) -> Array | None:
            return None if thresholds is None else spread(thresholds, groups.of_leaf[leaf]).reshape(groups.stacks[leaf])

        limits = {leaf: by_leaf(leaf) for leaf in range(len(leaves))}
        bases = {leaf: projection.matrix for leaf, projection in traced.projections.items()}

        def run(
            x: PyTree, keys: Any, totals: list[Array], wholes: Any, certificates: Any, reports: Any
        ) -> tuple[Array, Any]:
            rewriter = Rewriter(
                modes=modes,
                stacks=stacks,
                weigh=weigh,
                reports=reports,
                step_clippers=wrapped,
                sites=dict(traced.sites),
                rules=traced.rules,
                randomized=traced.randomized,
                projections=traced.projections,
                parts=traced.parts,
                examples=traced.examples,
                tables=traced.tables,
            )
            shadows = [
                Shadow(t, wholes.get(i), certificates[i], limits[i], keys.get(i), bases.get(i))
                for i, t in enumerate(totals)
            ]
            weights = [weight_of(i, leaf, s) for i, (leaf, s) in enumerate(zip(leaves, shadows, strict=True))]
            value, emitted = traced.evaluate(rewriter, weights, x)
            return value, emitted

        def batched(*args: Any) -> tuple[tuple[Array, Any], Any]:
            axes = (0, self._each_example_keys, None, 0, 0, 0)
            values, emitted = jax.vmap(run, in_axes=axes)(batch, keys, *args)
            clip_weights = {key: x.clip_weight for key, x in emitted.items()}
            return (values, clip_weights), {key: x.kept for key, x in emitted.items()}

        every = lambda x: jnp.zeros((self.size, *x.shape), x.dtype)
        self._totals = [zero_total(leaf, traced.projections.get(i)) for i, leaf in enumerate(leaves)]
        wholes = {i: every(t) for i, t in enumerate(self._totals) if modes[i] is Mode.WHOLE}
        certificates = [jnp.zeros((self.size, *stack, TERMS), jnp.float32) for stack in groups.stacks]
        reports = {part.key: jax.tree.map(every, part.zeros()) for part in plan.parts()}
        (self.values, self._clip_weights), self._pull, self._integers = jax.vjp(
            batched, self._totals, wholes, certificates, reports, has_aux=True
        )

    def pull(
        self, ct: Float[Array, " batch"], weights: Array | None
    ) -> tuple[list[Array], Array, dict[UseKey, Report]]:
        """One backward pass: totals, the certificates of groups found at the taps, and the reports."""
        clip_weights = {
            key: self._weight_ct(key, clip_weight, weights) for key, clip_weight in self._clip_weights.items()
        }
        totals, wholes, certificates, reports = self._pull((ct.astype(self.values.dtype), clip_weights))
        of_leaf = lambda certificate: jnp.swapaxes(certificate.reshape(self.size, -1, TERMS), 1, 2)
        found = [
            (self.groups.of_leaf[i], of_leaf(certificate))
            for i, certificate in enumerate(certificates)
            if i in self._norms_in
        ]
        nothing = jnp.zeros((self.size, TERMS, len(self.groups)), jnp.float32)
        norms = add_up(len(self.groups), found) if found else nothing
        reports = {key: Report(r.kept | self._integers[key], r.cts) for key, r in reports.items()}
        reports.update({whole_gradient_key(leaf): Report({}, [as_real(x)]) for leaf, x in wholes.items()})
        return totals, norms, reports

    def _weight_ct(self, key: UseKey, clip_weight: Array, weights: Array | None) -> Array:
        """This use's weight for every example, in each of the loops around it."""
        site = self.traced.sites[key]
        if weights is None or self.plan.modes[site.leaf] not in (Mode.GHOST, Mode.SUM):
            return jnp.zeros_like(clip_weight)
        stack = self.groups.stacks[site.leaf]
        shape, left = [self.size], list(stack)
        for loop in site.loops:
            shape.append(left.pop(0) if loop.cuts and left else 1)
        mine = spread(weights, self.groups.of_leaf[site.leaf])
        return jnp.broadcast_to(mine.reshape(shape), clip_weight.shape).astype(clip_weight.dtype)

    def certificates(self, ct: Float[Array, " batch"]) -> Float[Array, "batch 4 groups"]:
        """What is known of the norms: one backward pass."""
        _, norms, reports = self.pull(ct, None)
        pieces = [(tuple(range(len(self.groups))), norms)]
        for family, numbers in self.plan.families:
            mine = self._mine(family, reports)

            def of_one(mine: dict[UseKey, Report], keys: Any, family: Any = family) -> Array:
                arranged = {p.key: p.arranged(mine[p.key]) for m in family.members for p in m.parts}
                return group_norms(family.num_groups, family.members, arranged, keys)

            if mine:
                pieces.append((numbers, jax.vmap(of_one, in_axes=(0, self._each_example_keys))(mine, self.keys)))
        return add_up(len(self.groups), pieces)

    def _mine(self, family: Any, reports: dict[UseKey, Report]) -> dict[UseKey, Report]:
        return {part.key: reports[part.key] for m in family.members for part in m.parts}

    def clipped(self, ct: Float[Array, " batch"]) -> tuple[Float[Array, "batch 4 groups"], list[Array]]:
        """Certificates and clipped sums: one backward pass, and a second one where a sum has to wait for norms.

        What the second pass adds up is not what the first one measured, to the last bit. So it measures again, and an
        example whose gradient it finds larger than allowed for is reported as if it were not finite.
        """
        modes = self.plan.modes
        totals, norms, reports = self.pull(ct, None)
        first = norms
        found: dict[UseKey, Array] = {}
        pieces: list[tuple[tuple[int, ...], Array]] = []
        clip = FamilyClipper(self.weigh, self._each_example_keys)
        for family, numbers in self.plan.families:
            if not family.members:
                continue
            limits = None if self.thresholds is None else spread(self.thresholds, numbers)
            mine = self._mine(family, reports)
            own_norms, sums = clip(family, limits, spread(norms, numbers), mine, self.keys)
            pieces.append((numbers, own_norms))
            found.update(sums)
        done = {group for groups, _ in pieces for group in groups}
        pieces += [((g,), norms[..., g : g + 1]) for g in range(len(self.groups)) if g not in done]
        norms = add_up(len(self.groups), pieces)
        here = {m.leaf for family, _ in self.plan.families for m in family.members}
        at_uses = self._operand_totals(found)
        totals = [at_uses[leaf] if leaf in here else total for leaf, total in enumerate(totals)]
        if Mode.GHOST in modes.values():
            limits = None if self.thresholds is None else self.thresholds[None, :]
            narrow = any(jnp.finfo(ct.dtype).bits < 32 for site in self.traced.sites.values() for ct in site.cts)
            allowance = _SECOND_NARROW_PASS if narrow else _SECOND_PASS
            careful = self.weigh.allowing(allowance)
            weights = careful(jnp.swapaxes(norms, 1, 2), limits)
            second, again, _ = self.pull(ct, weights)
            totals = [second[i] if modes[i] is Mode.GHOST else total for i, total in enumerate(totals)]
            norms = _unless_larger(norms, first, again, allowance)
        return norms, totals

    def _operand_totals(self, found: dict[UseKey, Array]) -> list[Array]:
        """Sums found at uses, as sums of the leaves."""
        # A leaf that its only use takes as it is has the sum's shape already.
        single = {leaf: sites for leaf, sites in self._sites_by_leaf().items() if len(sites) == 1}
        done = {key for sites in single.values() for key, site in sites.items() if site.whole}
        done |= {whole_gradient_key(leaf) for leaf in range(len(self.leaves))}
        whole = {key[1].leaf: total for key, total in found.items() if key in done}
        at_uses = {key: total for key, total in found.items() if key not in done}
        totals = self._totals
        if at_uses:
            primal, pull = jax.vjp(self._operand_views(frozenset(at_uses)), self._totals)
            (totals,) = pull({key: as_like(at_uses[key], x) for key, x in primal.items()})
        return [as_like(whole[leaf], t) if leaf in whole else t for leaf, t in enumerate(totals)]

    def _sites_by_leaf(self) -> dict[int, dict[UseKey, Any]]:
        return {leaf: self.traced.sites_of(leaf) for leaf in range(len(self.leaves))}

    def _operand_views(self, wanted: frozenset[UseKey]) -> Callable:
        """What uses see of the totals, as a function of them."""
        stacks = dict(enumerate(self.groups.stacks))
        views = OperandViews(
            modes={}, stacks=stacks, sites=dict(self.traced.sites), wanted=wanted, tables=self.traced.tables
        )
        example = jax.tree.map(lambda x: x[0], self.batch)

        def view(totals: list[Array]) -> dict[UseKey, Array]:
            shadows = [Shadow(t, None, jnp.zeros((*stacks[leaf], TERMS), jnp.float32)) for leaf, t in enumerate(totals)]
            weights = [weight_of(i, x, s) for i, (x, s) in enumerate(zip(self.leaves, shadows, strict=True))]
            return self.traced.evaluate(views, weights, example)[1]

        return view


def _unless_larger(
    norms: Float[Array, "batch 4 groups"],
    first: Float[Array, "batch 4 groups"],
    second: Float[Array, "batch 4 groups"],
    allowance: float,
) -> Float[Array, "batch 4 groups"]:
    """The certificates, infinite where a second pass found more than was allowed for after the first."""
    sizes = lambda x: jnp.stack([certified_norm(jnp.swapaxes(x, 1, 2), math.inf), jnp.sqrt(x[:, -1])])
    more = ~jnp.all(sizes(second) <= sizes(first) * (1 + allowance), axis=0)
    return jnp.where(jnp.any(more, axis=-1)[:, None, None], jnp.inf, norms)
