"""`explain`: what a clipped sum would do with every use of every parameter, and what it would cost."""

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax

from jaxdp._numbers import is_whole
from jaxdp._shown import of_shapes
from jaxdp.norms import EXACT, Cost, Exact, Norm, check_norm
from jaxdp.numerics._wide import wide_dtype
from jaxdp.per_example.grouping._families import Family, FamilyLeaf, clipped_last
from jaxdp.per_example.grouping._groups import Groups, GroupSpec, resolve_groups
from jaxdp.per_example.planning._costs import joint_norm, runs, second_pass_flops, training_flops
from jaxdp.per_example.planning._explanation import Explanation, PlannedUse, RankCost
from jaxdp.per_example.planning._method import Method, check_method
from jaxdp.per_example.planning._plan import FACTOR_ALLOWANCE, Plan, factor_bytes, make_plan, whole_is_smaller
from jaxdp.per_example.planning._prediction import MEAN_GRADIENTS, predict
from jaxdp.per_example.rewriting._overrides import check_rules, primitive_of
from jaxdp.per_example.rewriting._sites import Site, adds_up, joins
from jaxdp.per_example.rewriting._taps import Mode
from jaxdp.per_example.rewriting._traced import TracedLoss, trace
from jaxdp.per_example.subspace._projected import matrix_axes
from jaxdp.per_example.subspace._projection import MatrixAxes
from jaxdp.per_example.tracing import _check
from jaxdp.per_example.uses._costs import Priced

PyTree = Any

OWN_GRADIENT, WHOLE_GRADIENT = "own gradient (B x leaf)", "whole gradient"


def explain(
    loss: Callable,
    params: PyTree,
    batch: PyTree,
    *,
    groups: GroupSpec = "all",
    method: Method = "auto",
    rules: Mapping[str, Any] | None = None,
    norm: Norm = EXACT,
    has_aux: bool = False,
    ranks: Sequence[int] = (),
    noise_multiplier: float | int | None = None,
    expected_batch_size: float | int | None = None,
) -> Explanation:
    r"""How a clipped sum is found at every use of every parameter, and what that is predicted to cost.

    Nothing is computed: the loss is traced and the same decisions are taken as in
    `per_example_grad(loss, method=method, rules=rules)(params, batch).clipped_sum(..., groups)`. Printed, the result is
    a table. For one use with factors $A_i \in R^{T \times C}$, $G_i \in R^{T \times P}$ and gradient $A_i^\top G_i$,
    the norm by Gram matrices takes $2 T^2 (C + P + 1)$ operations, by the product $2 (T + 1) C P$, by k random probes
    about $2 T k (C + P)$ (with memory $k (T + C + P)$), and the sum $2 T C P$; the cheaper way is judged by operations
    and memory traffic at the rates of the default backend.

    Args:
      loss: the loss of one example, as for `per_example_grad`.
      params: the parameters, or `jax.ShapeDtypeStruct`s of them.
      batch: one batch, or `jax.ShapeDtypeStruct`s of one; where microbatches are used, one of their size.
      groups: the clipping groups, as for `jaxdp.transforms.clip`.
      method: as for `per_example_grad`.
      rules: as for `per_example_grad`: from paths as they are printed here to `"gram"` or `"materialize"`.
      norm: how norms are found, as for `jaxdp.transforms.clip`.
      has_aux: whether the loss returns a pair.
      ranks: dimensions of random subspaces (`jaxdp.transforms.grape` of all matrices) whose cost in accuracy is to be
        predicted, by the law of `jaxdp.transforms.predicted_cosine`.
      noise_multiplier: $\sigma$, which that needs.
      expected_batch_size: likewise; the number of examples of `batch` if not given.

    Returns:
      An `Explanation`: one row for each use, totals, a line of advice, and the cosine of an update with the gradient
      for every rank.

    Raises:
      TypeError: a leaf of `params` has no gradient, or the loss is not a real floating-point scalar.
      ValueError: an argument that `per_example_grad` would refuse; ranks without a noise multiplier.

    Example:
      >>> import jax, jax.numpy as jnp, jaxdp
      >>> params = {"b": jnp.zeros(3), "w": jnp.zeros((2, 3))}
      >>> loss = lambda p, x: jnp.sum(jnp.tanh(x @ p["w"] + p["b"]))
      >>> plan = jaxdp.explain(loss, params, jax.ShapeDtypeStruct((8, 2), jnp.float32))
      >>> [(row.parameter, row.rule, row.clipped) for row in plan.rows]
      [("params['b']", 'elementwise', 'end of pass'), ("params['w']", 'product, once', 'end of pass')]

    References:
      Bu et al., Differentially Private Optimization on Large Model at Small Cost, arXiv 2210.00038.
    """
    check_method(method)
    check_rules(rules, method)
    check_norm(norm)
    _check_ranks(ranks, noise_multiplier)
    _check.check_params(params)
    size = _check.check_batch(batch, None)
    traced = trace(_check.call_loss(loss, has_aux), params, batch, rules, None if isinstance(norm, Exact) else norm)
    resolved = resolve_groups(groups, params, traced.stacks)
    leaves = jax.tree.leaves(params)
    plan = None if method == "materialize" else make_plan(traced, resolved, method, size)
    rows = _Rows(traced, resolved, plan, leaves, _check.leaf_names(params, "params"), size).all()
    sites = traced.sites.values()
    two_passes = plan is not None and Mode.GHOST in plan.modes.values()
    one_pass, ghost = (make_plan(traced, resolved, name, size) for name in ("fused", "ghost"))
    extra = 0 if plan is None else size * factor_bytes(plan, ghost)
    each = factor_bytes(one_pass, plan) if plan is not None and two_passes else 0
    return Explanation(
        method=method,
        batch_size=size,
        rows=tuple(rows),
        training_flops=size * training_flops(sites),
        second_pass_flops=size * second_pass_flops(sites) if two_passes else 0.0,
        params_bytes=traced.num_bytes,
        advice=_advice(method, rows, extra, each, traced.num_bytes),
        ranks=_rank_costs(traced, leaves, ranks, noise_multiplier or 0.0, expected_batch_size or size),
    )


