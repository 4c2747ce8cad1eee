"""The reference method: `vmap(grad)`, every example's gradient in memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdp._shown import of_shapes
from jaxdp.norms import of_squared_norms
from jaxdp.numerics._wide import as_like, as_real, wide
from jaxdp.per_example.grouping._by_group import add_up, spread
from jaxdp.per_example.grouping._groups import Groups

PyTree = Any


def stacked_certificates(grads: PyTree, groups: Groups, examples: int) -> Float[Array, "batch 4 groups"]:
    """What is known of the norms of gradients with a leading batch axis, which are summed as they are."""

    def certificates(leaf: Array, entries: int) -> Array:
        parts = as_real(wide(leaf)).reshape(leaf.shape[0], entries, -1)
        squares = jnp.einsum("bei,bei->be", parts, parts, precision="highest")
        return of_squared_norms(squares, parts.shape[-1], parts.dtype, examples, axis=1)

    found = zip(jax.tree.leaves(grads), groups.of_leaf, strict=True)
    return add_up(len(groups), [(mine, certificates(leaf, len(mine))) for leaf, mine in found])


def stacked_weighted_sum(grads: PyTree, weights: Float[Array, "batch groups"], groups: Groups) -> PyTree:
    """Sum over the batch of weight * gradient; a weight of zero drops the example even if it is NaN."""

    def contract(leaf: Array, mine: tuple[int, ...]) -> Array:
        parts = as_real(wide(leaf))
        entries = parts.reshape(leaf.shape[0], len(mine), -1)
        weight = spread(weights, mine).astype(entries.dtype)
        kept = jnp.where(weight[..., None] == 0, 0, entries)
        total = jnp.einsum("bei,be->ei", kept, weight, precision="highest").reshape(parts.shape[1:])
        return as_like(total, wide(leaf))

    leaves, treedef = jax.tree.flatten(grads)
    return treedef.unflatten([contract(x, g) for x, g in zip(leaves, groups.of_leaf, strict=True)])


class Materialized(NamedTuple):
    """One microbatch with all its gradients."""

    __repr__ = of_shapes

    values: Array
    aux: PyTree
    grads: PyTree


def materialize(loss: Callable, params: PyTree, batch: PyTree) -> Materialized:
    """Run `vmap(grad)` on one microbatch; `loss` returns (value, aux)."""
    grad = jax.vmap(jax.value_and_grad(loss, has_aux=True), in_axes=(None, 0))
    (values, aux), grads = grad(params, batch)
    return Materialized(values, aux, grads)
