"""Random subspaces of matrices: which axes of a parameter are projected onto what, and the two linear maps."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdp._shown import of_shapes, setting
from jaxdp.numerics._wide import wide

Side = Literal["smaller", "larger", "rows", "columns"]


@dataclasses.dataclass(frozen=True)
class MatrixAxes:
    """A parameter as matrices, which is how the loss uses it.

    Attributes:
      batch: axes along which it holds one matrix after the other: layers of a `scan`, experts.
      rows: axes that span the rows; several where a kernel is kept per head, as in `[heads, size, model]`.
      columns: axes that span the columns.
    """

    batch: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def side(self, shape: tuple[int, ...], side: Side) -> tuple[int, ...]:
        """The axes of one side; of two sides of the same length, the columns."""
        rows, columns = (math.prod(shape[a] for a in axes) for axes in (self.rows, self.columns))
        by_name = {"rows": True, "columns": False, "smaller": rows < columns, "larger": rows > columns}
        return self.rows if by_name[side] else self.columns


@dataclasses.dataclass(frozen=True, eq=False)
class Projection:
    r"""One parameter's subspace: each of its matrices' gradients G becomes $GP$ (or, for the rows, $P^\top G$).

    **Privacy.** P must not depend on the examples but through what noise was added to: draw it from a key.

    Attributes:
      matrix: P, `[*batch, k, r]`, where k is the number of entries that the projected axes span.
      axes: the axes that are projected, in rising order. The first of them gets the length r, the others 1.
      batch: the axes along which every matrix has a P of its own, in rising order.
    """

    __repr__ = of_shapes

    matrix: Float[Array, "*batch k r"]
    axes: tuple[int, ...]
    batch: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        """r, the dimension of the subspace."""
        return self.matrix.shape[-1]

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the gradient in the subspace, of a parameter of this shape."""
        return projected_shape(shape, self.axes, self.rank)

    def project(self, grad: Float[Array, "..."], *, stacked: bool = False) -> Float[Array, "..."]:
        r"""$GP$ for every matrix of a gradient; with `stacked`, for every example along a leading axis."""
        shift = lambda axes: tuple(a + stacked for a in axes)
        return project_along(grad, self.matrix, shift(self.axes), shift(self.batch))

    def back(self, coordinates: Float[Array, "..."], shape: tuple[int, ...]) -> Float[Array, "..."]:
        r"""$ZP^\top$, the transpose of `project`: coordinates in the subspace, in a parameter's own shape."""
        squeezed = jnp.squeeze(coordinates, axis=self.axes[1:])
        labels = list(range(len(shape)))
        kept = [a for a in labels if a not in self.axes[1:]]
        r = len(shape)
        inside = [r if a == self.axes[0] else a for a in kept]
        basis = self.matrix.astype(squeezed.dtype).reshape(
            *self.matrix.shape[:-2], *(shape[a] for a in self.axes), self.rank
        )
        return jnp.einsum(squeezed, inside, basis, [*self.batch, *self.axes, r], labels, precision="highest")


def projected_shape(shape: Sequence[int], axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """The first of the projected axes has the subspace's dimension, the others have length 1."""
    return tuple(rank if a == axes[0] else 1 if a in axes else n for a, n in enumerate(shape))


def project_along(
    x: Array, matrix: Array, axes: Sequence[int], batch: Sequence[int], precision: Any = "highest"
) -> Array:
    """Contract axes of an array (in the order in which P counts them) with P, keeping the number of axes.

    `batch` are the axes along which P differs, in the order of P's own leading axes.
    """
    labels, r = list(range(x.ndim)), x.ndim
    basis = matrix.astype(x.dtype).reshape(*matrix.shape[:-2], *(x.shape[a] for a in axes), matrix.shape[-1])
    inside = [r if a == axes[0] else a for a in labels if a not in axes[1:]]
    out = jnp.einsum(x, labels, basis, [*batch, *axes, r], inside, precision=precision)
    return out.reshape(projected_shape(x.shape, axes, matrix.shape[-1]))


def check_projection(projection: Any, name: str, shape: tuple[int, ...], found: MatrixAxes | str) -> None:
    """Refuse what does not fit a parameter as the loss uses it; `found` says why where it is no matrix there."""
    if not isinstance(projection, Projection):
        raise TypeError(
            f"the projection of {name} is {setting(projection)}: give a jaxdp.per_example.Projection, or None."
        )
    if isinstance(found, str):
        raise ValueError(f"{name} cannot be projected, because {found}: leave it out of the subspace.")
    axes, batch = tuple(projection.axes), tuple(projection.batch)
    if axes not in (found.rows, found.columns) or batch != found.batch:
        raise ValueError(
            f"{name} is to be projected along its axes {axes} with a basis for each entry of {batch or 'none'}, but "
            f"this loss uses it as matrices with rows {found.rows} and columns {found.columns} along {found.batch}: "
            "take the axes from per_example_grad(loss)(params, batch).matrices()."
        )
    needed = (*(shape[a] for a in batch), math.prod(shape[a] for a in axes))
    if np.shape(projection.matrix)[:-1] != needed:
        raise ValueError(
            f"the projection of {name} has a matrix of shape {np.shape(projection.matrix)} where {needed} + (rank,) "
            "is needed."
        )
    if not jnp.issubdtype(projection.matrix.dtype, jnp.floating):
        raise TypeError(f"the projection of {name} has dtype {projection.matrix.dtype}: give floating point.")


def struct_like(leaf: Any, projection: Projection | None) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a parameter's gradient, in the subspace if it has one."""
    shape = np.shape(leaf)
    return jax.ShapeDtypeStruct(shape if projection is None else projection.shape(shape), leaf.dtype)


def project_stacked(grads: Any, projections: dict[int, Projection]) -> Any:
    """Materialised gradients with a leading batch axis, in the subspaces of those leaves that have one."""
    leaves, treedef = jax.tree.flatten(grads)
    return treedef.unflatten(
        [projections[i].project(wide(x), stacked=True) if i in projections else x for i, x in enumerate(leaves)]
    )
