"""One equation's use of one weight: what an example's gradient of that weight looks like.

`Use` itself is the rule for every differentiable primitive: the equation's own VJP. Subclasses know better for the
primitives that matter, and `_uses.use_of` picks. All methods but `weighted_sum` speak of one example; JAX's `vmap`
batches them. Results are float32 (float64 for float64 models) whatever the model's dtype.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from jaxdp._shown import of_shapes
from jaxdp.norms import (
    ANY_EXACT,
    Accumulation,
    Cost,
    NormChoice,
    meeting_of_arrays,
    of_array,
    product_cost,
    reuse_chunk,
    reuse_cost,
    sum_cost,
)
from jaxdp.numerics._wide import as_real, is_complex, is_float, wide
from jaxdp.per_example.tracing._compat import eval_eqn
from jaxdp.per_example.uses._batching import few_at_a_time, one_at_a_time_sum
from jaxdp.per_example.uses._costs import HELD, REUSED, WORD, Priced, elements, outer_norm

Operands = dict[int, Any]
TAKEN = -1


class Layout(NamedTuple):
    """Axes of a leaf: those along which slices are independent, and those of the first and the second factor."""

    batch: tuple[int, ...]
    first: tuple[int, ...]
    second: tuple[int, ...]


class Outer(NamedTuple):
    """A gradient A_k^T G_k for each k."""

    __repr__ = of_shapes

    a: Float[Array, "k t c"]
    g: Float[Array, "k t p"]


class Rows(NamedTuple):
    """A gradient that is zero but for some rows, which add up where they are repeated."""

    __repr__ = of_shapes

    ids: Int[Array, " t"]
    rows: Float[Array, "t p"]


def product(shape: Sequence[int]) -> int:
    """Number of entries."""
    size = 1
    for n in shape:
        size *= n
    return size


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """The exact fallback: any primitive, through the VJP of that one equation."""

    eqn: Any
    index: int
    choice: NormChoice = ANY_EXACT  # how the norm of an outer product may be found, and how many examples meet
    # What the equation is differentiated by together, as JAX would: some derivatives exist together only.
    active: tuple[int, ...] = ()

    # Operands whose values the backward pass needs; None for all.
    saved: ClassVar[tuple[int, ...] | None] = None
    # Whether zeros in place of the other operands and the cotangents are sure to make the gradient zero.
    bilinear: ClassVar[bool] = False
    # Whether the other operands must be ordinary values.
    alone: ClassVar[bool] = False
    # How many times as large as the factors a gradient may be that is held in their place: 0 where it never is, 1 where
    # it must be smaller, more where it may be larger to save work.
    held_up_to: ClassVar[float] = 0.0
    # Whether an example's gradient may be larger than the cotangent that it is made from.
    enlarges: ClassVar[bool] = True

    @staticmethod
    def matches(eqn: Any, index: int) -> bool:
        """Whether the rule holds for this operand of an equation of its primitive."""
        del eqn, index
        return True

    @staticmethod
    def norm_choice(choice: NormChoice) -> NormChoice:
        """How the norm may be found, of what was asked for."""
        return choice

    @property
    def factor_operands(self) -> tuple[int, ...]:
        """Operands that make the gradient together with the output's cotangent; none where it is kept as it is."""
        return ()

    def weight_shape(self, cts: Sequence[Any]) -> tuple[int, ...]:
        """Shape of `gradient`, given one example's cotangents."""
        del cts
        weight = self.eqn.invars[self.index].aval
        return (*weight.shape, 2) if is_complex(weight) else weight.shape

    def projected(self, operands: Operands, cts: Sequence[Array], basis: Array | None) -> tuple[Operands, list[Array]]:
        """One example's operands and cotangents, as the rules of a use in a subspace take them."""
        del basis
        return operands, list(cts)

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

    def rows(self, cts: Sequence[Any]) -> tuple[int, int] | None:
        """Number and width of the rows of one example's factors, where the gradient is made of `Rows`."""
        del cts
        return None

    def norm_cost(self, cts: Sequence[Any]) -> Priced:
        """What `certificate` costs one example."""
        if cts and (sizes := self.sizes(jnp.shape(cts[0]))) is not None:
            return outer_norm(*sizes, self.choice)
        size, output = elements(self, cts)
        return Priced("one gradient at a time", Cost(2.0 * (output + size), WORD * (output + 3 * size)))

    def sum_cost(self, cts: Sequence[Any]) -> Cost:
        """One example's share of `weighted_sum`."""
        if cts and (sizes := self.sizes(jnp.shape(cts[0]))) is not None:
            return sum_cost(*sizes)
        _, output = elements(self, cts)
        return Cost(2.0 * output, WORD * output)

    def reuse_cost(self, cts: Sequence[Any]) -> Priced:
        """One example's share of `clipped`, with a gradient that is made once."""
        k, t, c, p = self.sizes(jnp.shape(cts[0])) or (1, 1, 1, 1)
        return Priced(REUSED, reuse_cost(k, t, c, p, reuse_chunk(k, c, p)))

    def held_cost(self, cts: Sequence[Any]) -> Priced:
        """Norm and share of the sum from a gradient that is held until the clipping weight is known."""
        k, t, c, p = self.sizes(jnp.shape(cts[0])) or (1, 1, 1, 1)
        # Made and squared; read again, weighted and added up.
        return Priced(HELD, product_cost(k, t, c, p) + Cost(2.0 * k * c * p, WORD * k * c * p))

    def gradient_cost(self, cts: Sequence[Any]) -> Cost:
        """What `gradient` costs."""
        if cts and (sizes := self.sizes(jnp.shape(cts[0]))) is not None:
            k, t, c, p = sizes
            return Cost(2.0 * k * t * c * p, WORD * k * (t * (c + p) + c * p))
        size, output = elements(self, cts)
        return Cost(float(output), WORD * (output + size))

    def reuses_gradient(self, cts: Sequence[Any]) -> bool:
        """Whether an example's gradient, made once, is cheaper than its norm and the sum by themselves."""
        del cts
        return False

    def clips_in_one_go(self, cts: Sequence[Any]) -> bool:
        """Whether `clipped` is cheaper or smaller than the norm and the sum by themselves."""
        return self.reuses_gradient(cts)

    def clipped(
        self,
        weigh: Callable[[Array, Any], Array],
        rest: Any,
        operands: Operands,
        batched: dict[int, bool],
        cts: Any,
        keys: Key[Array, "*each"] | None = None,
    ) -> tuple[Float[Array, "batch 4"], Array]:
        """Certificates, and the sum of gradients weighted by `weigh(certificates, rest)`, in one go.

        `keys` are those of the norm's probes: one, or one for each example.
        """
        raise NotImplementedError("asked where clips_in_one_go says so only, by a rule of its own")

    def gradient(self, operands: Operands, cts: Sequence[Array]) -> Array:
        """One example's gradient of the weight operand, in the operand's shape; for a complex one as `as_real` does."""
        return as_real(wide(self.pull_back(operands, [self.index], cts)[0]))

    def pull_back(self, operands: Operands, wanted: Sequence[int], cts: Sequence[Array]) -> list[Array]:
        """Cotangents of the `wanted` operands, in their own dtypes."""

        together = sorted({*wanted, *self.active})

        def apply(*xs: Array) -> list[Array]:
            full = dict(operands)
            for i, x in zip(together, xs, strict=True):
                full[i] = x
            return [out for out in eval_eqn(self.eqn, [full[i] for i in range(len(full))]) if is_float(out)]

        found = jax.vjp(apply, *[operands[i] for i in together])[1](list(cts))
        return [found[together.index(i)] for i in wanted]

    def certificate(
        self, operands: Operands, cts: Sequence[Array], key: PRNGKeyArray | None = None
    ) -> Float[Array, "4"]:
        """What is known of `gradient`'s norm, few of them alive at a time; estimated ones take probes from the key."""
        del key

        def norm(operands: Operands, cts: Sequence[Array]) -> Array:
            return of_array(self.gradient(operands, cts), self.choice.examples)

        return few_at_a_time(norm, self.eqn.invars[self.index].aval.size, operands, list(cts))

    def terms(self, ct_shape: tuple[int, ...]) -> int:
        """How many terms of one example its weighted sum adds up by itself, at one run of the equation."""
        del ct_shape
        return 1

    def meeting(self, ct_shape: tuple[int, ...], terms: int, dtype: Any) -> Accumulation:
        """How the examples' terms, so many of each, meet in the weighted sum."""
        del ct_shape, terms
        # One example after the other where gradients are large.
        return meeting_of_arrays(self.choice.examples, dtype)._replace(links=self.choice.examples, tree=False)

    def weighted_sum(
        self,
        weights: Float[Array, " batch"],
        operands: Operands,
        batched: dict[int, bool],
        cts: Sequence[Array],
    ) -> Array:
        """Sum over the batch of weight * gradient; `batched` tells which operands have a batch axis."""
        return one_at_a_time_sum(self.gradient, weights, operands, batched, cts)


class Chosen(Use):
    """A use in a branch that examples take or not: the gradient is selected, as it may be NaN where they do not.

    Whether the example takes the branch is the operand number `TAKEN`.
    """

    def gradient(self, operands: Operands, cts: Sequence[Array]) -> Array:
        """One example's gradient, zero if it does not take the branch."""
        found = super().gradient({i: x for i, x in operands.items() if i != TAKEN}, cts)
        return jnp.where(operands[TAKEN], found, jnp.zeros_like(found))
