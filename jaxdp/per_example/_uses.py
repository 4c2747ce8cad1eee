"""One equation's use of one weight: what an example's gradient of that weight looks like.

`Use` itself is the rule for every differentiable primitive: the equation's own VJP. The subclasses know better for the
primitives that matter, and `use_of` picks. All methods but `weighted_sum` speak of one example; JAX's `vmap` batches
them. Results are float32 (float64 for float64 models) whatever the model's dtype.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdp.norms import Rule, clipped_outer_sum, outer_squared_norm, prefers_reuse, row_squared_norm
from jaxdp.per_example._batching import few_at_a_time, one_at_a_time_sum
from jaxdp.per_example._compat import eval_eqn
from jaxdp.per_example._values import wide_dtype

Operands = dict[int, Any]


class Layout(NamedTuple):
    """Axes of a leaf: those along which slices are independent, and those of the first and the second factor."""

    batch: tuple[int, ...]
    first: tuple[int, ...]
    second: tuple[int, ...]


class Outer(NamedTuple):
    """A gradient A_k^T G_k for each k."""

    a: Float[Array, "k t c"]
    g: Float[Array, "k t p"]


class Rows(NamedTuple):
    """A gradient that is zero but for some rows, which add up where they are repeated."""

    ids: Int[Array, " t"]
    rows: Float[Array, "t p"]


def wide(x: Array) -> Array:
    """The same values in float32 or better."""
    return x.astype(wide_dtype(x.dtype))


def is_float(x: Any) -> bool:
    """Whether a value can carry a gradient."""
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def unbroadcast(x: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which an elementwise operand of this shape was repeated."""
    lead = x.ndim - len(shape)
    repeated = [lead + i for i, n in enumerate(shape) if n == 1 and x.shape[lead + i] != 1]
    return jnp.sum(x, axis=(*range(lead), *repeated), keepdims=True).reshape(shape) if lead or repeated else x


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """The exact fallback: any primitive, through the VJP of that one equation."""

    eqn: Any
    index: int
    rule: Rule | None = None  # how the norm of an outer product is found, where the user chose

    # Operands whose values the backward pass needs; None for all.
    saved: ClassVar[tuple[int, ...] | None] = None

    @property
    def factor_operands(self) -> tuple[int, ...]:
        """Operands that make the gradient together with the output's cotangent; none where it is kept as it is."""
        return ()

    def weight_shape(self, cts: Sequence[Any]) -> tuple[int, ...]:
        """Shape of the weight operand, given one example's cotangents."""
        del cts
        return self.eqn.invars[self.index].aval.shape

    def layout(self, axes: tuple[int, ...]) -> Layout | None:
        """Which axes of the leaf the two factors span; `axes` says which one each axis of the operand is."""
        del axes
        return None

    def factors(self, operands: Operands, cts: Sequence[Array]) -> Outer | Rows:
        """The factors of one example's gradient, of several runs of the equation at once (a leading axis)."""
        raise NotImplementedError("asked of uses with factor_operands only, which have a rule of their own")

    def sizes(self, ct_shape: tuple[int, ...]) -> tuple[int, int, int, int] | None:
        """K, T, C and P of one example's factors A_k^T G_k, where the gradient is made of such."""
        del ct_shape
        return None

    def reuses_gradient(self, cts: Sequence[Any]) -> bool:
        """Whether `clipped` is cheaper than the norm and the sum by themselves."""
        del cts
        return False

    def clipped(
        self, weigh: Callable[[Array, Any], Array], rest: Any, operands: Operands, batched: dict[int, bool], cts: Any
    ) -> tuple[Float[Array, " batch"], Array]:
        """Squared norms, and the sum of gradients weighted by `weigh(squared_norms, rest)`, in one go."""
        raise NotImplementedError("asked where reuses_gradient says so only, by a rule of its own")

    def gradient(self, operands: Operands, cts: Sequence[Array]) -> Array:
        """One example's gradient of the weight operand, in the operand's shape."""

        return wide(self.pull_back(operands, [self.index], cts)[0])

    def pull_back(self, operands: Operands, wanted: Sequence[int], cts: Sequence[Array]) -> list[Array]:
        """Cotangents of the `wanted` operands, in their own dtypes."""

        def apply(*xs: Array) -> list[Array]:
            full = dict(operands)
            for i, x in zip(wanted, xs, strict=True):
                full[i] = x
            return [out for out in eval_eqn(self.eqn, [full[i] for i in range(len(full))]) if is_float(out)]

        return list(jax.vjp(apply, *[operands[i] for i in wanted])[1](list(cts)))

    def squared_norm(self, operands: Operands, cts: Sequence[Array]) -> Float[Array, ""]:
        """Squared norm of `gradient`, of which few are alive at a time."""

        def norm(operands: Operands, cts: Sequence[Array]) -> Array:
            return jnp.sum(jnp.square(self.gradient(operands, cts)))

        return few_at_a_time(norm, self.eqn.invars[self.index].aval.size, operands, list(cts))

    def weighted_sum(
        self,
        weights: Float[Array, " batch"],
        operands: Operands,
        batched: dict[int, bool],
        cts: Sequence[Array],
    ) -> Array:
        """Sum over the batch of weight * gradient; `batched` tells which operands have a batch axis."""
        return one_at_a_time_sum(self.gradient, weights, operands, batched, cts)


