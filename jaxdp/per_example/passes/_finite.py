"""Examples without a finite gradient are taken out of a batch before they can reach a sum: 0 * NaN is NaN."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdp.lowering._shards import apart, shards_of
from jaxdp.per_example.tracing._compat import has_equation
from jaxdp.per_example.tracing._convolution_layout import has_canonical_form

PyTree = Any


def with_donors(batch: PyTree, alive: Bool[Array, " batch"]) -> PyTree:
    """The batch with every row that is not alive replaced by one that is."""
    shards = shards_of(alive.shape[0])
    if shards == 1:
        rows = jnp.where(alive, jnp.arange(alive.shape[0]), jnp.argmax(alive))
        return jax.tree.map(lambda x: x[rows], batch)
    mine = apart(alive, shards)
    first = jnp.argmax(mine, axis=1)
    # The first shard that has one lends it to all: one example travels, no batch does.
    lends = jnp.arange(shards) == jnp.argmax(jnp.any(mine, axis=1))

    def lent(x: Array) -> Array:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(lent(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        rows = jax.vmap(lambda part, i: jax.lax.dynamic_index_in_dim(part, i, keepdims=False))(apart(x, shards), first)
        donor = jnp.sum(jnp.where(_column(lends, rows), rows, jnp.zeros_like(rows)), axis=0, dtype=rows.dtype)
        return jnp.where(_column(alive, x), x, donor[None])

    return jax.tree.map(lambda x: lent(x.astype(jnp.uint8)).astype(bool) if x.dtype == bool else lent(x), batch)


def _column(flags: Bool[Array, " batch"], x: Array) -> Array:
    return flags.reshape(-1, *(1,) * (x.ndim - 1))


def zero_unless(condition: Bool[Array, ""], tree: PyTree) -> PyTree:
    """The tree, or zeros."""
    return jax.tree.map(lambda x: jax.lax.select(jnp.broadcast_to(condition, x.shape), x, jnp.zeros_like(x)), tree)


def slow_in_loops(closed: Any) -> bool:
    """Whether there are convolutions whose derivatives XLA makes slow inside loops, as it does on a CPU."""
    return has_equation(closed.jaxpr, has_canonical_form)


def finite_only(
    run: Callable[[PyTree, Array], tuple[Array, PyTree]],
    zeros: tuple[Array, PyTree],
    batch: PyTree,
    mask: Bool[Array, " batch"],
    *,
    first_apart: bool = False,
) -> tuple[Float[Array, "batch groups"], PyTree]:
    """`run(batch, alive) -> (norms, total)` over the examples whose gradients are finite; `zeros` look like its result.

    Selecting on every factor of every contraction would read each activation once more in every step. Here the rows of
    an example whose norm came out NaN or Inf are replaced by another one's and the pass is run again, by a loop, so
    that it is compiled once and costs nothing where all is finite, as it is nearly always. `first_apart` compiles the
    first pass a second time, outside the loop.
    """

    def nothing() -> tuple[Array, PyTree]:
        return jax.tree.map(jnp.zeros_like, zeros)

    def trip(alive: Array) -> tuple[Array, Array, Array, PyTree]:
        # Without anybody alive there is no donor, and zero weights would not make a sum of NaN zero.
        norms, total = jax.lax.cond(jnp.any(alive), lambda: run(with_donors(batch, alive), alive), nothing)
        return alive, alive & jnp.all(jnp.isfinite(norms), axis=1), norms, total

    def more(state: tuple[Array, Array, Array, PyTree]) -> Array:
        before, after, _, _ = state
        return jnp.any(before & ~after)

    # Nobody counts as finite before the first trip, so that it is always made (on an empty batch, too). What it starts
    # from is never read; of equal values XLA would make one and copy it.
    if first_apart:
        norms, total = run(with_donors(batch, mask), mask)
        first = (mask, mask & jnp.all(jnp.isfinite(norms), axis=1), norms, zero_unless(jnp.any(mask), total))
        _, alive, norms, total = jax.lax.while_loop(more, lambda state: trip(state[1]), first)
    else:
        leaves, treedef = jax.tree.flatten(zeros)
        unread = treedef.unflatten([jnp.full_like(x, i) for i, x in enumerate(leaves)])
        wanted = lambda state: state[-1] | more(state[:-1])
        start = (mask, mask, *unread, jnp.ones((), bool))
        again = lambda state: (*trip(state[1]), jnp.zeros((), bool))
        _, alive, norms, total, _ = jax.lax.while_loop(wanted, again, start)
    found = jnp.where((mask & ~alive)[:, None], jnp.inf, norms)
    # Exact norms err upwards by what underflow can have taken: for a masked row, by more than nothing.
    return jnp.where(mask[:, None], found, 0), total
