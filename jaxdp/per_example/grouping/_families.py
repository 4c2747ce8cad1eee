"""Groups that are clipped together once their factors are known: norms, weights and weighted sums from factors."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxdp.norms import TERMS, NormChoice, factored_certificate, mixed_factored_certificate, of_array, rows_certificate
from jaxdp.numerics._wide import real_dtype, wide_dtype
from jaxdp.per_example.grouping._by_group import add_up, spread
from jaxdp.per_example.rewriting._sites import Loop, Site, adds_up
from jaxdp.per_example.rewriting._taps import Report, UseKey
from jaxdp.per_example.tracing._values import ProbeKeys
from jaxdp.per_example.uses._clipping import clipped, contracted
from jaxdp.per_example.uses._clipping_weights import ClippingWeights
from jaxdp.per_example.uses._elementwise import Escaped
from jaxdp.per_example.uses._use import Layout, Outer, Rows, Use


@dataclasses.dataclass(frozen=True)
class ReportedUse:
    """One use's reported factors (or the gradient they make), and the loops between where they go to and the use."""

    key: UseKey
    site: Site
    loops: tuple[Loop, ...]
    product: bool = False  # whether the gradient is reported although it has factors

    @property
    def in_factors(self) -> bool:
        """Whether factors are reported."""
        return bool(self.site.use.factor_operands) and not self.product

    @property
    def use(self) -> Use:
        """The rule for what is reported: a gradient that is kept as it is, is its own rule."""
        kept = NormChoice(examples=self.site.use.choice.examples)
        return self.site.use if self.in_factors else Escaped(None, 0, kept)

    @property
    def lead(self) -> tuple[Loop, ...]:
        """Loops along which the report is stacked; gradients of the same entries add up instead."""
        return self.loops if self.in_factors else tuple(loop for loop in self.loops if loop.cuts)

    @property
    def slices(self) -> tuple[int, ...]:
        """Lengths of the loops that slice the weight."""
        return tuple(loop.length for loop in self.loops if loop.cuts)

    def zeros(self) -> Report:
        """Where the factors are reported to."""
        lead = tuple(loop.length for loop in self.lead)
        if not self.in_factors:
            shape = self.site.use.weight_shape(self.site.cts)
            return Report({}, [jnp.zeros((*lead, *shape), wide_dtype(real_dtype(self.site.cts[0].dtype)))])
        floats = {i: s for i, s in self.site.operands.items() if jnp.issubdtype(s.dtype, jnp.floating)}
        zero = lambda s: jnp.zeros((*lead, *s.shape), s.dtype)
        return Report({i: zero(s) for i, s in floats.items()}, [zero(s) for s in self.site.cts])

    @property
    def num_bytes(self) -> int:
        """Memory of one example's report."""
        arrays = jax.tree.leaves(jax.eval_shape(self.zeros))
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)

    @property
    def steps(self) -> int:
        """How often the same entries are used: the length of the reports' second axis."""
        return math.prod(loop.length for loop in self.lead if not loop.cuts)

    def arranged(self, report: Report) -> Report:
        """The factors with an axis for slices of the weight (if any), then one for repeated steps (if any)."""
        if not self.lead:
            return report
        order = sorted(range(len(self.lead)), key=lambda d: not self.lead[d].cuts)
        lead = ([math.prod(self.slices)] if self.slices else []) + (
            [self.steps] if len(self.slices) < len(order) else []
        )

        def reorder(x: Array) -> Array:
            return x.transpose([*order, *range(len(order), x.ndim)]).reshape(*lead, *x.shape[len(order) :])

        return jax.tree.map(reorder, report)

    @property
    def repeats(self) -> bool:
        """Whether reports have the axis for steps."""
        return len(self.slices) < len(self.lead)


@dataclasses.dataclass(frozen=True)
class FamilyLeaf:
    """One leaf of a family: its uses, and the group of every entry of its stack."""

    leaf: int
    parts: tuple[ReportedUse, ...]
    groups: tuple[int, ...]


# Given a member or a part, and a function of its arrays: a function that does the same.
TraceOnce = Callable[[FamilyLeaf | ReportedUse, Callable], Callable]


@dataclasses.dataclass(frozen=True)
class Family:
    """Leaves that share groups, so that their norms must be known together."""

    members: tuple[FamilyLeaf, ...]
    num_groups: int


