"""Keys of the probes: one for each parameter and each entry of its stack, and for each example where asked for."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from jaxdp.norms import Randomized
from jaxdp.per_example.rewriting._traced import TracedLoss
from jaxdp.per_example.tracing._values import ProbeKeys


def each_example_draws(randomized: Randomized | None) -> bool:
    """Whether every example has probes of its own."""
    return randomized is not None and randomized.sharing == "example"


def probe_keys(traced: TracedLoss, key: PRNGKeyArray, rows: Int[Array, " batch"]) -> dict[int, ProbeKeys]:
    """For each leaf keys `[*stack]`, or `[batch, *stack]` where examples do not share probes.

    `rows` are the examples' places in the logical batch: a microbatch does not begin anew. All uses of an entry of a
    leaf share its key, as sketches of one gradient add up only if they are made with the same probes.
    """

    def keys(key: PRNGKeyArray) -> dict[int, ProbeKeys]:
        found = {}
        for leaf, stack in enumerate(traced.stacks):
            own = jax.random.fold_in(key, leaf)
            entries = jnp.arange(math.prod(stack))
            found[leaf] = jax.vmap(lambda i, k=own: jax.random.fold_in(k, i))(entries).reshape(stack) if stack else own
        return found

    if each_example_draws(traced.randomized):
        return jax.vmap(lambda row: keys(jax.random.fold_in(key, row)))(rows)
    return keys(key)
