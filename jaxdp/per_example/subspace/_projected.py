"""A matrix product whose weight's gradient is found in a subspace: the same product of smaller factors."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdp.numerics._wide import is_complex, wide
from jaxdp.per_example.subspace._projection import MatrixAxes, Projection, project_along, projected_shape
from jaxdp.per_example.tracing._values import Weight
from jaxdp.per_example.uses._contracted import Contracted
from jaxdp.per_example.uses._use import Operands, Use, product


@dataclasses.dataclass(frozen=True, eq=False)
class Projected(Contracted):
    r"""`dot_general` with a gradient $A^\top G$ of which $(AP)^\top G$ or $A^\top GP$ is wanted.

    Norms, sums and reports are those of a product whose factors are `projected`. What is special is that the gradient
    may be smaller than they are.

    Attributes:
      dims: the weight operand's axes that are projected, in the order in which P counts their entries.
      shared: its axes along which P differs.
      rank: the subspace's dimension.
    """

    dims: tuple[int, ...] = ()
    shared: tuple[int, ...] = ()
    rank: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight operand's shape, were it a parameter in the subspace."""
        return projected_shape(super().shape, self.dims, self.rank)

    @property
    def factor_operands(self) -> tuple[int, ...]:
        """None where the gradient in the subspace is no larger than its factors: then it is kept instead of them."""
        output = product(self.eqn.outvars[0].aval.shape)
        k, t, _, _ = Contracted(self.eqn, self.index, self.choice).sizes((output,))
        _, _, c, p = self.sizes((output,))
        return () if k * c * p <= k * t * (c + p) else super().factor_operands

    def weight_shape(self, cts: Sequence[Any]) -> tuple[int, ...]:
        """As `shape`."""
        return self.shape

    def projected(self, operands: Operands, cts: Sequence[Array], basis: Array | None) -> tuple[Operands, list[Array]]:
        """One example's factors, the one on the projected side times P."""
        assert basis is not None
        contract, other_contract, batch, other_batch = self._dims()
        precision = self.eqn.params["precision"]
        if set(self.dims) == set(contract):
            other = 1 - self.index
            at = [other_contract[contract.index(d)] for d in self.dims]
            by = [other_batch[batch.index(d)] for d in self.shared]
            factor = project_along(wide(operands[other]), basis, at, by, precision)
            return {**operands, other: factor}, list(cts)
        # Batch dimensions lead in the output; the free ones of the left operand come before those of the right one.
        weight = super().shape
        free = [d for d in range(len(weight)) if d not in contract and d not in batch]
        first = len(batch) if self.index == 0 else jnp.ndim(cts[0]) - len(free)
        at = [first + free.index(d) for d in self.dims]
        by = [batch.index(d) for d in self.shared]
        return operands, [project_along(wide(cts[0]), basis, at, by, precision)]


def projected_use(use: Use, weight: Weight, projections: dict[int, Projection]) -> Use:
    """The use of a weight, in the subspace of its leaf if that has one."""
    leaves = [leaf for leaf in weight.shadows if leaf in projections]
    if not leaves:
        return use
    if len(weight.shadows) > 1 or type(use) is not Contracted or weight.axes is None:
        # Seen when the projection was checked: there is no such use.
        raise ValueError("a parameter that is projected has a use that is no matrix product: leave it unprojected.")
    projection, depth = projections[leaves[0]], len(weight.stack)
    dims = tuple(weight.axes.index(a - depth) for a in projection.axes)
    shared = tuple(weight.axes.index(a - depth) for a in projection.batch[depth:])
    return Projected(use.eqn, use.index, use.choice, dims=dims, shared=shared, rank=projection.rank)


def factor_structs(
    use: Use, operands: dict[int, jax.ShapeDtypeStruct], cts: Sequence[jax.ShapeDtypeStruct], basis: Array | None
) -> tuple[dict[int, jax.ShapeDtypeStruct], tuple[jax.ShapeDtypeStruct, ...]]:
    """Shapes of what a use reports: its factors, in the subspace if there is one."""
    cotangents = list(cts)
    if basis is not None:
        operands, cotangents = jax.eval_shape(lambda x, y, p: use.projected(x, y, p), operands, cotangents, basis)
    return {i: operands[i] for i in use.factor_operands}, tuple(cotangents)


def matrix_axes(sites: Sequence[Any], leaf_ndim: int, stack: tuple[int, ...]) -> MatrixAxes | str:
    """How all uses of a leaf take it as matrices, or why they do not, as the second half of a sentence."""
    found = set()
    for site in sites:
        if type(site.use) is not Contracted or not site.isometric:
            what = "a loop or a branch" if site.use.eqn is None else f"{site.use.eqn.primitive.name!r}"
            if site.use.eqn is not None and any(is_complex(x.aval) for x in site.use.eqn.outvars):
                return f"its use in {what} is complex"
            return f"its use in {what} is no matrix product with it"
        if site.axes is None:
            return "it is reshaped or cut before a matrix product"
        if site.stack != stack or sum(loop.cuts for loop in site.loops) != len(stack):
            return "loops take slices of it in more than one way"
        depth = len(stack)
        layout = site.use.layout(site.axes)
        at = lambda axes: tuple(sorted(a + depth for a in axes))  # noqa: B023
        sides = tuple(sorted((at(layout.first), at(layout.second))))
        found.add(MatrixAxes((*range(depth), *at(layout.batch)), *sides))
    if len(found) > 1:
        return "it is used as matrices of several shapes"
    (axes,) = found
    if not (axes.rows and axes.columns) or len(axes.batch) + len(axes.rows) + len(axes.columns) != leaf_ndim:
        return "it is used as a vector"
    return axes
