"""Which parameters an update finds in a subspace, the bases of one period, and what a new basis means for moments."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray

from jaxdp._shown import setting
from jaxdp.numerics._normals import standard_normal
from jaxdp.numerics._wide import is_complex, wide_dtype
from jaxdp.per_example import MatrixAxes, Projection
from jaxdp.per_example.subspace._projection import project_along, projected_shape
from jaxdp.per_example.tracing._check import leaf_name

PyTree = Any
Side = Literal["smaller", "larger", "rows", "columns"]
Basis = Literal["gaussian", "orthonormal", "released"]
Select = Callable[[str, tuple[int, ...]], bool]


@dataclasses.dataclass(frozen=True)
class Chosen:
    """How one leaf of a shape is projected.

    Attributes:
      shape: the leaf's.
      axes: the axes that are projected.
      batch: the axes along which every matrix has a basis of its own.
      rank: r.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    batch: tuple[int, ...]
    rank: int

    @property
    def width(self) -> int:
        """k, the length of the side that is projected."""
        return math.prod(self.shape[a] for a in self.axes)

    @property
    def length(self) -> int:
        """m, the length of the other side."""
        return math.prod(self.shape) // max(1, self.width * self.matrices)

    @property
    def matrices(self) -> int:
        """How many matrices the leaf holds."""
        return math.prod(self.shape[a] for a in self.batch)

    @property
    def inside(self) -> tuple[int, ...]:
        """The leaf's shape in the subspace."""
        return projected_shape(self.shape, self.axes, self.rank)

    def draw(self, kind: Basis, key: PRNGKeyArray, dtype: Any) -> Projection:
        r"""A basis from a key, with $E[PP^\top] = I$ (but for `"released"`)."""
        shape = (*(self.shape[a] for a in self.batch), self.width, self.rank)
        normals = standard_normal(key, shape, dtype)
        if kind == "orthonormal":
            matrix = jnp.linalg.qr(normals)[0] * math.sqrt(self.width / self.rank)
        else:
            matrix = normals * (1 / self.rank if kind == "released" else self.rank**-0.5)
        return Projection(matrix, self.axes, self.batch)


@dataclasses.dataclass(frozen=True)
class Subspace:
    """The leaves of the parameters that are projected, None for one that is not."""

    treedef: Any
    chosen: tuple[Chosen | None, ...]
    structs: tuple[jax.ShapeDtypeStruct, ...]

    def bases(self, kind: Basis, key: PRNGKeyArray) -> PyTree:
        """Projections like the parameters, each from a key of its own."""
        found = [
            None if c is None else c.draw(kind, jax.random.fold_in(key, i), wide_dtype(s.dtype))
            for i, (c, s) in enumerate(zip(self.chosen, self.structs, strict=True))
        ]
        return self.treedef.unflatten(found)

    def inside(self, tree: PyTree, make: Callable[[jax.ShapeDtypeStruct], Any]) -> PyTree:
        """The tree's leaves, with `make(struct)` in the place of those that are projected."""
        leaves = self.treedef.flatten_up_to(tree)
        return self.treedef.unflatten(
            [x if c is None else make(s) for x, c, s in zip(leaves, self.chosen, self.structs, strict=True)]
        )

    def back(self, tree: PyTree, bases: PyTree) -> PyTree:
        """What coordinates in the subspace are in the parameters' own shapes."""
        found = zip(self.treedef.flatten_up_to(tree), self.treedef.flatten_up_to(bases), self.chosen, strict=True)
        return self.treedef.unflatten([z if c is None else p.back(z, c.shape) for z, p, c in found])

    def project_stacked(self, grads: PyTree, bases: PyTree) -> PyTree:
        """Gradients with a leading batch axis, in the subspace."""
        found = zip(self.treedef.flatten_up_to(grads), self.treedef.flatten_up_to(bases), strict=True)
        wide = lambda x: x.astype(wide_dtype(x.dtype))
        return self.treedef.unflatten([g if p is None else p.project(wide(g), stacked=True) for g, p in found])

    def fits(self, tree: PyTree) -> bool:
        """Whether this is a tree of arrays in the subspace (of which optax may have masked some)."""
        masked = lambda x: isinstance(x, optax.MaskedNode)
        leaves, treedef = jax.tree.flatten(tree, is_leaf=masked)
        if treedef != self.treedef:
            return False
        shapes = [s.shape for s in self.structs]
        return all(masked(x) or getattr(x, "shape", None) == shape for x, shape in zip(leaves, shapes, strict=True))


