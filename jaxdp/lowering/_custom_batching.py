"""Functions that do something else over a batch than `vmap` would."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

_custom_batching = Primitive("custom_batching")
_custom_batching.multiple_results = True


class CustomBatching:
    """What `jax.custom_batching.custom_vmap` is, but a function that is batched is not traced for one example before.

    It may not close over values that are being traced. `def_vmap` takes the batching rule, `rule(axis_size, in_batched,
    *args)`, which returns the outputs and which of them have a batch axis.
    """

    def __init__(self, fn: Callable) -> None:
        self.fn = fn
        self.rule: Callable | None = None

    def def_vmap(self, rule: Callable) -> Callable:
        """Set the batching rule."""
        self.rule = rule
        return rule

    def __call__(self, *args: Any) -> Any:
        flat, treedef = jax.tree.flatten(args)
        call = _Call(self, treedef)
        outs = _custom_batching.bind(*flat, call=call)
        return jax.tree.unflatten(call.out_treedef, outs)


class _Call:
    """One call, which whichever of the ways to run it comes first tells how its outputs are nested."""

    def __init__(self, of: CustomBatching, treedef: Any) -> None:
        self.of, self.treedef = of, treedef
        self.out_treedef: Any = None
        self.jaxpr: Any = None  # for one example, if it was traced: for whoever reads programs

    def run(self, *flat: Any) -> list[Any]:
        outs, self.out_treedef = jax.tree.flatten(self.of.fn(*self.treedef.unflatten(flat)))
        return outs

    def batched(self, flat: Sequence[Any], axes: Sequence[int | None]) -> tuple[list[Any], list[int | None]]:
        assert self.of.rule is not None
        each = list(zip(flat, axes, strict=True))
        size = next(x.shape[axis] for x, axis in each if axis is not None)
        args = self.treedef.unflatten([x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in each])
        outs, out_batched = self.of.rule(size, self.treedef.unflatten([axis is not None for axis in axes]), *args)
        leaves, self.out_treedef = jax.tree.flatten(outs)
        return leaves, [0 if batched else None for batched in jax.tree.leaves(out_batched)]


def _abstract(*avals: Any, call: _Call) -> list[Any]:
    call.jaxpr = jax.make_jaxpr(call.run)(*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in avals))
    return list(call.jaxpr.out_avals)


def _run(*flat: Any, call: _Call) -> list[Any]:
    return call.run(*flat)


_custom_batching.def_impl(_run)
_custom_batching.def_abstract_eval(_abstract)
batching.primitive_batchers[_custom_batching] = lambda flat, axes, *, call: call.batched(flat, axes)
mlir.register_lowering(_custom_batching, mlir.lower_fun(_run, multiple_results=True))
