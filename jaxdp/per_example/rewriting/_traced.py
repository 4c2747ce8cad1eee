"""The loss of one example, traced once: its jaxpr and where each parameter is used."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdp._shown import of_shapes
from jaxdp.norms import TERMS, Randomized, Rule
from jaxdp.numerics._wide import wide_dtype
from jaxdp.per_example.rewriting._overrides import Rules, check_choice, rules_of
from jaxdp.per_example.rewriting._rewrite import Rewriter
from jaxdp.per_example.rewriting._sites import Site, adds_up, joins
from jaxdp.per_example.rewriting._taps import UseKey
from jaxdp.per_example.subspace._projection import Projection
from jaxdp.per_example.tracing._check import example_structs, leaf_names
from jaxdp.per_example.tracing._compat import dead_code_eliminated
from jaxdp.per_example.tracing._pitfalls import warn_of_shared_keys, watching_batch_statistics
from jaxdp.per_example.tracing._values import Plain, Shadow, Value, Weight

PyTree = Any


@dataclasses.dataclass(frozen=True)
class TracedLoss:
    """The loss of one example as a jaxpr, and every use of every leaf.

    Attributes:
      closed: the jaxpr.
      used: which of its inputs (leaves of the parameters, then of the example) it needs.
      sites: all taps.
      stacks: for each leaf, the leading axes that loops slice it along at all its uses.
      rules: for leaves for which the user chose, how the norms at their uses are found.
      randomized: the estimator of norms, where they need not be exact.
      num_bytes: the parameters' size.
      projections: for leaves whose gradients are found in a subspace, which one.
      parts: for leaves that several devices hold, in how many parts along each axis.
      examples: how many examples' terms meet in one product of a sum: those of a microbatch.
      tables: leaves of which picking public rows is a lookup like others, and no view.
    """

    __repr__ = of_shapes

    closed: Any
    used: list[bool]
    sites: dict[UseKey, Site]
    stacks: tuple[tuple[int, ...], ...]
    rules: dict[int, Rule]
    randomized: Randomized | None
    num_bytes: int
    projections: dict[int, Projection] = dataclasses.field(default_factory=dict)
    parts: dict[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    examples: int = 1
    tables: frozenset[int] = frozenset()

    def sites_of(self, leaf: int) -> dict[UseKey, Site]:
        """The uses of one leaf."""
        return {key: site for key, site in self.sites.items() if site.leaf == leaf}

    def evaluate(self, rewriter: Rewriter, weights: Sequence[Weight], example: PyTree) -> tuple[Any, dict[UseKey, Any]]:
        """The loss of one example, and what its taps emit."""
        inputs: list[Value] = [*weights, *(Plain(x, fixed=False, active=False) for x in jax.tree.leaves(example))]
        used_inputs = [x for x, u in zip(inputs, self.used, strict=True) if u]
        outs, emitted = rewriter.run(self.closed.jaxpr, self.closed.consts, used_inputs, ())
        (value,), more = rewriter.escape_all(outs, ())
        return value.value, emitted | more


def loss_jaxpr(loss: Callable, params: PyTree, example: PyTree) -> tuple[Any, list[bool]]:
    """The jaxpr of one example's loss, and which of its inputs (leaves of params, then of the example) it uses."""
    with watching_batch_statistics():
        closed = jax.make_jaxpr(lambda p, x: loss(p, x)[0])(params, example)
    return dead_code_eliminated(closed)


def weight_of(leaf: int, value: Array, shadow: Shadow) -> Weight:
    """A parameter as the rewriter's input."""
    shape = jnp.shape(value)
    return Weight(
        value=value,
        shadows={leaf: shadow},
        isometric=True,
        region=tuple((0, n) for n in shape),
        aligned=True,
        axes=tuple(range(len(shape))),
        leaf_shape=shape,
        stack=(),
        steady=True,
        cuts=(),
    )


def zero_total(leaf: Array, projection: Projection | None = None) -> Array:
    """What a weighted sum is the cotangent of."""
    shape = jnp.shape(leaf)
    return jnp.zeros(shape if projection is None else projection.shape(shape), wide_dtype(leaf.dtype))


def trace(
    loss: Callable,
    params: PyTree,
    batch: PyTree,
    rules: Rules | None = None,
    randomized: Randomized | None = None,
    projections: dict[int, Projection] | None = None,
    parts: dict[int, tuple[int, ...]] | None = None,
    examples: int = 1,
) -> TracedLoss:
    """Trace the loss of one example and find every use of every leaf."""
    example = example_structs(batch)
    closed, used = loss_jaxpr(loss, params, example)
    leaves = jax.tree.leaves(params)
    warn_of_shared_keys(closed, sum(used[: len(leaves)]))
    names = leaf_names(params, "params")
    num_bytes = sum(math.prod(jnp.shape(x)) * x.dtype.itemsize for x in leaves)
    subspaces = projections or {}
    traced = TracedLoss(
        closed, used, {}, (), rules_of(rules, names), randomized, num_bytes, subspaces, parts or {}, examples
    )
    picked = _find_sites(traced, leaves, example)
    # Rows picked by public numbers are a view of a matrix; of a table that has other lookups they are one more.
    tables = frozenset(leaf for leaf in picked if not _has_norm_at_uses(traced, leaf))
    if tables:
        traced = dataclasses.replace(traced, sites={}, tables=tables)
        _find_sites(traced, leaves, example)
    stacks = []
    for leaf, name in enumerate(names):
        found = {site.stack for site in traced.sites.values() if site.leaf == leaf}
        if not found:
            raise unreached(name)
        stacks.append(found.pop() if len(found) == 1 else ())
    check_choice(rules, names, list(traced.sites.values()))
    return dataclasses.replace(traced, stacks=tuple(stacks))


def _find_sites(traced: TracedLoss, leaves: Sequence[Any], example: PyTree) -> set[int]:
    """Fill the table of uses; returns the leaves of which public rows are picked."""
    rewriter = Rewriter(
        {},
        {},
        sites=traced.sites,
        rules=traced.rules,
        randomized=traced.randomized,
        projections=traced.projections,
        parts=traced.parts,
        tables=traced.tables,
        examples=traced.examples,
    )

    def look(leaves: list[Any], example: PyTree) -> Array:
        shadow = lambda x, p: Shadow(zero_total(x, p), None, jnp.zeros(TERMS, jnp.float32), basis=p and p.matrix)
        weights = [weight_of(i, x, shadow(x, traced.projections.get(i))) for i, x in enumerate(leaves)]
        return traced.evaluate(rewriter, weights, example)[0]

    jax.eval_shape(look, list(leaves), example)
    return rewriter.picked


def _has_norm_at_uses(traced: TracedLoss, leaf: int) -> bool:
    """Whether a leaf's norm follows from its uses, one by one or together, without a gradient of its size."""
    sites = list(traced.sites_of(leaf).values())
    repeats = [math.prod(loop.length for loop in site.loops if not loop.cuts) for site in sites]
    return adds_up(sites, repeats) or joins(sites)


def unreached(name: str) -> ValueError:
    """The error for a parameter without a gradient."""
    return ValueError(
        f"{name} does not reach the loss, so its gradient is always zero: leave it out of params "
        "(close over it in the loss), or it would be trained on noise alone."
    )
