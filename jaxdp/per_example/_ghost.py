"""The ghost method: norms in one backward pass, the weighted sum in a second one, no gradient stored."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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
        rewriter = Rewriter(lambda leaf: slots[groups.of_leaf[leaf]], {})
        return _run(self.closed, self.used, rewriter, leaves, example, totals, owns)


def trace(loss: Callable, params: PyTree, batch: PyTree) -> Program:
    """Trace the loss of one example and decide, leaf by leaf, how its norm is found."""
    example = example_structs(batch)
    closed = jax.make_jaxpr(lambda p, x: loss(p, x)[0])(params, example)
    closed, used = dead_code_eliminated(closed)
    leaves = jax.tree.leaves(params)
    rewriter = Rewriter(lambda leaf: jnp.zeros(()), {})
    totals = _zero_totals(leaves)
    jax.eval_shape(lambda p, x, t: _run(closed, used, rewriter, p, x, t, {}), leaves, example, totals)
    sites = tuple(rewriter.sites.values())
    own = []
    for leaf, name in enumerate(leaf_names(params, "params")):
        mine = [site for site in sites if site.leaf == leaf]
        if not mine:
            raise ValueError(
                f"{name} does not reach the loss, so its gradient is always zero: leave it out of params "
                "(close over it in the loss), or it would be trained on noise alone."
            )
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


def _zero_totals(leaves: Sequence[Array]) -> list[Array]:
    return [jnp.zeros(x.shape, wide_dtype(x.dtype)) for x in leaves]


class Ghost(NamedTuple):
    """One microbatch, linearised: its forward pass is shared by all pulls."""

    values: Float[Array, " batch"]
    pull: Callable
    gates: Gates
    groups: Groups
    reports_own: tuple[int, ...]
    treedef: Any

    def squared_norms(self) -> Float[Array, "batch groups"]:
        """Squared gradient norm of every example in every group: one backward pass."""
        no_weights = {key: jnp.zeros_like(gate) for key, gate in self.gates.items()}
        _, owns, norms = self.pull((jnp.ones_like(self.values), no_weights))
        for leaf in self.reports_own:
            squares = jnp.square(owns[leaf])
            group = self.groups.of_leaf[leaf]
            norms = norms.at[:, group].add(jnp.sum(squares.reshape(squares.shape[0], -1), axis=1).astype(norms.dtype))
        return norms

    def weighted_sum(self, weights: Float[Array, "batch groups"]) -> PyTree:
        """Weighted sum of the examples' gradients: one backward pass, each use contracted over the batch at once."""
        # Without the barrier XLA would merge this pass with the norms' and keep all cotangents in between.
        ones, weights = jax.lax.optimization_barrier((jnp.ones_like(self.values), weights))

        def gate_weight(leaf: int, gate: Array) -> Array:
            own = weights[:, self.groups.of_leaf[leaf]]
            return jnp.broadcast_to(own.reshape((-1,) + (1,) * (gate.ndim - 1)), gate.shape).astype(gate.dtype)

        chosen = {(path, port): gate_weight(port.leaf, gate) for (path, port), gate in self.gates.items()}
        totals, _, _ = self.pull((ones, chosen))
        return self.treedef.unflatten(totals)


def ghost(loss: Callable, params: PyTree, batch: PyTree, groups: Groups) -> Ghost:
    """Linearise the tapped loss of one microbatch; `loss` returns (value, aux)."""
    program = trace(loss, params, batch)
    leaves, treedef = jax.tree.flatten(params)
    size = jax.tree.leaves(batch)[0].shape[0]
    totals = _zero_totals(leaves)
    owns = {i: jnp.zeros((size, *totals[i].shape), totals[i].dtype) for i in program.reports_own}
    slots = jnp.zeros((size, len(groups)), jnp.float32)

    def batched(totals: Any, owns: Any, slots: Any) -> tuple[Array, Gates]:
        run = lambda x, own, slot: program.run(leaves, x, totals, own, slot, groups)
        return jax.vmap(run)(batch, owns, slots)

    (values, gates), pull = jax.vjp(batched, totals, owns, slots)
    return Ghost(values, pull, gates, groups, program.reports_own, treedef)
