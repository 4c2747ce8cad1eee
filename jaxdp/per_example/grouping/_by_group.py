"""From entries of leaves to clipping groups and back, by slices: compiled, a scatter or gather costs far more."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_FEW_TERMS = 4


def add_up(num_groups: int, pieces: Iterable[tuple[tuple[int, ...], Array]]) -> Float[Array, "*batch groups"]:
    """Sum over entries of each group; a piece is the groups of some entries, and their values `[*batch, entries]`."""
    terms: dict[tuple[int, ...], list[Array]] = {}
    for groups, values in pieces:
        if len(set(groups)) == 1:
            groups, values = groups[:1], jnp.sum(values, axis=-1, keepdims=True)
        terms.setdefault(groups, []).append(values)
    # Without the barrier XLA's algebraic simplifier rewrites long sums of reductions in circles, for half a minute.
    apart = {groups: jax.lax.optimization_barrier(found) for groups, found in terms.items()}
    sums: dict[tuple[int, ...], Any] = {groups: _total(found) for groups, found in apart.items()}
    whole = [g for g in sums if g == tuple(range(g[0], g[0] + len(g)))]
    whole = [g for g in whole if not any(set(g) & set(other) for other in sums if other != g)]
    columns: dict[int, Array] = {g[0]: sums[g] for g in whole}
    width = {g[0]: len(g) for g in whole}
    for groups, values in sums.items():
        if groups not in whole:
            for i, group in enumerate(groups):
                one = values[..., i : i + 1]
                columns[group] = columns[group] + one if group in columns else one
    missing = jnp.zeros_like(next(iter(sums.values()))[..., :1])
    found, at = [], 0
    while at < num_groups:
        found.append(columns.get(at, missing))
        at += width.get(at, 1)
    return jnp.concatenate(found, axis=-1) if len(found) > 1 else found[0]


def _total(terms: list[Array]) -> Array:
    if len(terms) <= _FEW_TERMS:
        return sum(terms[1:], terms[0])
    # As a product, which nothing is fused with: XLA would repeat a sum of all terms wherever a weight is used.
    ones = jnp.ones(len(terms), terms[0].dtype)
    return jnp.einsum("n...,n->...", jnp.stack(terms), ones, precision="highest")


def spread(values: Float[Array, "*batch groups"], groups: tuple[int, ...]) -> Float[Array, "*batch entries"]:
    """The values of the groups that a leaf's entries belong to."""
    first, axis = groups[0], values.ndim - 1
    if len(set(groups)) == 1:
        one = jax.lax.slice_in_dim(values, first, first + 1, axis=axis)
        return jnp.broadcast_to(one, (*values.shape[:-1], len(groups)))
    if groups == tuple(range(first, first + len(groups))):
        return jax.lax.slice_in_dim(values, first, first + len(groups), axis=axis)
    return jnp.stack([values[..., group] for group in groups], axis=-1)