class Elementwise(Use):
    """Uses whose gradient is no larger than the output: one vectorised reduction over the batch."""

    def squared_norm(self, operands: Operands, cts: Sequence[Array]) -> Float[Array, ""]:
        """Squared norm of `gradient`."""
        return jnp.sum(jnp.square(self.gradient(operands, cts)))

    def weighted_sum(
        self,
        weights: Float[Array, " batch"],
        operands: Operands,
        batched: dict[int, bool],
        cts: Sequence[Array],
    ) -> Array:
        """One reduction over the batch."""
        axes = {i: 0 if b else None for i, b in batched.items()}
        grads = jax.vmap(self.gradient, in_axes=(axes, 0))(operands, list(cts))
        return jnp.einsum("b,b...->...", weights.astype(grads.dtype), grads, precision="highest")


class Escaped(Elementwise):
    """A parameter that becomes an ordinary value (a loop's initial state, say): the gradient is the cotangent."""

    saved = ()

    def weight_shape(self, cts: Sequence[Any]) -> tuple[int, ...]:
        """The cotangent's shape."""
        return jnp.shape(cts[0]) if self.eqn is None else super().weight_shape(cts)

    def gradient(self, operands: Operands, cts: Sequence[Array]) -> Array:
        """The cotangent."""
        return wide(cts[0])


class Added(Escaped):
    """`add` and `sub`: the gradient is the output's cotangent, negated for a subtrahend."""

    def _sign(self, index: int, ct: Array) -> Array:
        return -ct if self.eqn.primitive.name == "sub" and index == 1 else ct

    def gradient(self, operands: Operands, cts: Sequence[Array]) -> Array:
        """The signed cotangent."""
        return unbroadcast(self._sign(self.index, wide(cts[0])), self.eqn.invars[self.index].aval.shape)

    def pull_back(self, operands: Operands, wanted: Sequence[int], cts: Sequence[Array]) -> list[Array]:
        """The signed cotangents: no operand's value is needed, so none is kept for the backward pass."""
        avals = [self.eqn.invars[i].aval for i in wanted]
        return [
            unbroadcast(self._sign(i, cts[0]), aval.shape).astype(aval.dtype)
            for i, aval in zip(wanted, avals, strict=True)
        ]


class Multiplied(Elementwise):
    """`mul`: the gradient is the output's cotangent times the other factor."""

    def gradient(self, operands: Operands, cts: Sequence[Array]) -> Array:
        """Elementwise product."""
        return unbroadcast(wide(cts[0]) * wide(operands[1 - self.index]), self.eqn.invars[self.index].aval.shape)


