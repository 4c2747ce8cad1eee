"""The examples' clipped sum from either form in which per-example gradients come."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jaxdp._shown import of_shapes
from jaxdp.norms import EXACT, Norm, certified_norm
from jaxdp.numerics._wide import is_complex
from jaxdp.per_example import (
    Groups,
    PerExampleGrads,
    Slack,
    resolve_groups,
    slack_of_arrays,
    stacked_certificates,
    stacked_weighted_sum,
)
from jaxdp.transforms._clipped_sum import ClippedSum, describe, refuse_masked

PyTree = Any


def resolved_groups(updates: PyTree, params: PyTree | None, spec: Any) -> Groups:
    """The groups of these gradients: of a traced loss, those that tell its scanned layers apart."""
    return updates.groups(spec) if isinstance(updates, PerExampleGrads) else resolve_groups(spec, params)


def check_examples(name: str, updates: PyTree, params: PyTree | None) -> None:
    """Refuse what is neither lazy per-example gradients nor a pytree with a leading batch axis."""
    if not isinstance(updates, PerExampleGrads):
        _check_stacked(name, updates, params)


def clip_and_sum(
    updates: PyTree,
    groups: Groups,
    weight_fn: Any,
    thresholds: Float[Array, " groups"],
    norm: Norm,
    key: PRNGKeyArray | None,
) -> PyTree:
    """Each example's gradient times its weights, summed; of a checked kind. A pytree's norms are always exact."""
    if isinstance(updates, PerExampleGrads):
        return updates.clipped_sum(weight_fn, groups, thresholds, norm, key)
    return _stacked(updates, groups, weight_fn, thresholds)[0]


def slack_of(updates: PyTree, norm: Norm = EXACT) -> Slack:
    """What rounding may add to an example's influence on the sum, as a share of the clipping norm."""
    if isinstance(updates, PerExampleGrads):
        return updates.slack(norm)
    leaves = jax.tree.leaves(updates)
    return slack_of_arrays(leaves[0].shape[0], [leaf.dtype for leaf in leaves])


def sum_shardings(updates: PyTree, tree: PyTree) -> PyTree | None:
    """How the examples' sum is cut over the devices of a mesh, if that was said."""
    return updates.sum_shardings(tree) if isinstance(updates, PerExampleGrads) else None


class WithNorms(NamedTuple):
    """A clipped sum, the squared norms that it was made from, and which rows are examples."""

    __repr__ = of_shapes

    tree: PyTree
    squared_norms: Float[Array, "batch groups"]
    mask: Bool[Array, " batch"]


def clip_and_sum_with_norms(
    updates: PyTree, groups: Groups, weight_fn: Any, thresholds: Float[Array, " groups"]
) -> WithNorms:
    """`clip_and_sum` together with the norms; every row of a pytree is an example."""
    if isinstance(updates, PerExampleGrads):
        return WithNorms(*updates.clipped_sum_and_norms(weight_fn, groups, thresholds), updates.mask)
    tree, norms = _stacked(updates, groups, weight_fn, thresholds)
    return WithNorms(tree, norms, jnp.ones(norms.shape[0], bool))


def _stacked(updates: PyTree, groups: Groups, weight_fn: Any, thresholds: Array) -> tuple[PyTree, Array]:
    size = jax.tree.leaves(updates)[0].shape[0]
    found = stacked_certificates(updates, groups, size)
    certified = certified_norm(jnp.swapaxes(found, 1, 2), slack_of(updates).per_example)
    finite = jnp.all(jnp.isfinite(certified), axis=1, keepdims=True)
    weights = jnp.where(finite, weight_fn(jnp.square(certified), thresholds[None]), 0.0)
    return stacked_weighted_sum(updates, weights, groups), found[:, 0]


def _check_stacked(name: str, updates: PyTree, params: PyTree | None) -> None:
    if isinstance(updates, ClippedSum):
        raise TypeError(f"{name} was given a sum that is already clipped: use one clip in a chain.")
    if params is None:
        raise TypeError(
            f"{name} was given {describe(updates)} without params, so it cannot tell per-example gradients from "
            "averaged ones: pass jaxdp.per_example_grad(loss)(params, batch), or call update(grads, state, params)."
        )
    refuse_masked(updates, name)
    if jax.tree.structure(updates) != jax.tree.structure(params):
        raise TypeError(f"{name} was given gradients whose structure is not that of params.")
    sizes = set()
    leaves = jax.tree_util.tree_leaves_with_path(updates)
    for (path, leaf), param in zip(leaves, jax.tree.leaves(params), strict=True):
        where = "grads" + jax.tree_util.keystr(path)
        if leaf.shape == param.shape:
            raise TypeError(
                f"{where} has the parameter's own shape {leaf.shape}, so it is a sum or mean over examples: "
                "clipping that bounds nobody's influence; pass jaxdp.per_example_grad(loss)(params, batch)."
            )
        if leaf.shape[1:] != param.shape:
            raise TypeError(
                f"{where} has shape {leaf.shape} where [batch] + {param.shape} is needed: give one gradient for each "
                "example, and put optax.flatten, MultiSteps and every other wrapper behind the noise."
            )
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(f"{where} has dtype {leaf.dtype}: only floating-point gradients have a norm that bounds.")
        if is_complex(leaf) != is_complex(param):
            raise TypeError(
                f"{where} has dtype {leaf.dtype} where the parameter has {param.dtype}: give what jax.grad does, "
                "complex where the parameter is and real where it is real."
            )
        sizes.add(leaf.shape[0])
    if len(sizes) != 1:
        raise TypeError(f"the gradients have different numbers of examples: {sorted(sizes)}.")
