"""Uses in products of rows sorted into groups: the experts of a mixture."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from jaxdp.norms import Accumulation, factored_certificate, running_unit, sum_unit
from jaxdp.numerics._wide import wide
from jaxdp.per_example.tracing._ragged import group_of_rows
from jaxdp.per_example.uses._use import Layout, Operands, Outer, Use

# Sums of outer products of rows, group by group.
_SUMS = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), lhs_ragged_dimensions=(0,), rhs_group_dimensions=())


class Ragged(Use):
    """`ragged_dot`: for each group an outer product of its rows' factors."""

    alone = True

    @staticmethod
    def matches(eqn: Any, index: int) -> bool:
        """Whether the operand is one matrix for each group, and the rows are a matrix."""
        numbers = eqn.params["ragged_dot_dimension_numbers"]
        (contract, _), (batch, _) = numbers.dot_dimension_numbers
        ranks = tuple(v.aval.ndim for v in eqn.invars)
        rows = tuple(numbers.lhs_ragged_dimensions)
        return index == 1 and ranks == (2, 3, 1) and len(contract) == 1 and not batch and rows != tuple(contract)

    def _dims(self) -> tuple[int, int, int, int]:
        """The rows' contracted axis, and the weight's group, contracted and free axes."""
        numbers = self.eqn.params["ragged_dot_dimension_numbers"]
        (lhs, rhs), _ = numbers.dot_dimension_numbers
        (group,) = numbers.rhs_group_dimensions
        return lhs[0], group, rhs[0], 3 - group - rhs[0]

    def _unfold(self, kcp: Float[Array, "k c p"]) -> Array:
        """A gradient in the weight operand's own layout."""
        _, *order = self._dims()
        return kcp.transpose([order.index(d) for d in range(3)])

    def _rows(self, x: Array, lead: int) -> Array:
        """Inputs with a row for each token."""
        return wide(x if self._dims()[0] == 1 else jnp.swapaxes(x, lead, lead + 1))

    def _sums(self, a: Array, g: Array, sizes: Array) -> Array:
        precision = self.eqn.params["precision"]
        return self._unfold(lax.ragged_dot_general(a, g, sizes, _SUMS, precision=precision))

    def gradient(self, operands: Operands, cts: Sequence[Array]) -> Array:
        """One ragged product."""
        return self._sums(self._rows(operands[0], 0), wide(cts[0]), operands[2])

    def certificate(
        self, operands: Operands, cts: Sequence[Array], key: PRNGKeyArray | None = None
    ) -> Float[Array, "4"]:
        """Of all groups, from the factors of each."""
        a, g = self.factors({i: operands[i][None] for i in self.factor_operands}, [cts[0][None]])
        precision, examples = self.eqn.params["precision"], self.choice.examples
        found = factored_certificate(a, g, self.choice, key, precision)
        # How compilers add up rows of a group is not known: one after the other at worst.
        _, t, c, p = self.sizes(cts[0].shape)
        longer = lambda n: running_unit(n, g.dtype, precision) / sum_unit(n, c, p, g.dtype, precision)
        return found * jnp.array([1.0, 1.0, longer(t) ** 2, longer(t * examples) ** 2], found.dtype)

    def terms(self, ct_shape: tuple[int, ...]) -> int:
        """Rows of one example."""
        return ct_shape[0]

    def meeting(self, ct_shape: tuple[int, ...], terms: int, dtype: Any) -> Accumulation:
        """One product of all examples' rows."""
        del ct_shape
        examples = self.choice.examples
        return Accumulation(examples, running_unit(terms * examples, dtype, self.eqn.params["precision"]))

    def weighted_sum(
        self,
        weights: Float[Array, " batch"],
        operands: Operands,
        batched: dict[int, bool],
        cts: Sequence[Array],
    ) -> Array:
        """One ragged product of all examples' rows, sorted by group."""
        size = weights.shape[0]
        every = lambda i: operands[i] if batched[i] else jnp.broadcast_to(operands[i], (size, *operands[i].shape))
        a, g, sizes = self._rows(every(0), 1), wide(cts[0]), every(2)
        a = weights.astype(a.dtype)[:, None, None] * a
        group = jax.vmap(lambda s: group_of_rows(s, a.shape[1]))(sizes).reshape(-1)
        order = jnp.argsort(group, stable=True)
        rows = lambda x: x.reshape(-1, x.shape[2])[order]
        return self._sums(rows(a), rows(g), jnp.sum(sizes, axis=0, dtype=sizes.dtype))

    @property
    def factor_operands(self) -> tuple[int, ...]:
        """The rows and the groups' sizes."""
        return 0, 2

    def layout(self, axes: tuple[int, ...]) -> Layout:
        """Groups are slices that have nothing to do with each other."""
        _, group, contract, free = self._dims()
        return Layout((axes[group],), (axes[contract],), (axes[free],))

    def factors(self, operands: Operands, cts: Sequence[Array]) -> Outer:
        """For each group all rows, those of others zero; runs of the equation follow each other."""
        a, g, sizes = self._rows(operands[0], 1), wide(cts[0]), operands[2]
        count = sizes.shape[1]
        group = jax.vmap(lambda s: group_of_rows(s, a.shape[1]))(sizes)
        mine = group[None] == jnp.arange(count, dtype=group.dtype)[:, None, None]
        spread = jnp.where(mine[..., None], a[None], jnp.zeros((), a.dtype)).reshape(count, -1, a.shape[2])
        return Outer(spread, jnp.broadcast_to(g.reshape(1, -1, g.shape[2]), (count, spread.shape[1], g.shape[2])))

    def sizes(self, ct_shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """K, T, C and P of one example's factors."""
        _, group, contract, free = self._dims()
        shape = self.eqn.invars[1].aval.shape
        return shape[group], ct_shape[0], shape[contract], shape[free]
