"""The ghost method: norms in one backward pass, the weighted sum in a second one, no gradient stored."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdp.per_example._groups import Groups
from jaxdp.per_example._program import trace, zero_totals
from jaxdp.per_example._rewrite import Gates

PyTree = Any


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
            group = self.groups.of_leaf[leaf][0]
            norms = norms.at[:, group].add(jnp.sum(squares.reshape(squares.shape[0], -1), axis=1).astype(norms.dtype))
        return norms

    def weighted_sum(self, weights: Float[Array, "batch groups"]) -> PyTree:
        """Weighted sum of the examples' gradients: one backward pass, each use contracted over the batch at once."""

        def gate_weight(leaf: int, gate: Array) -> Array:
            own = weights[:, self.groups.of_leaf[leaf][0]]
            return jnp.broadcast_to(own.reshape((-1,) + (1,) * (gate.ndim - 1)), gate.shape).astype(gate.dtype)

        chosen = {(path, port): gate_weight(port.leaf, gate) for (path, port), gate in self.gates.items()}
        # The same cotangent of the loss as for the norms: where layers are unrolled, XLA shares the backward pass.
        totals, _, _ = self.pull((jnp.ones_like(self.values), chosen))
        return self.treedef.unflatten(totals)


def ghost(loss: Callable, params: PyTree, batch: PyTree, groups: Groups) -> Ghost:
    """Linearise the tapped loss of one microbatch; `loss` returns (value, aux)."""
    program = trace(loss, params, batch)
    leaves, treedef = jax.tree.flatten(params)
    size = jax.tree.leaves(batch)[0].shape[0]
    totals = zero_totals(leaves)
    owns = {i: jnp.zeros((size, *totals[i].shape), totals[i].dtype) for i in program.reports_own}
    slots = jnp.zeros((size, len(groups)), jnp.float32)

    def batched(totals: Any, owns: Any, slots: Any) -> tuple[Array, Gates]:
        run = lambda x, own, slot: program.run(leaves, x, totals, own, slot, groups)
        return jax.vmap(run)(batch, owns, slots)

    (values, gates), pull = jax.vjp(batched, totals, owns, slots)
    return Ghost(values, pull, gates, groups, program.reports_own, treedef)
