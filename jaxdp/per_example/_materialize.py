"""The reference method: `vmap(grad)`, every example's gradient in memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdp.per_example._check import example_structs, leaf_names
from jaxdp.per_example._groups import Groups
from jaxdp.per_example._program import loss_jaxpr, unreached
from jaxdp.per_example._values import wide_dtype

PyTree = Any


def stacked_squared_norms(grads: PyTree, groups: Groups) -> Float[Array, "batch groups"]:
    """Squared norms per example and group of a pytree with a leading batch axis."""
    sums: list[Any] = [0.0] * len(groups)
    for leaf, (group,) in zip(jax.tree.leaves(grads), groups.of_leaf, strict=True):
        wide = leaf.astype(wide_dtype(leaf.dtype)).reshape(leaf.shape[0], -1)
        sums[group] = sums[group] + jnp.einsum("bi,bi->b", wide, wide, precision="highest")
    return jnp.stack([s.astype(jnp.float32) for s in sums], axis=1)


def stacked_weighted_sum(grads: PyTree, weights: Float[Array, "batch groups"], groups: Groups) -> PyTree:
    """Sum over the batch of weight * gradient; a weight of zero drops the example even if it is NaN."""

    def contract(leaf: Array, group: int) -> Array:
        weight = weights[:, group].astype(wide_dtype(leaf.dtype))
        rows = weight.reshape((-1,) + (1,) * (leaf.ndim - 1))
        kept = jnp.where(rows == 0, 0, leaf.astype(weight.dtype))
        return jnp.einsum("b...,b->...", kept, weight, precision="highest")

    leaves, treedef = jax.tree.flatten(grads)
    return treedef.unflatten([contract(x, g) for x, (g,) in zip(leaves, groups.of_leaf, strict=True)])


class Materialized(NamedTuple):
    """One microbatch with all its gradients."""

    values: Array
    aux: PyTree
    grads: PyTree
    groups: Groups

    def squared_norms(self) -> Float[Array, "batch groups"]:
        """Squared gradient norm of every example in every group."""
        return stacked_squared_norms(self.grads, self.groups)

    def weighted_sum(self, weights: Float[Array, "batch groups"]) -> PyTree:
        """Weighted sum of the examples' gradients, float32 or better."""
        return stacked_weighted_sum(self.grads, weights, self.groups)


def materialize(loss: Callable, params: PyTree, batch: PyTree, groups: Groups) -> Materialized:
    """Run `vmap(grad)` on one microbatch; `loss` returns (value, aux)."""
    _, used = loss_jaxpr(loss, params, example_structs(batch))
    for name, is_used in zip(leaf_names(params, "params"), used, strict=False):
        if not is_used:
            raise unreached(name)
    grad = jax.vmap(jax.value_and_grad(loss, has_aux=True), in_axes=(None, 0))
    (values, aux), grads = grad(params, batch)
    return Materialized(values, aux, grads, groups)