class Contracted(Use):
    """`dot_general` with any contracting and batch dimensions: an outer product of two factors."""

    def _dims(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Contracting and batch dimensions of the weight and of the other operand."""
        contract, batch = self.eqn.params["dimension_numbers"]
        other = 1 - self.index
        return (
            tuple(contract[self.index]),
            tuple(contract[other]),
            tuple(batch[self.index]),
            tuple(batch[other]),
        )

    def _factors(self, x: Array, ct: Array, lead: int) -> tuple[Array, Array]:
        """Input `[*lead, K, T, C]` and output cotangent `[*lead, K, T, P]`; the gradient is A^T G for each k."""
        _, x_contract, _, x_batch = self._dims()
        dims = range(x.ndim - lead)
        x_free = [d for d in dims if d not in x_contract and d not in x_batch]
        nb, nt = len(x_batch), len(x_free)
        np_ = ct.ndim - lead - nb - nt
        head = list(range(lead))
        a = x.transpose(head + [lead + d for d in (*x_batch, *x_free, *x_contract)])
        # Free dimensions of the left operand come first in the output.
        t_at, p_at = (nb, nb + nt) if self.index == 1 else (nb + np_, nb)
        g = ct.transpose(head + [lead + d for d in (*range(nb), *range(t_at, t_at + nt), *range(p_at, p_at + np_))])
        lead_shape = a.shape[:lead]
        k = _size(a.shape[lead : lead + nb])
        t = _size(a.shape[lead + nb : lead + nb + nt])
        return a.reshape(*lead_shape, k, t, -1), g.reshape(*lead_shape, k, t, -1)

    def _unfold(self, kcp: Array) -> Array:
        """A `[K, C, P]` gradient in the weight operand's own layout."""
        w_contract, _, w_batch, _ = self._dims()
        shape = self.eqn.invars[self.index].aval.shape
        free = [d for d in range(len(shape)) if d not in w_contract and d not in w_batch]
        order = [*w_batch, *w_contract, *free]
        full = kcp.reshape([shape[d] for d in order])
        return full.transpose([order.index(d) for d in range(len(shape))])

    def gradient(self, operands: Operands, cts: Sequence[Array]) -> Array:
        """The full outer product of one example."""
        a, g = self._factors(operands[1 - self.index], cts[0], 0)
        return self._unfold(jnp.einsum("ktc,ktp->kcp", wide(a), wide(g), precision="highest"))

    def squared_norm(self, operands: Operands, cts: Sequence[Array]) -> Float[Array, ""]:
        """From the factors, without the outer product where that is cheaper."""
        a, g = self._factors(operands[1 - self.index], cts[0], 0)
        return outer_squared_norm(wide(a), wide(g), self.rule)

    def weighted_sum(
        self,
        weights: Float[Array, " batch"],
        operands: Operands,
        batched: dict[int, bool],
        cts: Sequence[Array],
    ) -> Array:
        """One matrix product over the batch and the sequence."""
        x, ct = wide(operands[1 - self.index]), wide(cts[0])
        scaled = lambda y: weights.astype(y.dtype).reshape((-1,) + (1,) * (y.ndim - 1)) * y
        if not batched[1 - self.index]:
            a, g = self._factors(x, jnp.sum(scaled(ct), axis=0), 0)
            return self._unfold(jnp.einsum("ktc,ktp->kcp", a, g, precision=self.eqn.params["precision"]))
        # The smaller factor takes the weights, since what is scaled is held once more.
        a, g = self._factors(scaled(x), ct, 1) if x.size < ct.size else self._factors(x, scaled(ct), 1)
        return self._unfold(jnp.einsum("bktc,bktp->kcp", a, g, precision=self.eqn.params["precision"]))

    @property
    def factor_operands(self) -> tuple[int, ...]:
        """The other operand."""
        return (1 - self.index,)

    def layout(self, axes: tuple[int, ...]) -> Layout:
        """Contracted axes belong to the input, free ones to the cotangent."""
        contract, _, batch, _ = self._dims()
        free = [d for d in range(len(axes)) if d not in contract and d not in batch]
        pick = lambda dims: tuple(axes[d] for d in dims)
        return Layout(pick(batch), pick(contract), pick(free))

    def factors(self, operands: Operands, cts: Sequence[Array]) -> Outer:
        """Runs of the equation follow each other along the sequence."""
        a, g = self._factors(wide(operands[1 - self.index]), wide(cts[0]), 1)
        along = lambda x: jnp.moveaxis(x, 1, 0).reshape(x.shape[1], -1, x.shape[3])
        return Outer(along(a), along(g))

    def sizes(self, ct_shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """K, T, C and P of one example's factors."""
        contract, _, batch, _ = self._dims()
        shape = self.eqn.invars[self.index].aval.shape
        k, c = _size([shape[d] for d in batch]), _size([shape[d] for d in contract])
        p = _size(shape) // max(1, k * c)
        return k, _size(ct_shape) // max(1, k * p), c, p

    def reuses_gradient(self, cts: Sequence[Any]) -> bool:
        """Where the gradient costs less than Gram matrices, it is made once for the norm and the sum."""
        return prefers_reuse(*self.sizes(jnp.shape(cts[0])), self.rule)

    def clipped(
        self, weigh: Callable[[Array, Any], Array], rest: Any, operands: Operands, batched: dict[int, bool], cts: Any
    ) -> tuple[Float[Array, " batch"], Array]:
        """A few examples' gradients at a time: squared, weighted, added up."""
        other, size = 1 - self.index, cts[0].shape[0]
        x = operands[other] if batched[other] else jnp.broadcast_to(operands[other], (size, *operands[other].shape))
        a, g = self._factors(wide(x), wide(cts[0]), 1)
        total, norms = clipped_outer_sum(a, g, weigh, rest, self.eqn.params["precision"])
        return norms, self._unfold(total)


def _size(shape: Sequence[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


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

    def squared_norm(self, operands: Operands, cts: Sequence[Array]) -> Float[Array, ""]:
        """Rows read more than once add up before they are squared."""
        ids, rows = self._rows(operands[1], cts[0], 0)
        return row_squared_norm(ids, rows.reshape(ids.shape[0], -1))

    def weighted_sum(
        self,
        weights: Float[Array, " batch"],
        operands: Operands,
        batched: dict[int, bool],
        cts: Sequence[Array],
    ) -> Array:
        """One scatter-add over all rows that the batch touches."""
        ids = operands[1]
        if not batched[1]:
            ids = jnp.broadcast_to(ids, (weights.shape[0], *ids.shape))
        ids, rows = self._rows(ids, cts[0], 1)
        rows = weights.astype(rows.dtype).reshape((-1,) + (1,) * (rows.ndim - 1)) * rows
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


class Convolved(Use):
    """`conv_general_dilated`, strided, dilated or grouped, in any number of dimensions."""

    @staticmethod
    def matches(eqn: Any, index: int) -> bool:
        """Whether the weight is the kernel of a convolution without batch groups."""
        return index == 1 and eqn.params["batch_group_count"] == 1

    def _patches(self, x: Array, ct: Array) -> tuple[Array, Array]:
        """Patches `[groups, T, C]` and cotangents `[groups, T, P]`, T being all output positions."""
        p = self.eqn.params
        dims, groups = p["dimension_numbers"], p["feature_group_count"]
        kernel = self.eqn.invars[1].aval.shape
        patches = jax.lax.conv_general_dilated_patches(
            wide(x),
            filter_shape=[kernel[d] for d in dims.rhs_spec[2:]],
            window_strides=p["window_strides"],
            padding=p["padding"],
            lhs_dilation=p["lhs_dilation"],
            rhs_dilation=p["rhs_dilation"],
            dimension_numbers=dims,
            precision=jax.lax.Precision.HIGHEST,
        )

        def canonical(y: Array) -> Array:
            batch, feature, *spatial = dims.out_spec
            y = y.transpose([feature, batch, *spatial])
            y = y.reshape(groups, y.shape[0] // groups, -1)
            return jnp.swapaxes(y, 1, 2)

        return canonical(patches), canonical(wide(ct))

    def squared_norm(self, operands: Operands, cts: Sequence[Array]) -> Float[Array, ""]:
        """A convolution is a matrix product with patches of its input."""
        return outer_squared_norm(*self._patches(operands[0], cts[0]), self.rule)

    def sizes(self, ct_shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Groups, output positions, and the sizes of a group's patches and outputs."""
        groups, spec = self.eqn.params["feature_group_count"], self.eqn.params["dimension_numbers"].rhs_spec
        kernel = self.eqn.invars[1].aval.shape
        outputs = kernel[spec[0]]
        patch = _size([kernel[d] for d in spec[1:]])
        return groups, _size(ct_shape) // max(1, outputs), patch, outputs // groups

    def _kernel_gradient(self, x: Array, ct: Array) -> Array:
        """The kernel's gradient of a (folded) batch."""
        p, kernel = self.eqn.params, self.eqn.invars[1].aval
        options = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers")

        def apply(w: Array) -> Array:
            return jax.lax.conv_general_dilated(
                wide(x),
                w,
                **{name: p[name] for name in options},
                feature_group_count=p["feature_group_count"],
                precision=p["precision"],
            )

        struct = jax.ShapeDtypeStruct(kernel.shape, wide(x).dtype)
        return jax.linear_transpose(apply, struct)(wide(ct))[0]

    def gradient(self, operands: Operands, cts: Sequence[Array]) -> Array:
        """The kernel's gradient of one example."""
        return self._kernel_gradient(operands[0], cts[0])

    def weighted_sum(
        self,
        weights: Float[Array, " batch"],
        operands: Operands,
        batched: dict[int, bool],
        cts: Sequence[Array],
    ) -> Array:
        """The convolution's own backward pass over the whole batch, folded into its batch dimension."""
        dims = self.eqn.params["dimension_numbers"]
        x = operands[0] if batched[0] else jnp.broadcast_to(operands[0], (weights.shape[0], *operands[0].shape))

        def fold(y: Array, batch_dim: int) -> Array:
            y = jnp.moveaxis(y, 0, batch_dim)
            return y.reshape(*y.shape[:batch_dim], -1, *y.shape[batch_dim + 2 :])

        ct = wide(cts[0])
        ct = weights.astype(ct.dtype).reshape((-1,) + (1,) * (ct.ndim - 1)) * ct
        return self._kernel_gradient(fold(wide(x), dims.lhs_spec[0]), fold(ct, dims.out_spec[0]))

    @property
    def factor_operands(self) -> tuple[int, ...]:
        """The input."""
        return (0,)

    def factors(self, operands: Operands, cts: Sequence[Array]) -> Outer:
        """Runs of the equation follow each other along the output positions."""
        a, g = jax.vmap(self._patches)(operands[0], cts[0])
        along = lambda x: jnp.moveaxis(x, 1, 0).reshape(x.shape[1], -1, x.shape[3])
        return Outer(along(a), along(g))


def use_of(eqn: Any, index: int, others_are_weights: bool, rule: Rule | None = None) -> Use:
    """The best rule for operand `index` of an equation."""
    name = eqn.primitive.name
    if not others_are_weights:
        if name == "dot_general":
            return Contracted(eqn, index, rule)
        if name == "gather" and Gathered.matches(eqn, index):
            return Gathered(eqn, index)
        if name == "conv_general_dilated" and Convolved.matches(eqn, index):
            return Convolved(eqn, index, rule)
    if name in ("add", "sub", "add_any"):
        return Added(eqn, index)
    if name == "mul":
        return Multiplied(eqn, index)
    return Use(eqn, index)
