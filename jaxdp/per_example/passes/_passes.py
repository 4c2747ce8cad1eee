"""One microbatch: norms, sums and clipped sums from as few passes as a method needs."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxdp._shown import of_shapes
from jaxdp.norms import certified_norm
from jaxdp.per_example.grouping._groups import Groups, resolve_groups
from jaxdp.per_example.passes._forward_pass import ForwardPass, size_of
from jaxdp.per_example.passes._materialize import (
    materialize,
    stacked_certificates,
    stacked_weighted_sum,
)
from jaxdp.per_example.passes._probes import probe_keys
from jaxdp.per_example.planning._plan import Plan, make_plan, plan_norms
from jaxdp.per_example.rewriting._taps import Mode
from jaxdp.per_example.rewriting._traced import TracedLoss
from jaxdp.per_example.subspace._projection import project_stacked
from jaxdp.per_example.uses._clipping_weights import NO_WEIGHTS, ClippingWeights, clipping_weights

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Passes:
    """A loss with its parameters, traced: what is asked of one microbatch after the other."""

    __repr__ = of_shapes

    loss: Callable
    params: PyTree
    traced: TracedLoss
    method: str
    key: PRNGKeyArray | None = None
    limit: float = math.inf

    def squared_norms(self, batch: PyTree, groups: Groups, rows: Int[Array, " batch"]) -> Float[Array, "batch groups"]:
        """Certified norm of every example's gradient in every group, squared; `rows` are its place in the batch."""
        if self.method == "materialize":
            found = stacked_certificates(self._materialized(batch), groups, self.traced.examples)
        else:
            run = self._pass(batch, groups, plan_norms(self.traced, groups), rows=rows)
            found = run.certificates(jnp.ones(run.size, jnp.float32))
        return jnp.square(certified_norm(jnp.swapaxes(found, 1, 2), self.limit))

    def weighted_sum(self, batch: PyTree, weights: Float[Array, " batch"]) -> PyTree:
        """Sum of the examples' gradients with weights known beforehand: one backward pass, nothing kept."""
        groups = resolve_groups("all", self.params)
        if self.method == "materialize":
            return stacked_weighted_sum(self._materialized(batch), weights[:, None], groups)
        modes = dict.fromkeys(range(len(groups.of_leaf)), Mode.SUM)
        found = self._pass(batch, groups, Plan(modes, (), {}))
        return self._tree(found.pull(jnp.ones(found.size, jnp.float32), weights[:, None])[0])

    def clipped_sum(
        self,
        batch: PyTree,
        alive: Bool[Array, " batch"],
        groups: Groups,
        weight_fn: Callable,
        thresholds: Float[Array, " groups"] | None,
        rows: Int[Array, " batch"],
    ) -> tuple[Float[Array, "batch groups"], PyTree]:
        """Squared norms and the clipped sum. Examples that are not alive have norm zero and are left out."""
        weigh = clipping_weights(weight_fn, thresholds is not None, self.limit)
        if self.method == "materialize":
            grads = self._materialized(batch)
            found = jnp.where(alive[:, None, None], stacked_certificates(grads, groups, self.traced.examples), 0)
            weights = weigh(jnp.swapaxes(found, 1, 2), None if thresholds is None else thresholds[None, :])
            return found[:, 0], stacked_weighted_sum(grads, jnp.where(alive[:, None], weights, 0), groups)
        plan = make_plan(self.traced, groups, self.method, size_of(batch))
        found = self._pass(batch, groups, plan, weigh, thresholds, rows)
        certificates, totals = found.clipped(alive.astype(jnp.float32))
        return certificates[:, 0], self._tree(totals)

    def _pass(
        self,
        batch: PyTree,
        groups: Groups,
        plan: Plan,
        weigh: ClippingWeights = NO_WEIGHTS,
        thresholds: Array | None = None,
        rows: Int[Array, " batch"] | None = None,
    ) -> ForwardPass:
        leaves = jax.tree.leaves(self.params)
        keys = {} if rows is None or self.key is None else probe_keys(self.traced, self.key, rows)
        return ForwardPass(self.traced, leaves, batch, groups, plan, weigh, thresholds, keys)

    def _materialized(self, batch: PyTree) -> PyTree:
        grads = materialize(self.loss, self.params, batch).grads
        return project_stacked(grads, self.traced.projections)

    def _tree(self, leaves: Sequence[Array]) -> PyTree:
        return jax.tree.unflatten(jax.tree.structure(self.params), leaves)
