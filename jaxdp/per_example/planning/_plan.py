"""What is decided while tracing: how each clipping group is reported and summed."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxdp.norms import NormChoice, default_machine
from jaxdp.numerics._wide import wide_dtype
from jaxdp.per_example.grouping._families import Family, FamilyLeaf, ReportedUse, clipped_last
from jaxdp.per_example.grouping._groups import Groups
from jaxdp.per_example.rewriting._sites import Loop, Site, adds_up, after, joins
from jaxdp.per_example.rewriting._taps import LeafOperand, Mode, UseKey
from jaxdp.per_example.rewriting._traced import TracedLoss
from jaxdp.per_example.tracing._values import Path
from jaxdp.per_example.uses._elementwise import Escaped

# How much memory `method="auto"` lets factors take that wait for the end of the pass, as a multiple of the parameters'.
# Training with Adam holds at least four times the parameters: parameters, gradients and two moments.
FACTOR_ALLOWANCE = 1.0

# A parameter that is used several times has its whole gradient made for each example where that is no larger than so
# many times the factors of its uses: its norm and what is added to the sum are then the same numbers, also where the
# uses cancel.
WHOLE_GRADIENTS = 2.0


class Plan(NamedTuple):
    """How every leaf is reported and where every group is clipped."""

    modes: dict[int, Mode]
    families: tuple[tuple[Family, tuple[int, ...]], ...]  # clipped after the whole pass; with the groups' numbers
    step_clippers: dict[Path, tuple[Family, ...]]  # clipped within one step of a loop

    def parts(self) -> list[ReportedUse]:
        """What is reported to the end of the pass by taps."""
        members = [m for family, _ in self.families for m in family.members]
        return [part for m in members for part in m.parts if self.modes[m.leaf] in (Mode.FACTORS, Mode.GRADIENT)]


def plan_norms(traced: TracedLoss, groups: Groups) -> Plan:
    """For norms alone, where no product is worth keeping."""
    return _assign(traced, groups, "ghost", "ghost", keep_products=False)


def make_plan(
    traced: TracedLoss, groups: Groups, method: str, batch_size: int, allowance_bytes: float | None = None
) -> Plan:
    """Decide for every family of groups where its norms are found and its sums are made.

    `"auto"` clips in one pass, unless the factors of groups that are complete only at the end of it, kept out of loops
    and checkpoints for this alone, need more memory than allowed. Then these groups share a second pass.
    """
    if method != "auto":
        return _assign(traced, groups, method, method)
    one_pass, two_passes = _assign(traced, groups, "fused", "fused"), _assign(traced, groups, "fused", "ghost")
    limit = FACTOR_ALLOWANCE * traced.num_bytes if allowance_bytes is None else allowance_bytes
    return one_pass if batch_size * factor_bytes(one_pass, two_passes) <= limit else two_passes


def factor_bytes(one_pass: Plan, two_passes: Plan) -> int:
    """What only one pass keeps of each example, where nothing else would: outside loops and checkpoints XLA keeps the
    same arrays for either, as the second pass is found to repeat the first."""
    without = {part.key for part in two_passes.parts()}
    parts = [part for part in one_pass.parts() if part.key not in without]
    return sum(part.num_bytes for part in parts if part.loops or part.site.remat)


def _assign(traced: TracedLoss, groups: Groups, method: str, at_the_end: str, *, keep_products: bool = True) -> Plan:
    """`method` for groups that are complete in one use or in one step of a loop, `at_the_end` for the others."""
    modes: dict[int, Mode] = {}
    top: list[tuple[Family, tuple[int, ...]]] = []
    step_clippers: dict[Path, list[Family]] = {}
    for leaves in _families(groups):
        body = None if method == "ghost" else _complete_in(traced, groups, leaves)
        if method == "fused" and len(leaves) == 1 and _in_one_use(traced, groups, leaves[0], body):
            modes[leaves[0]] = Mode.CLIP
            continue
        if body is not None:
            modes.update(dict.fromkeys(leaves, Mode.FACTORS))
            last = clipped_last(_family(traced, groups, leaves, body, modes)[0])
            for leaf in leaves:
                if (last is None or leaf != last.leaf) and _keeps_product(traced, leaf, body):
                    modes[leaf] = Mode.GRADIENT
            step_clippers.setdefault(body, []).append(_family(traced, groups, leaves, body, modes)[0])
            continue
        for leaf in leaves:
            sites = list(traced.sites_of(leaf).values())
            if _steps_add_up(sites, None):
                modes[leaf] = Mode.GHOST if at_the_end == "ghost" else Mode.FACTORS
                # Outside loops and checkpoints a second pass has XLA keep the factors, too.
                here = at_the_end != "ghost" or not (sites[0].loops or sites[0].remat)
                # A smaller group may be complete early; XLA then drops what was reported for it.
                flat = len(leaves) == len(groups.of_leaf)
                if keep_products and here and _keeps_product(traced, leaf, None, flat, at_the_end != "ghost"):
                    modes[leaf] = Mode.GRADIENT
            else:
                modes[leaf] = Mode.FACTORS if joins(sites) and not whole_is_smaller(traced, leaf) else Mode.WHOLE
        family, numbers = _family(traced, groups, leaves, None, modes)
        members = tuple(m for m in family.members if modes[m.leaf] is not Mode.GHOST)
        top.append((dataclasses.replace(family, members=members), numbers))
    return Plan(modes, tuple(top), {body: tuple(found) for body, found in step_clippers.items()})


def _families(groups: Groups) -> list[list[int]]:
    """Leaves that share groups, directly or through others."""
    families: list[tuple[set[int], list[int]]] = []
    for leaf, mine in enumerate(groups.of_leaf):
        touched = [f for f in families if f[0] & set(mine)]
        merged = (set(mine).union(*(f[0] for f in touched)), sorted([leaf, *(x for f in touched for x in f[1])]))
        families = [f for f in families if f not in touched] + [merged]
    return [leaves for _, leaves in families]


def _complete_in(traced: TracedLoss, groups: Groups, leaves: Sequence[int]) -> Path | None:
    """The loop body in one step of which all of a group's gradients are made, each step being another group."""
    of_leaf = groups.of_leaf[leaves[0]]
    depth = len(groups.stacks[leaves[0]])
    if depth == 0 or len(set(of_leaf)) < len(of_leaf) or any(groups.of_leaf[x] != of_leaf for x in leaves):
        return None
    bodies = set()
    for leaf in leaves:
        sites = list(traced.sites_of(leaf).values())
        for site in sites:
            if len(site.loops) < depth or not all(loop.cuts for loop in site.loops[:depth]):
                return None
            bodies.add(site.loops[depth - 1].body)
        if len(bodies) > 1:
            return None
        (body,) = bodies
        if not _steps_add_up(sites, body) and not joins(sites):
            return None
    return bodies.pop()