def choose(params: PyTree, rank: int, side: Side, select: Select | None, matrices: PyTree | None) -> Subspace:
    """The leaves that are projected: matrices whose projected side is longer than the rank."""
    found, treedef = jax.tree_util.tree_flatten_with_path(params)
    axes = [None] * len(found) if matrices is None else treedef.flatten_up_to(matrices)
    chosen: list[Chosen | None] = []
    for (path, leaf), known in zip(found, axes, strict=True):
        shape, name = tuple(np.shape(leaf)), leaf_name(path, "params")
        wanted = len(shape) > 1 and (select is None or bool(select(leaf_name(path, ""), shape)))
        if wanted and matrices is None:
            known = _guessed(name, shape)
        if not wanted or known is None:
            chosen.append(None)
            continue
        if is_complex(leaf):
            raise TypeError(f"{name} is complex, and a subspace is one of real matrices: leave it out with select.")
        if not isinstance(known, MatrixAxes):
            raise TypeError(f"matrices has {setting(known)} for {name}: take it from PerExampleGrads.matrices().")
        one = Chosen(shape, known.side(shape, side), known.batch, rank)
        chosen.append(one if one.width > rank else None)
    structs = tuple(
        jax.ShapeDtypeStruct(np.shape(x) if c is None else c.inside, x.dtype)
        for (_, x), c in zip(found, chosen, strict=True)
    )
    return Subspace(treedef, tuple(chosen), structs)


def _guessed(name: str, shape: tuple[int, ...]) -> MatrixAxes:
    if len(shape) > 2:
        raise ValueError(
            f"{name} has shape {shape}, which does not say which axes are rows, columns or layers: give "
            "matrices=jaxdp.per_example_grad(loss)(params, batch).matrices(), or leave it out with select."
        )
    return MatrixAxes((), (0,), (1,))


def carry_over(state: PyTree, subspace: Subspace, old: PyTree, new: PyTree, how: str) -> PyTree:
    r"""An optimiser's state after a new basis: `"reset"` or `"transport"`.

    A momentum $M$ stands for the direction $MP^\top$, which is $MP^\top P'$ in the new basis, shrunk by r/k against the
    noise of two projections. A second moment (a field `nu`) has no direction: the entries of each row are averaged.
    """
    treedef = subspace.treedef
    pairs = list(zip(subspace.chosen, treedef.flatten_up_to(old), treedef.flatten_up_to(new), strict=True))

    def one(x: Any, pair: Any, second: bool) -> Any:
        chosen, before, after = pair
        if chosen is None or isinstance(x, optax.MaskedNode):
            return x
        axis = chosen.axes[0]
        if second:
            return jnp.broadcast_to(jnp.mean(x, axis=axis, keepdims=True), x.shape)
        if how == "reset":
            return jnp.zeros_like(x)
        turn = jnp.einsum("...ka,...kb->...ab", before.matrix, after.matrix) * (chosen.rank / chosen.width)
        return project_along(x.astype(turn.dtype), turn, (axis,), chosen.batch).astype(x.dtype)

    def moved(path: Sequence[Any], tree: PyTree) -> PyTree:
        if not subspace.fits(tree):
            return tree
        second = any(getattr(key, "name", None) == "nu" for key in path)
        return treedef.unflatten([one(x, p, second) for x, p in zip(treedef.flatten_up_to(tree), pairs, strict=True)])

    return jax.tree_util.tree_map_with_path(moved, state, is_leaf=subspace.fits)


def zeros_like_struct(struct: jax.ShapeDtypeStruct) -> Array:
    """Zeros for an optimiser to take its shapes from."""
    return jnp.zeros(struct.shape, struct.dtype)
