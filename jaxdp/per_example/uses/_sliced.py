"""Uses in windows of a table, cut out where the example says."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdp.numerics._wide import wide
from jaxdp.per_example.uses._gathered import Gathered


class Sliced(Gathered):
    """`dynamic_slice` of whole rows that follow each other: positions from a place of the example's own, say."""

    @staticmethod
    def matches(eqn: Any, index: int) -> bool:
        """Whether the window is cut along the table's first axis alone."""
        table, sizes = eqn.invars[0].aval.shape, tuple(eqn.params["slice_sizes"])
        return index == 0 and len(table) > 0 and sizes[1:] == table[1:]

    def _rows(self, ids: Array, ct: Array, lead: int) -> tuple[Array, Array]:
        """The window's row numbers; a start from which it would not fit is moved, as the equation does."""
        del lead
        length = self.eqn.params["slice_sizes"][0]
        # In the start's own dtype, which may be unsigned, or too small for the table's length.
        last = min(self.eqn.invars[0].aval.shape[0] - length, jnp.iinfo(ids.dtype).max)
        start = jnp.clip(ids, 0, last).astype(jnp.int32)
        return start[..., None] + jax.lax.broadcasted_iota(jnp.int32, (*start.shape, length), start.ndim), wide(ct)