def _in_one_use(traced: TracedLoss, groups: Groups, leaf: int, body: Path | None) -> bool:
    """Whether the whole gradient of each of the leaf's groups is made at one run of one equation."""
    sites = list(traced.sites_of(leaf).values())
    complete = body is not None or (len(groups.of_leaf[leaf]) == 1 and not sites[0].loops)
    return complete and len(sites) == 1 and sites[0].isometric and not after(sites[0].loops, body)


def _steps_add_up(sites: Sequence[Site], body: Path | None) -> bool:
    """Whether the squared norms at single uses, inside a body, sum to the leaf's."""

    def steps(site: Site) -> int:
        # Where a gradient is kept as it is, the contributions of several steps are added before it is squared.
        return math.prod(loop.length for loop in after(site.loops, body) if not loop.cuts)

    return adds_up(sites, [steps(site) for site in sites])


def _keeps_product(traced: TracedLoss, leaf: int, body: Path | None, flat: bool = False, one_pass: bool = True) -> bool:
    """Whether an example's gradient of a leaf, from which its exact norm is found, is kept instead of its factors.

    It is where it is smaller. `flat` says that one of the two is held until the end, for a norm over everything.
    """
    sites = list(traced.sites_of(leaf).values())
    site = sites[0]
    if len(sites) > 1 or not site.use.held_up_to or not site.use.factor_operands:
        return False
    if not _steps_add_up(sites, body):
        return False
    norm = site.use.norm_cost(site.cts)
    # A gradient that is held anyway has its exact norm for nothing, also where norms may be estimated.
    free = ("product", "Hutchinson", "Hutch++") if flat and one_pass else ("product",)
    factors = sum(math.prod(x.shape) * x.dtype.itemsize for x in (*site.operands.values(), *site.cts))
    gradient = math.prod(site.use.weight_shape(site.cts)) * wide_dtype(site.cts[0].dtype).itemsize
    if norm.rule in free and gradient < factors:
        return True
    # What a loop or a checkpoint would let go is held for clipping alone, and shall be as small as it can be.
    if not flat or site.use.held_up_to <= 1 or site.loops or site.remat:
        return False
    if site.use.choice.rule == "gram" or norm.rule not in ("product", "Gram"):
        return False
    seconds, apart = default_machine().seconds, norm.cost + site.use.sum_cost(site.cts)
    return gradient <= site.use.held_up_to * factors and seconds(site.use.held_cost(site.cts).cost) < seconds(apart)


