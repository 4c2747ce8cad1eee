"""Layers of one kind, stacked along a leading axis of their parameters and run by a scan."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx
from jaxtyping import Array, Float

from ._compute import Compute

Layer = TypeVar("Layer", bound=nnx.Module)


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


def run_layer(layer: nnx.Module, x: Float[Array, "seq hidden"], *args: Any, compute: Compute) -> Array:
    """Call one layer that is not stacked."""
    if compute.remat == "none":
        return layer(x, *args)  # pyright: ignore[reportCallIssue]
    graphdef, state = nnx.split(layer)
    call = compute.checkpoint(lambda state, x, *args: nnx.merge(graphdef, state)(x, *args), in_scan=False)
    return call(state, x, *args)