def clip_family(
    family: Family,
    weigh: ClippingWeights,
    thresholds: Float[Array, " groups"] | None,
    others: Float[Array, "4 groups"],
    reports: dict[UseKey, Report],
    shared_entries: dict[int, Array],
    keys: dict[int, ProbeKeys],
    trace_once: TraceOnce = lambda of, fn: fn,
) -> tuple[Float[Array, "4 groups"], dict[UseKey, Array]]:
    """One example's certificates in a family's groups, and the clipped sums over the batch, operand by operand.

    `others` are the certificates of what else belongs to these groups; `shared_entries` has one entry of each leaf's
    sum, which has no batch axis, and `keys` those of the leaves' probes. `trace_once` may trace a function once for all
    that are alike.
    """
    arranged = {part.key: part.arranged(reports[part.key]) for m in family.members for part in m.parts}
    last = clipped_last(family)
    rest = [m for m in family.members if m is not last]
    norms = others + group_norms(family.num_groups, rest, arranged, keys, trace_once)
    totals = {}
    if last is not None:
        (part,) = last.parts
        report = arranged[part.key]
        threshold = None if thresholds is None else thresholds[0]
        key, shared_entry = keys.get(last.leaf), shared_entries[last.leaf]
        norm, total = clipped(part.use, weigh, norms[:, 0], threshold, shared_entry, report.kept, report.cts, key)
        norms, totals[part.key] = norm[:, None], total
    weights = weigh(norms.T, thresholds)
    for member in rest:
        for part in member.parts:
            by_entry = spread(weights, member.groups)
            add = trace_once(part, functools.partial(_weighted_sum, part))
            totals[part.key] = add(by_entry, arranged[part.key], shared_entries[member.leaf])
    return norms, totals


def clipped_last(family: Family) -> FamilyLeaf | None:
    """The member that is best clipped example by example, as its norm is the last that the family waits for."""
    if family.num_groups > 1:
        return None
    able = [m for m in family.members if len(m.parts) == 1 and not m.parts[0].loops]
    able = [m for m in able if m.parts[0].use.clips_in_one_go(m.parts[0].site.cts)]
    return max(able, key=lambda m: math.prod(m.parts[0].site.cts[0].shape), default=None)


def group_norms(
    num_groups: int,
    members: Sequence[FamilyLeaf],
    arranged: dict[UseKey, Report],
    keys: dict[int, ProbeKeys],
    trace_once: TraceOnce = lambda of, fn: fn,
) -> Float[Array, "4 groups"]:
    """One example's certificates, from factors."""
    if not members:
        return jnp.zeros((TERMS, num_groups), jnp.float32)

    def norms(member: FamilyLeaf) -> Float[Array, "4 entries"]:
        find = trace_once(member, functools.partial(_entry_norms, member))
        return find([arranged[part.key] for part in member.parts], keys.get(member.leaf))

    return add_up(num_groups, [(member.groups, norms(member)) for member in members])


def _entry_norms(member: FamilyLeaf, reports: list[Report], key: ProbeKeys | None) -> Float[Array, "4 entries"]:
    """The certificate of every entry of one leaf's stack."""
    entries = len(member.groups)

    def by_entry(norms: Float[Array, "slices 4"]) -> Array:
        return norms.T if norms.shape[0] == entries else jnp.sum(norms.reshape(entries, -1, TERMS), axis=1).T

    def apart(part: ReportedUse, report: Report) -> Array:
        if part.in_factors:
            return by_entry(_each(_norm_of(part), report, part, key))
        # Gradients as they are, of all slices at trace_once: a loop over them would be one more to compile.
        (gradient,) = report.cts
        slices = gradient if part.slices else gradient[None]
        return by_entry(jax.vmap(lambda x: of_array(x, part.use.choice.examples))(slices))

    if adds_up([part.site for part in member.parts], [part.steps for part in member.parts]):
        norms = [apart(part, report) for part, report in zip(member.parts, reports, strict=True)]
        return sum(norms[1:], norms[0])

    def joint(reports: list[Report], key: ProbeKeys | None) -> Array:
        with_steps = lambda part, r: r if part.repeats else jax.tree.map(lambda x: x[None], r)
        every = [(part, with_steps(part, r)) for part, r in zip(member.parts, reports, strict=True)]
        factors = [part.use.factors(r.kept, r.cts) for part, r in every]
        layouts = [part.use.layout(part.site.axes) if part.site.axes is not None else None for part in member.parts]
        return _joint_norm(factors, layouts, member.parts[0].use, key)

    return by_entry(_each(joint, reports, member.parts[0], key))