def whole_is_smaller(traced: TracedLoss, leaf: int) -> bool:
    """Whether the gradient of a leaf that is used several times takes no more room than the factors of its uses."""
    sites = list(traced.sites_of(leaf).values())
    if traced.randomized is not None or leaf in traced.projections or leaf in traced.parts:
        return False
    if leaf in traced.rules or not all(site.whole and site.cts for site in sites):
        return False
    # An example's rows of a table are added up before anything else is done with them.
    if all(site.use.rows(site.cts) is not None for site in sites):
        return False
    size = lambda shapes: sum(math.prod(x.shape) * x.dtype.itemsize for x in shapes)
    runs = lambda site: math.prod(loop.length for loop in site.loops if not loop.cuts)
    factors = sum(runs(site) * size((*site.operands.values(), *site.cts)) for site in sites)
    site = sites[0]
    whole = math.prod(site.use.weight_shape(site.cts)) * wide_dtype(site.cts[0].dtype).itemsize
    return whole <= WHOLE_GRADIENTS * factors


def holds_gradients(traced: TracedLoss, leaf: int) -> bool:
    """Whether some method adds up whole gradients of a leaf, one for each example."""
    sites = list(traced.sites_of(leaf).values())
    return not _steps_add_up(sites, None) or _keeps_product(traced, leaf, None, flat=True)


def _family(
    traced: TracedLoss, groups: Groups, leaves: Sequence[int], body: Path | None, modes: dict[int, Mode]
) -> tuple[Family, tuple[int, ...]]:
    """A family reported to a body (None: to the end of the pass), and the numbers of its groups."""
    numbers = tuple(sorted({g for leaf in leaves for g in groups.of_leaf[leaf]}))

    def member(leaf: int) -> FamilyLeaf:
        mine = (0,) if body is not None else tuple(numbers.index(g) for g in groups.of_leaf[leaf])
        if modes[leaf] is Mode.WHOLE:
            return FamilyLeaf(leaf, (_whole_gradient(traced, leaf, len(groups.stacks[leaf])),), mine)
        sites = traced.sites_of(leaf)
        product = modes[leaf] is Mode.GRADIENT
        parts = (ReportedUse(key, site, after(site.loops, body), product) for key, site in sites.items())
        return FamilyLeaf(leaf, tuple(parts), mine)

    count = 1 if body is not None else len(numbers)
    return Family(tuple(member(leaf) for leaf in leaves), count), numbers


def _whole_gradient(traced: TracedLoss, leaf: int, depth: int) -> ReportedUse:
    """A leaf's whole gradient as a report of its own."""
    loops = tuple(Loop((-1, d), n, True) for d, n in enumerate(traced.stacks[leaf][:depth]))
    own = Escaped(None, 0, NormChoice(examples=traced.examples))
    site = Site(leaf, own, True, (), None, (), True, loops, {}, ())
    return ReportedUse(whole_gradient_key(leaf), site, loops)


def whole_gradient_key(leaf: int) -> UseKey:
    """The name under which a leaf's whole gradient is reported."""
    return ((), LeafOperand(-1, leaf))
