"""Uses as kernels of convolutions."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PRNGKeyArray

from jaxdp.lowering import _target
from jaxdp.lowering._late import zeros_after
from jaxdp.lowering._shards import chunk_size, shards_of, sum_examples
from jaxdp.lowering._weighted import weighted_total
from jaxdp.norms import (
    Accumulation,
    Cost,
    NormChoice,
    magnitude,
    of_array,
    of_product,
    outer_certificate,
    probe_matrix,
    sum_unit,
)
from jaxdp.numerics._wide import wide, wide_dtype
from jaxdp.per_example.tracing._convolution_layout import has_canonical_form, pull_back
from jaxdp.per_example.uses._batching import few_at_a_time
from jaxdp.per_example.uses._convolution_costs import (
    alive_elements,
    convolution_kept_cost,
    convolution_norm,
    convolution_prefers_reuse,
    convolution_reuse_cost,
    convolution_sum_cost,
)
from jaxdp.per_example.uses._costs import HELD, REUSED, Priced
from jaxdp.per_example.uses._patches import Window
from jaxdp.per_example.uses._use import Operands, Outer, Use, product

# Rows of patches of a few examples, together in one matrix product of a sum: at least so many, if there are.
_SUM_ROWS = 1024


class Convolved(Use):
    """`conv_general_dilated`, strided, dilated or grouped, in any number of dimensions.

    The gradient of one example is a matrix product with patches of its input. Those are several times the input, so
    they are cut out for a few examples at a time and never held for a batch.
    """

    bilinear = True
    alone = True
    # No larger than factors, whose inputs are small beside the patches that they are multiplied as.
    held_up_to = 1.0

    @staticmethod
    def norm_choice(choice: NormChoice) -> NormChoice:
        """From probes alone where it may be estimated: Hutch++ has no rule for convolutions."""
        return choice.plain()

    @staticmethod
    def matches(eqn: Any, index: int) -> bool:
        """Whether the weight is the kernel of a convolution without batch groups."""
        return index == 1 and eqn.params["batch_group_count"] == 1

    @property
    def _window(self) -> Window:
        return Window(self.eqn.params, self.eqn.invars[1].aval.shape)

    def _patches(self, x: Array, ct: Array) -> tuple[Array, Array]:
        """Patches `[*groups, T, C]` and cotangents `[*groups, T, P]`, T being all output positions."""
        return self._window.patches(wide(x), ct.shape), self._window.outputs(wide(ct))

    def _product(self, x: Array, ct: Array, precision: Any = jax.lax.Precision.HIGHEST) -> Array:
        """One example's gradient `[*groups, P, C]`."""
        a, g = self._patches(x, ct)
        # In this order: the other one's small first side has a CPU copy the patches once more.
        return jnp.einsum("...tp,...tc->...pc", g, a, precision=precision)

    def _few(self, fn: Callable[[Array, Any], Array], x: Array, ct: Any) -> Array:
        """`fn(input, cotangents)` of one example, with patches of few examples alive."""
        return few_at_a_time(fn, self._alive(jax.tree.leaves(ct)[-1].shape), x, ct, room=alive_elements())

    def _alive(self, ct_shape: tuple[int, ...]) -> int:
        """Elements of one example's patches or gradient, whichever are more."""
        k, t, c, p = self.sizes(ct_shape)
        return k * c * max(t, p)

    def certificate(
        self, operands: Operands, cts: Sequence[Array], key: PRNGKeyArray | None = None
    ) -> Float[Array, "4"]:
        """A convolution is a matrix product with patches of its input."""
        sizes = self.sizes(jnp.shape(cts[0]))
        norm = self.choice.estimator(*sizes)
        if norm is not None:
            assert key is not None
            return self._few(
                lambda x, y: self._of_product(x, y[0], y[1]),
                operands[0],
                (self._mixed(cts[0], key, norm.probes), cts[0]),
            )
        if convolution_norm(*sizes, self.choice)[0] == "Gram":
            return self._few(self._of_gram, operands[0], cts[0])
        return self._few(lambda x, ct: self._of_product(x, ct, ct), operands[0], cts[0])

    def _of_gram(self, x: Array, ct: Array) -> Array:
        a, g = self._patches(x, ct)
        precision, examples = self.eqn.params["precision"], self.choice.examples
        return outer_certificate(
            self._with_groups(a), self._with_groups(g), "gram", precision=precision, examples=examples
        )

    def _of_product(self, x: Array, found_from: Array, ct: Array) -> Array:
        """Certificate of one example's gradient, its norm found from a product with `found_from`."""
        a, g = self._patches(x, ct)
        squared = jnp.sum(jnp.square(self._product(x, found_from)))
        dtype, precision, examples = wide_dtype(ct.dtype), self.eqn.params["precision"], self.choice.examples
        estimated = found_from is not ct
        return of_product(squared, magnitude(a, g), self.sizes(ct.shape), dtype, precision, examples, estimated)

    def terms(self, ct_shape: tuple[int, ...]) -> int:
        """Output positions."""
        return self.sizes(ct_shape)[1]

    def meeting(self, ct_shape: tuple[int, ...], terms: int, dtype: Any) -> Accumulation:
        """One product over a few examples and the output positions, then the next; off a CPU one over the batch."""
        _, _, c, p = self.sizes(ct_shape)
        examples = self.choice.examples
        rows = examples
        if _target.forms().patches:
            rows = chunk_size(examples // shards_of(examples), self._together(ct_shape))
        return Accumulation(
            rows, sum_unit(rows * terms, c, p, dtype, self.eqn.params["precision"]), math.ceil(examples / rows) - 1
        )

    def _together(self, ct_shape: tuple[int, ...]) -> int:
        """How many examples are multiplied at a time, at most."""
        _, t, _, _ = self.sizes(ct_shape)
        return max(alive_elements() // max(1, self._alive(ct_shape)), -(-_SUM_ROWS // max(1, t)))

    def _with_groups(self, x: Array) -> Array:
        """With an axis for groups, also if there is one only."""
        return x if self._window.groups > 1 else x[None]

    def _mixed(self, ct: Array, key: PRNGKeyArray, probes: int) -> Array:
        """Random combinations in place of the outputs of each group."""
        feature = self.eqn.params["dimension_numbers"].out_spec[1]
        groups, _, _, outputs = self.sizes(jnp.shape(ct))
        grouped = jnp.moveaxis(wide(ct), feature, -1)
        grouped = grouped.reshape(*grouped.shape[:-1], groups, outputs)
        mixed = jnp.einsum(
            "...gp,gpm->...gm",
            grouped,
            probe_matrix(key, (groups, outputs, probes), grouped.dtype),
            precision="highest",
        )
        return jnp.moveaxis(mixed.reshape(*mixed.shape[:-2], -1), -1, feature)

    def sizes(self, ct_shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Groups, output positions, and the sizes of a group's patches and outputs."""
        groups, spec = self.eqn.params["feature_group_count"], self.eqn.params["dimension_numbers"].rhs_spec
        kernel = self.eqn.invars[1].aval.shape
        outputs = kernel[spec[0]]
        patch = product([kernel[d] for d in spec[1:]])
        return groups, product(ct_shape) // max(1, outputs), patch, outputs // groups

    def gradient(self, operands: Operands, cts: Sequence[Array]) -> Array:
        """The kernel's gradient of one example."""
        return self._few(lambda x, ct: self._window.unfold(self._product(x, ct)), operands[0], cts[0])

    def pull_back(self, operands: Operands, wanted: Sequence[int], cts: Sequence[Array]) -> list[Array]:
        """The input's cotangent, in the form that is fast in loops."""
        if list(wanted) != [0] or not has_canonical_form(self.eqn):
            return super().pull_back(operands, wanted, cts)
        return [pull_back(self.eqn, operands[1], operands[0], cts[0])]

    def weighted_sum(
        self,
        weights: Float[Array, " batch"],
        operands: Operands,
        batched: dict[int, bool],
        cts: Sequence[Array],
    ) -> Array:
        """The kernel's gradient over the whole batch."""
        size = weights.shape[0]
        x = operands[0] if batched[0] else jnp.broadcast_to(operands[0], (size, *operands[0].shape))
        if not _target.forms().patches:
            return self._folded_gradient(weights, x, cts[0])
        # Patches and a product take no longer there than the convolution's own backward pass, nor in a loop, where
        # XLA's convolutions are slow.
        precision = self.eqn.params["precision"]
        most = self._together(cts[0].shape[1:])

        def add(total: Array, part: Any) -> tuple[Array, None]:
            weights, x, ct = part
            a, g = jax.vmap(self._patches)(x, ct)
            g = weights.astype(g.dtype).reshape(-1, *(1,) * (g.ndim - 1)) * g
            fold = lambda y: jnp.moveaxis(y, 0, -3).reshape(*y.shape[1:-2], -1, y.shape[-1])
            return total + jnp.einsum("...tp,...tc->...pc", fold(g), fold(a), precision=precision), None

        return self._window.unfold(self._in_chunks(add, most, cts[0], (weights, x, cts[0]))[0])

    def _folded_gradient(self, weights: Float[Array, " batch"], x: Array, ct: Array) -> Array:
        """The convolution's own backward pass, over the batch folded into its batch dimension."""
        p = self.eqn.params
        dims = p["dimension_numbers"]
        options = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers")

        def fold(y: Array, batch_dim: int) -> Array:
            y = jnp.moveaxis(y, 0, batch_dim)
            return y.reshape(*y.shape[:batch_dim], -1, *y.shape[batch_dim + 2 :])

        x, ct = fold(wide(x), dims.lhs_spec[0]), wide(ct)
        ct = fold(weights.astype(ct.dtype).reshape((-1,) + (1,) * (ct.ndim - 1)) * ct, dims.out_spec[0])

        def apply(w: Array) -> Array:
            return jax.lax.conv_general_dilated(
                x,
                w,
                **{name: p[name] for name in options},
                feature_group_count=p["feature_group_count"],
                precision=p["precision"],
            )

        return jax.linear_transpose(apply, jax.ShapeDtypeStruct(self.eqn.invars[1].aval.shape, x.dtype))(ct)[0]

    def norm_cost(self, cts: Sequence[Any]) -> Priced:
        """Of patches and cotangents."""
        return Priced(*convolution_norm(*self.sizes(jnp.shape(cts[0])), self.choice))

    def sum_cost(self, cts: Sequence[Any]) -> Cost:
        """One product with patches."""
        return convolution_sum_cost(*self.sizes(jnp.shape(cts[0])))

    def reuse_cost(self, cts: Sequence[Any]) -> Priced:
        """Patches are cut out once."""
        return Priced(REUSED, convolution_reuse_cost(*self.sizes(jnp.shape(cts[0]))))

    def held_cost(self, cts: Sequence[Any]) -> Priced:
        """Patches are cut out once."""
        return Priced(HELD, convolution_kept_cost(*self.sizes(jnp.shape(cts[0]))))

    def reuses_gradient(self, cts: Sequence[Any]) -> bool:
        """Where the gradient costs less than Gram matrices, it is made once for the norm and the sum."""
        return convolution_prefers_reuse(*self.sizes(jnp.shape(cts[0])), self.choice)

    def clipped(
        self,
        weigh: Callable[[Array, Any], Array],
        rest: Any,
        operands: Operands,
        batched: dict[int, bool],
        cts: Any,
        keys: Key[Array, "*each"] | None = None,
    ) -> tuple[Float[Array, "batch 4"], Array]:
        """A few examples' gradients at a time: squared, weighted, added up."""
        del keys
        size = cts[0].shape[0]
        x = operands[0] if batched[0] else jnp.broadcast_to(operands[0], (size, *operands[0].shape))
        precision = self.eqn.params["precision"]

        def add(total: Array, part: Any) -> tuple[Array, Array]:
            x, ct, rest = part
            found = jax.vmap(lambda x, ct: self._product(x, ct, precision))(x, ct)
            norms = jax.vmap(lambda product: of_array(product, self.choice.examples))(found)
            return total + weighted_total(weigh(norms, rest), found), norms

        most = alive_elements() // max(1, self._alive(cts[0].shape[1:]))
        total, norms = self._in_chunks(add, most, cts[0], (x, cts[0], rest))
        return norms.reshape(size, -1), self._window.unfold(total)

    def _in_chunks(
        self, add: Callable[[Array, Any], tuple[Array, Any]], most: int, ct: Array, parts: Any
    ) -> tuple[Array, Any]:
        """`add(total, part) -> (total, found)` over parts of `most` examples, from zeros `[*groups, P, C]`."""
        size = jax.tree.leaves(parts)[0].shape[0]
        each = size // shards_of(size)
        chunk = chunk_size(each, most)
        groups, _, c, p = self.sizes((0,))
        start = zeros_after((groups, p, c) if groups > 1 else (p, c), wide_dtype(ct.dtype), ct)
        if chunk == each:
            return add(start, parts)
        split = lambda x: x.reshape(size // chunk, chunk, *x.shape[1:])
        return sum_examples(add, start, jax.tree.map(split, parts))

    @property
    def factor_operands(self) -> tuple[int, ...]:
        """The input."""
        return (0,)

    def factors(self, operands: Operands, cts: Sequence[Array]) -> Outer:
        """Runs of the equation follow each other along the output positions."""
        a, g = jax.vmap(lambda x, ct: tuple(map(self._with_groups, self._patches(x, ct))))(operands[0], cts[0])
        along = lambda x: jnp.moveaxis(x, 1, 0).reshape(x.shape[1], -1, x.shape[3])
        return Outer(along(a), along(g))
