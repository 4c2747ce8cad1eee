"""Uses in table lookups."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxdp.norms import Cost, rows_norm_cost, rows_sum_cost, summed_rows, summed_rows_certificate
from jaxdp.numerics._wide import wide
from jaxdp.per_example.uses._costs import Priced
from jaxdp.per_example.uses._use import Layout, Operands, Rows, Use


class Gathered(Use):
    """`gather` of whole rows of a table: an embedding. Never a one-hot, never a gradient of the table's size."""

    @staticmethod
    def matches(eqn: Any, index: int) -> bool:
        """Whether this gather looks rows up along the table's first axis."""
        dims, table = eqn.params["dimension_numbers"], eqn.invars[0].aval.shape
        return (
            index == 0
            and tuple(dims.start_index_map) == (0,)
            and tuple(dims.collapsed_slice_dims) == (0,)
            and not dims.operand_batching_dims
            and tuple(eqn.params["slice_sizes"]) == (1, *table[1:])
        )

    saved = (1,)
    bilinear = True
    alone = True

    def rows(self, cts: Sequence[Any]) -> tuple[int, int]:
        """How many rows one example looks up."""
        width = math.prod(self.weight_shape(cts)[1:])
        return math.prod(jnp.shape(cts[0])) // max(1, width) if cts else 0, width

    def norm_cost(self, cts: Sequence[Any]) -> Priced:
        """Of rows, added up where they are repeated."""
        return Priced("rows", rows_norm_cost(*self.rows(cts)))

    def sum_cost(self, cts: Sequence[Any]) -> Cost:
        """One scatter-add."""
        return rows_sum_cost(*self.rows(cts))

    def _rows(self, ids: Array, ct: Array, lead: int) -> tuple[Array, Array]:
        """Row numbers `[*lead, T]` and their cotangents `[*lead, T, *row]`; rows outside the table get zero."""
        offset = [lead + d for d in self.eqn.params["dimension_numbers"].offset_dims]
        rest = [d for d in range(ct.ndim) if d not in offset]
        shape = self.eqn.invars[0].aval.shape
        ids = ids.reshape(*ids.shape[:lead], -1)
        rows = wide(ct.transpose(rest + offset)).reshape(*ids.shape, *shape[1:])
        inside = (ids >= 0) & (ids < shape[0])
        if "CLIP" in str(self.eqn.params["mode"]).upper():
            return jnp.clip(ids, 0, shape[0] - 1), rows
        # The derivative of an out-of-bounds read (NaN fill or undefined) is zero.
        expand = inside.reshape(*inside.shape, *(1,) * (rows.ndim - inside.ndim))
        return jnp.where(inside, ids, 0), jnp.where(expand, rows, 0)

    def gradient(self, operands: Operands, cts: Sequence[Array]) -> Array:
        """The table-shaped gradient of one example."""
        ids, rows = self._rows(operands[1], cts[0], 0)
        return jnp.zeros(self.eqn.invars[0].aval.shape, rows.dtype).at[ids].add(rows)

    def _summed(self, ids: Array, ct: Array) -> tuple[Array, Array]:
        """One example's rows, with those that are read more than once added up: what is squared, and what is summed."""
        ids, rows = self._rows(ids, ct, 0)
        return summed_rows(ids, rows.reshape(ids.shape[0], -1))

    def certificate(
        self, operands: Operands, cts: Sequence[Array], key: PRNGKeyArray | None = None
    ) -> Float[Array, "4"]:
        """Rows read more than once add up before they are squared: cheap enough to be exact always."""
        del key
        return summed_rows_certificate(self._summed(operands[1], cts[0])[1], self.choice.examples)

    def weighted_sum(
        self,
        weights: Float[Array, " batch"],
        operands: Operands,
        batched: dict[int, bool],
        cts: Sequence[Array],
    ) -> Array:
        """One scatter-add over all rows that the batch touches, those of an example after they were added up."""
        ids, rows = jax.vmap(self._summed, in_axes=(0 if batched[1] else None, 0))(operands[1], cts[0])
        rows = weights.astype(rows.dtype)[:, None, None] * rows
        shape = self.eqn.invars[0].aval.shape
        return jnp.zeros(shape, rows.dtype).at[ids.reshape(-1)].add(rows.reshape(-1, *shape[1:]))

    @property
    def factor_operands(self) -> tuple[int, ...]:
        """The row numbers."""
        return (1,)

    def layout(self, axes: tuple[int, ...]) -> Layout:
        """Row numbers stand for one-hot vectors along the table's first axis."""
        return Layout((), axes[:1], axes[1:])

    def factors(self, operands: Operands, cts: Sequence[Array]) -> Rows:
        """Runs of the equation follow each other along the sequence."""
        ids, rows = self._rows(operands[1], cts[0], 1)
        return Rows(ids.reshape(-1), rows.reshape(ids.size, -1))
