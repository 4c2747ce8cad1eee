"""From weighted sums in the coordinates of single uses back to the parameters."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdp._shown import of_shapes
from jaxdp.per_example.rewriting._rewrite import Rewriter
from jaxdp.per_example.rewriting._taps import LeafOperand, UseKey
from jaxdp.per_example.tracing._values import Path, Plain, Value, Weight
from jaxdp.per_example.uses._use import Use


@dataclasses.dataclass(frozen=True)
class OperandViews(Rewriter):
    """An evaluation that only follows the parameters to their uses: what it emits are the shadows found there.

    Pulling a use's weighted sum back through it gives the parameters' weighted sums. Values that examples enter are
    replaced by zeros, as no view of a parameter depends on them.
    """

    __repr__ = of_shapes

    wanted: frozenset[UseKey] = frozenset()
    single_step: frozenset[Path] = frozenset()  # loops of which one step tells all: they do not slice what is wanted

    def _plain(self, eqn: Any, operands: list[Value]) -> list[Plain]:
        if all(x.fixed for x in operands if isinstance(x, Plain)):
            return super()._plain(eqn, operands)
        return [Plain(_zeros(v.aval), fixed=False) for v in eqn.outvars]

    def _scan(self, eqn: Any, operands: list[Value], path: Path) -> tuple[Sequence[Value], dict[UseKey, Array]]:
        body = (*path, 0)
        below = {key for key in self.wanted if key[0][: len(body)] == body}
        cut = {key for key in below if any(loop.cuts for loop in self.sites[key].loops if loop.body == body)}
        rest = self.wanted - below
        outs, found = super(OperandViews, dataclasses.replace(self, wanted=rest | cut))._scan(eqn, operands, path)
        if below != cut:
            one_step = dataclasses.replace(self, wanted=frozenset(below - cut), single_step=self.single_step | {body})
            found = found | super(OperandViews, one_step)._scan(eqn, operands, path)[1]
        return outs, found

    def _loop(self, eqn: Any, path: Path, body: Callable, init: Any, xs: Any) -> Any:
        if path not in self.single_step:
            return super()._loop(eqn, path, body, init, xs)
        state, (ys, found) = body(init, jax.tree.map(lambda x: x[0], xs))
        length = eqn.params["length"]
        return state, (jax.tree.map(lambda y: jnp.broadcast_to(y, (length, *jnp.shape(y))), ys), found)

    def _tap(
        self, run: Callable, uses: dict[int, Use], operands: Sequence[Value], path: Path
    ) -> tuple[Sequence[Plain], dict[UseKey, Array]]:
        found = {}
        for i, x in enumerate(operands):
            if isinstance(x, Weight):
                mine = {(path, LeafOperand(i, leaf)): shadow.total for leaf, shadow in x.shadows.items()}
                found.update({key: total for key, total in mine.items() if key in self.wanted})
        outs = jax.eval_shape(run, [x.value for x in operands])
        return [Plain(_zeros(out), fixed=False) for out in outs], found


def _zeros(aval: Any) -> Any:
    if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
        return _zero_keys(jax.ShapeDtypeStruct(aval.shape, aval.dtype))
    # TracedLoss only where something reads it, which is nowhere but in the states of loops.
    return np.broadcast_to(np.zeros((), aval.dtype), aval.shape)


def _zero_keys(struct: jax.ShapeDtypeStruct) -> Array:
    """Keys of a dtype: which generator they belong to can be asked of keys only, so of traced ones."""
    found = []

    def look(keys: Array) -> Array:
        found.append(jax.random.key_impl(keys))
        return jax.random.key_data(keys)

    words = jax.eval_shape(look, struct)
    return jax.random.wrap_key_data(jnp.zeros(words.shape, words.dtype), impl=found[0])