def _rank_costs(
    traced: TracedLoss, leaves: Sequence[Any], ranks: Sequence[int], noise_multiplier: float | int, size: float | int
) -> tuple[RankCost, ...]:
    """What projecting all matrices of the loss costs, for some lengths of the mean clipped gradient."""
    if not ranks:
        return ()
    shapes = [tuple(leaf.shape) for leaf in leaves]
    sizes = [math.prod(shape) for shape in shapes]
    found = [
        matrix_axes(list(traced.sites_of(i).values()), len(shape), traced.stacks[i]) for i, shape in enumerate(shapes)
    ]
    sides = [
        math.prod(shape[a] for a in axes.side(shape, "smaller")) if isinstance(axes, MatrixAxes) else 0
        for axes, shape in zip(found, shapes, strict=True)
    ]
    return tuple(
        RankCost(
            rank,
            mean,
            predict(
                sizes,
                [side if side > rank else None for side in sides],
                rank=rank,
                noise_multiplier=noise_multiplier,
                mean_gradient=mean,
                expected_batch_size=size,
            ),
        )
        for rank in ranks
        for mean in MEAN_GRADIENTS
    )


def _check_ranks(ranks: Sequence[int], noise_multiplier: float | int | None) -> None:
    for rank in ranks:
        if not is_whole(rank) or rank < 1:
            raise ValueError(f"ranks has {rank!r}: give whole numbers of at least 1.")
    if ranks and noise_multiplier is None:
        raise ValueError("noise_multiplier is missing: what a rank costs depends on the noise, so give it with ranks.")


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The rows of the table."""

    __repr__ = of_shapes

    traced: TracedLoss
    groups: Groups
    plan: Plan | None  # None: everything is materialised
    leaves: Sequence[Any]
    names: Sequence[str]
    size: int

    def all(self) -> list[PlannedUse]:
        """Leaf by leaf, in flattening order."""
        return [row for leaf in range(len(self.leaves)) for row in self._of_leaf(leaf)]

    def _of_leaf(self, leaf: int) -> list[PlannedUse]:
        mode = Mode.WHOLE if self.plan is None else self.plan.modes[leaf]
        if mode is Mode.WHOLE:
            return self._stored(leaf)
        if mode in (Mode.FACTORS, Mode.GRADIENT):
            return self._reported(leaf)
        rows = []
        for site in self.traced.sites_of(leaf).values():
            if mode is Mode.CLIP and site.use.reuses_gradient(site.cts):
                found = site.use.reuse_cost(site.cts)
            else:
                norm = site.use.norm_cost(site.cts)
                found = Priced(norm.rule, norm.cost + site.use.sum_cost(site.cts))
            where = "in the use" if mode is Mode.CLIP else "second pass"
            rows.append(self._row(site, found.rule, where, found.cost.times(runs(site.loops))))
        return rows

    def _stored(self, leaf: int) -> list[PlannedUse]:
        """A leaf with one gradient for each example: squared and summed as it is."""
        array = self.leaves[leaf]
        entries = math.prod(array.shape)
        itemsize = array.dtype.itemsize if self.plan is None else wide_dtype(array.dtype).itemsize
        sites = list(self.traced.sites_of(leaf).values())
        chosen = self.plan is not None and joins(sites) and whole_is_smaller(self.traced, leaf)
        rule, rows = WHOLE_GRADIENT if chosen else OWN_GRADIENT, []
        for i, site in enumerate(sites):
            cost = site.use.gradient_cost(site.cts).times(runs(site.loops))
            if i == 0:
                cost = cost + Cost(4.0 * entries, 2.0 * itemsize * entries)
            held = entries * itemsize if i == 0 else 0
            rows.append(self._row(site, rule, "end of pass", cost, held))
        return rows

    def _reported(self, leaf: int) -> list[PlannedUse]:
        """A leaf whose factors are reported to the end of the pass or of a loop's step."""
        family, member, where = self._member(leaf)
        apart = adds_up([part.site for part in member.parts], [part.steps for part in member.parts])
        joint = None if apart else joint_norm(member.parts)
        rows = []
        for i, part in enumerate(member.parts):
            site, every = part.site, runs(part.site.loops)
            cost = site.use.sum_cost(site.cts).times(every)
            if part.product:
                rule, once = site.use.held_cost(site.cts)
                cost = once.times(every)
            elif member is clipped_last(family) and site.use.reuses_gradient(site.cts):
                rule, once = site.use.reuse_cost(site.cts)
                cost = once.times(every)
            elif joint is None:
                rule, norm = site.use.norm_cost(site.cts)
                cost = cost + norm.times(every)
            else:
                # One norm for all runs with the same entries: its price stands in the first row.
                rule = joint.rule
                cost = cost + joint.cost.times(every // part.steps if i == 0 else 0)
            if not site.use.factor_operands and site.use.enlarges:
                rule, cost = OWN_GRADIENT, cost + site.use.gradient_cost(site.cts).times(every)
            rows.append(self._row(site, rule, where, cost, part.num_bytes))
        return rows

    def _member(self, leaf: int) -> tuple[Family, FamilyLeaf, str]:
        assert self.plan is not None
        at_end = [(family, "end of pass") for family, _ in self.plan.families]
        in_step = [(family, "in the loop step") for families in self.plan.step_clippers.values() for family in families]
        return next((f, m, where) for f, where in (*at_end, *in_step) for m in f.members if m.leaf == leaf)

    def _row(self, site: Site, rule: str, clipped: str, cost: Cost, held: int = 0) -> PlannedUse:
        """A row of the table, from what one example costs."""
        loops = [f"scan[{loop.length}]" for loop in site.loops] + ["checkpoint"] * site.remat
        mine = dict.fromkeys(self.groups.of_leaf[site.leaf])
        names: tuple[Hashable, ...] = tuple(self.groups.names[group] for group in mine)
        return PlannedUse(
            parameter=self.names[site.leaf],
            primitive=primitive_of(site),
            inside=" ".join(loops),
            rule=rule,
            clipped=clipped,
            groups=names,
            flops=self.size * cost.flops,
            bytes=self.size * cost.bytes,
            held_bytes=self.size * held,
        )


def _advice(method: str, rows: Sequence[PlannedUse], extra_bytes: int, bytes_of_example: int, params_bytes: int) -> str:
    """The one thing that would help most: `bytes_of_example` are what one pass would keep instead of a second one."""
    stored = [row for row in rows if row.rule == OWN_GRADIENT]
    if method == "materialize":
        return "Every example's gradient is stored; any other method avoids it."
    if stored:
        worst = max(stored, key=lambda row: row.held_bytes)
        return (
            f"{worst.parameter} has one gradient for each example ({worst.held_bytes / 1e6:.3g} MB), because several "
            "equations or one without a rule make it: using it in one matrix product, convolution or lookup as it is, "
            "or smaller microbatches, would avoid it."
        )
    if any(row.clipped == "second pass" for row in rows):
        advice = (
            'Norms and sums take two backward passes; groups="layer" needs one, and method="fused" takes one for any'
        )
        if not bytes_of_example:
            return f"{advice} groups and holds no more for it."
        fits = int(FACTOR_ALLOWANCE * params_bytes // bytes_of_example)
        small = f'; in microbatches of at most {fits}, method="auto" does, too' if fits else ""
        return f"{advice} groups but holds {bytes_of_example / 1e6:.3g} MB for each example{small}."
    if extra_bytes > FACTOR_ALLOWANCE * params_bytes:
        return (
            f"Factors of {extra_bytes / 1e6:.3g} MB are kept out of loops and checkpoints until the end of the pass; "
            'method="ghost", groups="layer" or smaller microbatches would avoid it.'
        )
    return "One backward pass, and little is kept for clipping alone: nothing to change."
