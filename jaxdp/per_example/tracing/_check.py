"""Checks of what a user hands in: each failure is one sentence that names the leaf and the fix."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdp._numbers import is_whole
from jaxdp._shown import setting

PyTree = Any


def leaf_name(path: tuple[Any, ...], root: str) -> str:
    """The leaf's path as a reader would write it, e.g. `params['dense']['kernel']`."""
    return root + jax.tree_util.keystr(path)


def leaf_names(tree: PyTree, root: str) -> list[str]:
    """Names of all leaves, in flattening order."""
    return [leaf_name(path, root) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def check_params(params: PyTree) -> None:
    """Refuse leaves that have no gradient."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError("params has no leaves: there is nothing to train.")
    for path, leaf in leaves:
        name = leaf_name(path, "params")
        dtype = getattr(leaf, "dtype", None)
        if dtype is None:
            raise TypeError(f"{name} is {type(leaf).__name__}, not an array: keep it outside params (close over it).")
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"{name} has dtype {dtype}, which has no gradient: only floating-point leaves can be trained, "
                "so close over it in the loss or carry it in the batch."
            )


def check_batch(batch: PyTree, mask: PyTree | None) -> int:
    """The common leading axis of all leaves of the batch."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    if not leaves:
        raise ValueError("batch has no leaves: give at least one array with a leading batch axis.")
    first = leaf_name(leaves[0][0], "batch")
    size = None
    for path, leaf in leaves:
        name, shape = leaf_name(path, "batch"), np.shape(leaf)
        if isinstance(leaf, str | bytes) or getattr(getattr(leaf, "dtype", None), "kind", "") in tuple("OSUTmM"):
            kind = getattr(leaf, "dtype", type(leaf).__name__)
            raise TypeError(
                f"{name} holds {kind}, which JAX cannot compute with: leave it out of the batch, or encode it "
                "(texts as numbers of tokens, classes as whole numbers)."
            )
        if not shape:
            raise ValueError(
                f"{name} is a scalar: every leaf of the batch needs a leading batch axis, "
                "so close over values that all examples share."
            )
        if size is None:
            size = shape[0]
        elif shape[0] != size:
            raise ValueError(
                f"{name} has {shape[0]} examples where {first} has {size}: "
                "all leaves of the batch need the same leading axis."
            )
    assert size is not None
    if size == 0:
        raise ValueError("batch has no examples: pad an empty Poisson sample to one masked example.")
    if mask is not None:
        if np.shape(mask) != (size,):
            raise ValueError(f"mask has shape {np.shape(mask)} where the batch needs ({size},).")
        if jnp.asarray(mask).dtype != jnp.bool_:
            raise TypeError(f"mask has dtype {jnp.asarray(mask).dtype}: give booleans, True for real examples.")
    return size


def check_microbatch_size(microbatch_size: Any, batch_size: int) -> int | None:
    """None when one microbatch holds the whole batch."""
    if microbatch_size is None:
        return None
    if not (is_whole(microbatch_size) and 1 <= microbatch_size <= batch_size):
        raise ValueError(
            f"microbatch_size is {setting(microbatch_size)}: give a whole number from 1 to the padded batch's "
            f"{batch_size}."
        )
    return None if microbatch_size == batch_size else int(microbatch_size)


def check_loss_output(out: PyTree, has_aux: bool) -> None:
    """Refuse a loss of one example that is not a floating-point scalar."""
    if has_aux:
        if not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError("has_aux=True, but the loss does not return a pair (value, aux).")
        out = out[0]
    leaves = jax.tree.leaves(out)
    if len(leaves) != 1 or jax.tree.structure(out) != jax.tree.structure(0):
        raise TypeError(
            "the loss returns a container where one scalar is needed: return the loss of one example, "
            "or (value, aux) with has_aux=True."
        )
    if leaves[0].shape != ():
        raise ValueError(
            f"the loss returns shape {leaves[0].shape} for one example: it must be a scalar, "
            "so reduce over the example's own axes inside the loss, or give a loss that was written for batches a "
            "batch of one: loss(params, jax.tree.map(lambda x: x[None], example))[0]."
        )
    if not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        raise TypeError(f"the loss has dtype {leaves[0].dtype}: it must be a real floating-point number.")


def example_structs(batch: PyTree) -> PyTree:
    """Shapes and dtypes of one example, without the batch axis."""

    def struct(x: Any) -> jax.ShapeDtypeStruct:
        dtype = x.dtype if hasattr(x, "dtype") else jnp.asarray(x).dtype
        # Of NumPy's 64 bits JAX takes 32, unless it was told otherwise; keys have a dtype of another kind.
        plain = isinstance(dtype, np.dtype)
        return jax.ShapeDtypeStruct(np.shape(x)[1:], jax.dtypes.canonicalize_dtype(dtype) if plain else dtype)

    return jax.tree.map(struct, batch)


def call_loss(loss: Callable, has_aux: bool) -> Callable:
    """The loss with its contract checked at trace time, always returning (value, aux)."""

    def checked(params: PyTree, example: PyTree) -> tuple[Any, PyTree]:
        out = loss(params, example)
        check_loss_output(out, has_aux)
        return out if has_aux else (out, ())

    return checked