def _each(
    norm: Callable[[Any, Any], Array], reports: Any, part: ReportedUse, key: ProbeKeys | None
) -> Float[Array, "slices 4"]:
    """`norm` of every slice, one after the other: only one slice's intermediates are alive."""
    if not part.slices:
        return norm(reports, key)[None]
    if key is None or not key.shape:
        return jax.lax.map(lambda r: norm(r, key), reports)
    return jax.lax.map(lambda rk: norm(*rk), (reports, key.reshape(-1)))


def _norm_of(part: ReportedUse) -> Callable[[Report, PRNGKeyArray | None], Array]:
    first = lambda r: jax.tree.map(lambda x: x[0], r) if part.repeats else r
    return lambda r, key: part.use.certificate(first(r).kept, first(r).cts, key)


def _joint_norm(
    factors: Sequence[Outer | Rows],
    layouts: Sequence[Layout | None],
    use: Use,
    key: ProbeKeys | None,
) -> Float[Array, "4"]:
    """Certificate of a sum of factored gradients of one leaf, cross terms included."""
    precision = None if use.eqn is None else use.eqn.params.get("precision")
    rows = [f for f in factors if isinstance(f, Rows)]
    # Row numbers stand for the first factor; without a table any use may say which factor is the first.
    leader = next((x for f, x in zip(factors, layouts, strict=True) if isinstance(f, Rows)), layouts[0])
    outers = [
        f if layout is None or leader is None or layout.first == leader.first else Outer(f.g, f.a)
        for f, layout in zip(factors, layouts, strict=True)
        if isinstance(f, Outer)
    ]
    if not outers:
        return rows_certificate(*(jnp.concatenate(x) for x in zip(*rows, strict=True)), examples=use.choice.examples)
    a, g = (jnp.concatenate(x, axis=1) for x in zip(*outers, strict=True))
    if not rows:
        return factored_certificate(a, g, use.choice, key, precision)
    ids, values = (jnp.concatenate(x) for x in zip(*rows, strict=True))
    return mixed_factored_certificate(a[0], g[0], ids, values, use.choice, key, precision)


def _weighted_sum(part: ReportedUse, by_entry: Float[Array, " entries"], report: Report, shared_entry: Array) -> Array:
    """Weighted sum over the batch of what one use contributes, with leading axes for the loops that slice it."""

    def one(args: tuple[Array, Report]) -> Array:
        weight, factors = args
        use = Repeated(part.use.eqn, part.use.index, one=part.use) if part.repeats else part.use
        return contracted(use, weight, shared_entry, factors.kept, factors.cts)

    if not part.slices:
        return one((by_entry[0], report))
    weights = jnp.repeat(by_entry, math.prod(part.slices) // by_entry.shape[0])
    if part.in_factors:
        total = jax.lax.map(one, (weights, report))
    else:
        total = contracted(Slices(None, 0), weights, shared_entry, report.kept, report.cts)
    return total.reshape(*part.slices, *total.shape[1:])


class Slices(Escaped):
    """Gradients of several slices of a stack, each with a weight of its own."""

    def weighted_sum(
        self,
        weights: Float[Array, "batch slices"],
        operands: dict[int, Any],
        batched: dict[int, bool],
        cts: Sequence[Array],
    ) -> Array:
        """The same contraction for each slice."""
        return jnp.einsum("bs,bs...->s...", weights.astype(cts[0].dtype), cts[0], precision="highest")


@dataclasses.dataclass(frozen=True, eq=False)
class Repeated(Use):
    """Several runs of one use with the same entries of the weight, as if they were more examples."""

    one: Use | None = None

    def weighted_sum(
        self, weights: Float[Array, " batch"], operands: dict[int, Any], batched: dict[int, bool], cts: Sequence[Array]
    ) -> Array:
        """Fold the runs into the batch."""
        size, steps = cts[0].shape[:2]
        full = {i: x if batched[i] else jnp.broadcast_to(x, (size, *x.shape)) for i, x in operands.items()}
        fold = lambda x: x.reshape(-1, *x.shape[2:])
        folded = jax.tree.map(fold, full)
        assert self.one is not None
        return self.one.weighted_sum(
            jnp.repeat(weights, steps), folded, dict.fromkeys(full, True), [fold(ct) for ct in cts]
        )
