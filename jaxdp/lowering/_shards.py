"""Loops over examples on several devices: every device goes through its own examples, side by side with the others."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, PRNGKeyArray

from jaxdp.lowering._target import batch_sharding


def num_shards(sharding: NamedSharding | None) -> int:
    """In how many parts the leading axis is cut."""
    if sharding is None or not len(sharding.spec):
        return 1
    return math.prod(sharding.mesh.shape[name] for name in axis_names(sharding.spec[0]))


def axis_names(entry: Any) -> tuple[str, ...]:
    """The mesh axes that one array axis is cut along."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def check_partitionable() -> None:
    """Refuse random numbers that depend on how they are cut."""
    if not jax.config.jax_threefry_partitionable:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(
            "jax_threefry_partitionable is off, so that noise would depend on the mesh and be drawn whole on every "
            'device: call jax.config.update("jax_threefry_partitionable", True).'
        )


def check_generator(key: PRNGKeyArray) -> None:
    """Refuse random numbers that are another sequence, or the same one on each device, when they are cut."""
    check_partitionable()
    if str(jax.random.key_impl(key)) != "threefry2x32":
        raise ValueError(
            f"the key's generator is {jax.random.key_impl(key)}, whose numbers depend on how they are cut over "
            "devices: use jaxdp.sampling.key_from_entropy()."
        )


def shards_of(size: int) -> int:
    """In how many parts a batch axis of this length is cut: 1 if it does not divide."""
    shards = num_shards(batch_sharding())
    return shards if size % shards == 0 else 1


def leading(sharding: NamedSharding, x: Array) -> Array:
    """`x` with its first axis on the devices like the batch; nothing is said of its other axes."""
    free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    spec = PartitionSpec(sharding.spec[0] if len(sharding.spec) else None, *free)
    return jax.lax.with_sharding_constraint(x, NamedSharding(sharding.mesh, spec))


def batch_where_it_is(x: Array) -> Array:
    """`x`, whose leading axis is the batch, on the devices on which the examples are."""
    sharding = batch_sharding()
    return x if sharding is None or x.shape[0] % num_shards(sharding) else leading(sharding, x)


def map_examples(fn: Callable, xs: Any, batch_size: int | None = None) -> Any:
    """`jax.lax.map` over a batch axis, of which every device goes through its own part."""
    shards = shards_of(jax.tree.leaves(xs)[0].shape[0])
    if shards == 1:
        slim, full = _without_ones(xs)
        return jax.lax.map(lambda x: fn(full(x)), slim, batch_size=batch_size)
    # A loop over all examples would fetch each of them from the device it lies on.
    found = jax.lax.map(jax.vmap(fn), _columns(xs, shards), batch_size=batch_size)
    return jax.tree.map(_together, found)


def chunk_size(size: int, most: int) -> int:
    """The largest divisor of a batch's size that is no more than `most`, and at least one."""
    chunk = max(1, min(size, most))
    while size % chunk:
        chunk -= 1
    return chunk


def sum_examples(fn: Callable, zeros: Array, xs: Any) -> tuple[Array, Any]:
    """`jax.lax.scan` of `fn(total, x) -> (total, y)` over a batch axis, every device adding up its own part.

    The devices' totals meet once, after the loop.
    """
    shards = shards_of(jax.tree.leaves(xs)[0].shape[0])
    if shards == 1:
        slim, full = _without_ones(xs)
        return jax.lax.scan(lambda total, x: fn(total, full(x)), zeros, slim)
    start = jnp.zeros((shards, *zeros.shape), zeros.dtype)
    totals, ys = jax.lax.scan(jax.vmap(fn), start, _columns(xs, shards))
    return jnp.sum(totals, axis=0), jax.tree.map(_together, ys)


def _without_ones(xs: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Examples without axes of length one, and what puts these back for one of them.

    On what enters a loop such an axis has XLA copy the batch, to bring axes in an order that makes no difference.
    """
    shapes = jax.tree.map(lambda x: x.shape[1:], xs)
    slim = jax.tree.map(lambda x: x.reshape(x.shape[0], *(n for n in x.shape[1:] if n != 1)), xs)
    return slim, lambda one: jax.tree.map(lambda x, shape: x.reshape(shape), one, shapes)


def _columns(tree: Any, shards: int) -> Any:
    """`[batch, ...]` as `[batch / shards, shards, ...]`, each shard's examples where they are."""
    return jax.tree.map(lambda x: jnp.swapaxes(apart(x, shards), 0, 1), tree)


def _together(x: Array) -> Array:
    return together(jnp.swapaxes(x, 0, 1))


def apart(x: Array, shards: int) -> Array:
    """`[batch, ...]` as `[shards, batch / shards, ...]`, each shard's examples where they are."""
    return batch_where_it_is(x.reshape(shards, x.shape[0] // shards, *x.shape[1:]))


def together(x: Array) -> Array:
    """`[shards, batch / shards, ...]` as `[batch, ...]`."""
    return batch_where_it_is(x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]))
