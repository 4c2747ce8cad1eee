"""Layers of one kind, stacked along a leading axis of their parameters and run by a scan."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ._compute import Compute

Layer = TypeVar("Layer", bound=nnx.Module)
Cached = TypeVar("Cached")


def stack_layers(make: Callable[[nnx.Rngs], Layer], count: int, rngs: nnx.Rngs) -> Layer:
    """`count` layers as one module each of whose parameters has a leading axis of that length."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    # Compiled as one: drawn one by one, each shape would be a compilation of its own.
    draw = jax.jit(jax.vmap(lambda key: nnx.state(make(nnx.Rngs(key)))))
    state = draw(jax.random.split(rngs.params(), count))
    return nnx.merge(graphdef, state)


def run_stack(layers: nnx.Module, x: Float[Array, "seq hidden"], *args: Any, compute: Compute) -> Array:
    """Run stacked layers one after the other; each is called as ``layer(x, *args)``."""
    graphdef, state = nnx.split(layers)
    call = compute.checkpoint(lambda state, x, *args: nnx.merge(graphdef, state)(x, *args), in_scan=True)
    last, _ = jax.lax.scan(lambda x, state: (call(state, x, *args), None), x, state)
    return last


def step_stack(
    stacks: Sequence[nnx.Module | None], x: Float[Array, "1 hidden"], *args: Any, cache: Cached, place: Array
) -> tuple[Array, Cached]:
    """Run one token through stacks of layers, ``layer.step(x, *args, cache, place) -> (x, cache)``, in their order."""
    begin, parts = 0, []
    for stack in stacks:
        if stack is None:
            continue
        graphdef, state = nnx.split(stack)
        count = jax.tree.leaves(state)[0].shape[0]
        own = jax.tree.map(lambda rows, b=begin, n=count: rows[b : b + n], cache)

        def one(x: Array, layer: Any, graphdef: Any = graphdef) -> Any:
            state, cached = layer
            return nnx.merge(graphdef, state).step(x, *args, cached, place)

        x, own = jax.lax.scan(one, x, (state, own))
        parts.append(own)
        begin += count
    return x, jax.tree.map(lambda *rows: jnp.concatenate(rows), *parts)


def run_layer(layer: nnx.Module, x: Float[Array, "seq hidden"], *args: Any, compute: Compute) -> Array:
    """Call one layer that is not stacked."""
    if compute.remat == "none":
        return layer(x, *args)  # pyright: ignore[reportCallIssue]
    graphdef, state = nnx.split(layer)
    call = compute.checkpoint(lambda state, x, *args: nnx.merge(graphdef, state)(x, *args), in_scan=False)
    return call(state, x, *args)
