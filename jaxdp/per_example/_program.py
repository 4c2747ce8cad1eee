"""One example's loss as a tapped program: what is traced, and how each leaf's norm is found."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdp.per_example._check import example_structs, leaf_names
from jaxdp.per_example._compat import dead_code_eliminated
from jaxdp.per_example._groups import Groups
from jaxdp.per_example._rewrite import Gates, Rewriter, Site, weights_of
from jaxdp.per_example._values import Plain, wide_dtype

PyTree = Any


class Program(NamedTuple):
    """One example's loss as a jaxpr, and how each leaf is reported."""

    closed: Any
    used: list[bool]
    reports_own: tuple[int, ...]  # leaves whose per-example gradient is reported as it is
    sites: tuple[Site, ...]

    def run(
        self, leaves: Sequence[Array], example: PyTree, totals: Any, owns: Any, slots: Array, groups: Groups
    ) -> tuple[Array, Gates]:
        """The loss of one example, tapped."""
        rewriter = Rewriter(lambda leaf: slots[groups.of_leaf[leaf][0]], {})
        return _run(self.closed, self.used, rewriter, leaves, example, totals, owns)


def loss_jaxpr(loss: Callable, params: PyTree, example: PyTree) -> tuple[Any, list[bool]]:
    """The jaxpr of one example's loss, and which of its inputs (leaves of params, then of the example) it uses."""
    return dead_code_eliminated(jax.make_jaxpr(lambda p, x: loss(p, x)[0])(params, example))


def unreached(name: str) -> ValueError:
    """The error for a parameter without a gradient."""
    return ValueError(
        f"{name} does not reach the loss, so its gradient is always zero: leave it out of params "
        "(close over it in the loss), or it would be trained on noise alone."
    )


def trace(loss: Callable, params: PyTree, batch: PyTree) -> Program:
    """Trace the loss of one example and decide, leaf by leaf, how its norm is found."""
    example = example_structs(batch)
    closed, used = loss_jaxpr(loss, params, example)
    leaves = jax.tree.leaves(params)
    rewriter = Rewriter(lambda leaf: jnp.zeros(()), {})
    totals = zero_totals(leaves)
    jax.eval_shape(lambda p, x, t: _run(closed, used, rewriter, p, x, t, {}), leaves, example, totals)
    sites = tuple(rewriter.sites.values())
    own = []
    for leaf, name in enumerate(leaf_names(params, "params")):
        mine = [site for site in sites if site.leaf == leaf]
        if not mine:
            raise unreached(name)
        if not _norms_add_up(mine):
            own.append(leaf)
    return Program(closed, used, tuple(own), sites)


def _norms_add_up(sites: Sequence[Site]) -> bool:
    """Whether the squared norms found at these uses of one leaf sum to its own: no two touch the same entries."""

    def disjoint(a: Site, b: Site) -> bool:
        return any(a_hi <= b_lo or b_hi <= a_lo for (a_lo, a_hi), (b_lo, b_hi) in zip(a.box, b.box, strict=True))

    return all(s.isometric for s in sites) and all(disjoint(a, b) for a, b in combinations(sites, 2))


def _run(
    closed: Any,
    used: list[bool],
    rewriter: Rewriter,
    leaves: Sequence[Array],
    example: PyTree,
    totals: Any,
    owns: Any,
) -> tuple[Array, Gates]:
    inputs = [*weights_of(leaves, totals, owns), *(Plain(x, fixed=False) for x in jax.tree.leaves(example))]
    live = [x for x, u in zip(inputs, used, strict=True) if u]
    outs, gates = rewriter.run(closed.jaxpr, closed.consts, live, ())
    (value,), more = rewriter.escape_all(outs, ())
    return value.value, gates | more


def zero_totals(leaves: Sequence[Array]) -> list[Array]:
    return [jnp.zeros(x.shape, wide_dtype(x.dtype)) for x in leaves]
