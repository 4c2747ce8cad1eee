"""Where `vmap` over examples must do something other than batch every operation."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdp.lowering._custom_batching import CustomBatching
from jaxdp.lowering._late import zeros_after
from jaxdp.lowering._shards import batch_where_it_is, chunk_size, map_examples, shards_of, sum_examples

# Per-example gradients of one use up to this many elements are made for the whole batch at once.
_VECTORISED_ELEMENTS = 1 << 22


@CustomBatching
def force_batched(x: Array, batched_zero: Array) -> Array:
    """`x`, with a batch axis of its own even if no example entered it.

    Without it the cotangent of an unbatched output would arrive already summed over the batch.
    """
    del batched_zero
    return x


@force_batched.def_vmap
def _(axis_size: int, in_batched: Sequence[bool], x: Array, batched_zero: Array) -> tuple[Array, bool]:
    del batched_zero
    return batch_where_it_is(x if in_batched[0] else jnp.broadcast_to(x, (axis_size, *x.shape))), True


@CustomBatching
def on_its_device(x: Array) -> Array:
    """`x`, to be computed where its example is: a parameter comes to the examples, not they to it."""
    return x


@on_its_device.def_vmap
def _(axis_size: int, in_batched: Sequence[bool], x: Array) -> tuple[Array, bool]:
    del axis_size
    return (batch_where_it_is(x) if in_batched[0] else x), in_batched[0]


def over_batch(fn: Callable, out_batched: tuple[bool, ...], shared: Any, *args: Any) -> tuple[Array, ...]:
    """`fn(batched, shared, *args)` over the whole batch in one go, where `vmap` alone would stack B gradients.

    Inside `fn` the `args` have a leading batch axis unless `batched` (a pytree like them) says they have none. Outputs
    that are sums over the batch come out without a batch axis. `shared` never has one: it holds what the function needs
    beside, and (an entry of) the shadow whose cotangent such a sum is.
    """

    @CustomBatching
    def call(shared: Any, args: tuple[Any, ...]) -> tuple[Array, ...]:
        outs = fn(jax.tree.map(lambda _: True, args), shared, *jax.tree.map(lambda x: x[None], args))
        return tuple(out[0] if b else out for out, b in zip(outs, out_batched, strict=True))

    @call.def_vmap
    def _(axis_size: int, in_batched: Any, shared: Any, args: tuple[Any, ...]) -> tuple[Any, tuple[bool, ...]]:
        shared_batched, batched = in_batched
        if any(jax.tree.leaves(shared_batched)):
            # The sum over the batch would be given to every example and added up again: B times too large.
            raise NotImplementedError(
                "a parameter (or the clipping function) acquired a batch axis inside the loss, where its gradient "
                'cannot be attributed to examples: use method="materialize" for this model.'
            )
        return tuple(fn(batched, shared, *args)), out_batched

    return call(shared, args)


def one_at_a_time_sum(
    gradient: Callable,
    weights: Float[Array, " batch"],
    operands: dict[int, Any],
    batched: dict[int, bool],
    cts: Sequence[Array],
) -> Array:
    """Weighted sum of one-example gradients that have no better rule, few of them alive at a time."""
    own = {i: x for i, x in operands.items() if batched[i]}

    def one(weight: Array, own: dict[int, Any], cts: list[Array]) -> Array:
        grad = gradient({**operands, **own}, cts)
        return weight.astype(grad.dtype) * grad

    xs = (weights, own, list(cts))
    struct = jax.eval_shape(lambda x: one(*jax.tree.map(lambda y: y[0], x)), xs)
    if struct.size * (weights.shape[0] // shards_of(weights.shape[0])) <= _VECTORISED_ELEMENTS:
        return jnp.sum(jax.vmap(one)(*xs), axis=0)
    return sum_examples(lambda acc, x: (acc + one(*x), None), zeros_after(struct.shape, struct.dtype, weights), xs)[0]


def few_at_a_time(fn: Callable, elements: int, *args: Any, room: int | None = None) -> Array:
    """`fn(*args)` of one example, with intermediates of `elements` entries: over a large batch, one by one.

    With `room` given, as many at a time as have no more entries than that.
    """

    @CustomBatching
    def call(args: tuple[Any, ...]) -> Array:
        return fn(*args)

    @call.def_vmap
    def _(axis_size: int, in_batched: Any, args: tuple[Any, ...]) -> tuple[Array, bool]:
        leaves, treedef = jax.tree.flatten(args)
        batched = jax.tree.leaves(in_batched[0])

        def one(own: list[Array]) -> Array:
            rest = iter(own)
            return fn(*treedef.unflatten([next(rest) if b else x for x, b in zip(leaves, batched, strict=True)]))

        own = [x for x, b in zip(leaves, batched, strict=True) if b]
        each = axis_size // shards_of(axis_size)
        few = 1 if room is None else chunk_size(each, room // max(1, elements))
        vectorised = few == each if room is not None else elements * each <= _VECTORISED_ELEMENTS
        if vectorised:
            return jax.vmap(one)(own), True
        return map_examples(one, own, batch_size=None if few == 1 else few), True

    return call(args)
