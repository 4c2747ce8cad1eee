"""Uses in matrix products."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PRNGKeyArray

from jaxdp.lowering._weighted import BLOCK_ROWS, cut_in_blocks, tree_sum
from jaxdp.norms import (
    Accumulation,
    blocked_product,
    clipped_outer_sum,
    estimated_clipped_sum,
    factored_certificate,
    full_product,
    meeting_of_products,
    prefers_reuse,
)
from jaxdp.numerics._wide import wide
from jaxdp.per_example.uses._use import Layout, Operands, Outer, Use, product

# Sequences from which on a loop over examples costs no time beside what is done for each.
_LONG = 2048

# Factors keep a layer's input until the end of the pass, gradients let it go: at this ratio of their sizes neither
# needs more memory (measured).
_NO_MORE_MEMORY = 1.5

# Lengths of axes, and in how many parts devices hold them.
Parts = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Contracted(Use):
    """`dot_general` with any contracting and batch dimensions: an outer product of two factors.

    Attributes:
      parts: length and number of parts, where several devices hold the weight, of each contracted and each free axis.
    """

    parts: tuple[Parts, Parts] = ((), ())
    bilinear = True
    alone = True
    held_up_to = _NO_MORE_MEMORY

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight operand's shape."""
        return tuple(self.eqn.invars[self.index].aval.shape)

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
        k = product(a.shape[lead : lead + nb])
        t = product(a.shape[lead + nb : lead + nb + nt])
        return a.reshape(*lead_shape, k, t, -1), g.reshape(*lead_shape, k, t, -1)

    def _unfold(self, kcp: Array) -> Array:
        """A `[K, C, P]` gradient in the weight operand's own layout."""
        w_contract, _, w_batch, _ = self._dims()
        shape = self.shape
        free = [d for d in range(len(shape)) if d not in w_contract and d not in w_batch]
        order = [*w_batch, *w_contract, *free]
        full = kcp.reshape([shape[d] for d in order])
        return full.transpose([order.index(d) for d in range(len(shape))])

    def gradient(self, operands: Operands, cts: Sequence[Array]) -> Array:
        """The full outer product of one example."""
        a, g = self._factors(operands[1 - self.index], cts[0], 0)
        if a.shape[0] == 1:
            # As in `weighted_sum`: no batch axis of length one.
            return self._unfold(full_product("tc,tp->cp", a[0], g[0])[None])
        return self._unfold(full_product("ktc,ktp->kcp", a, g))

    def certificate(
        self, operands: Operands, cts: Sequence[Array], key: PRNGKeyArray | None = None
    ) -> Float[Array, "4"]:
        """From the factors, without the outer product where that is cheaper."""
        a, g = self._factors(operands[1 - self.index], cts[0], 0)
        if self.choice.estimator(a.shape[0], a.shape[1], a.shape[2], g.shape[2]) is None:
            a, g = _by_part(a, g, self.parts)
        return factored_certificate(a, g, self.choice, key, self.eqn.params["precision"])

    def terms(self, ct_shape: tuple[int, ...]) -> int:
        """T of the factors."""
        return self.sizes(ct_shape)[1]

    def meeting(self, ct_shape: tuple[int, ...], terms: int, dtype: Any) -> Accumulation:
        """One product over the batch and the sequence; or products of a few examples, one after the other."""
        k, _, c, p = self.sizes(ct_shape)
        examples = self.choice.examples
        found = meeting_of_products((k, terms, c, p), dtype, self.eqn.params["precision"], examples)
        in_one_go = self.reuses_gradient([jax.ShapeDtypeStruct(ct_shape, dtype)])
        if not in_one_go:
            return found
        # A few examples' gradients at a time, and then the next.
        return found._replace(
            rows=max(found.rows, min(BLOCK_ROWS, examples)), links=max(found.links, examples), tree=False
        )

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
        a, g = self._factors(scaled(x), ct, 1) if x.size <= ct.size else self._factors(x, scaled(ct), 1)
        size, k, t, c = a.shape
        if blocked_product(k, t, c, g.shape[-1], size):
            # In blocks, so that fewer terms meet in one accumulator.
            a, g = (cut_in_blocks(y, max(1, BLOCK_ROWS // t)) for y in (a, g))
            blocks = jnp.einsum("nbktc,nbktp->nkcp", a, g, precision=self.eqn.params["precision"])
            return self._unfold(tree_sum(blocks))
        if k == 1:
            # As a batch axis, an axis of length one would have both factors copied first to bring their axes in order.
            a, g = (y.reshape(-1, y.shape[3]) for y in (a, g))
            return self._unfold(jnp.einsum("tc,tp->cp", a, g, precision=self.eqn.params["precision"])[None])
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
        shape = self.shape
        k, c = product([shape[d] for d in batch]), product([shape[d] for d in contract])
        p = product(shape) // max(1, k * c)
        return k, product(ct_shape) // max(1, k * p), c, p

    def reuses_gradient(self, cts: Sequence[Any]) -> bool:
        """Where the gradient costs less than Gram matrices, it is made once for the norm and the sum."""
        sizes = self.sizes(jnp.shape(cts[0]))
        return self.choice.estimator(*sizes) is None and prefers_reuse(*sizes, self.choice.rule)

    def clips_in_one_go(self, cts: Sequence[Any]) -> bool:
        """Also with estimated norms of long sequences, example by example."""
        k, t, c, p = self.sizes(jnp.shape(cts[0]))
        return self.reuses_gradient(cts) or (k == 1 and t >= _LONG and self.choice.estimator(k, t, c, p) is not None)

    def clipped(
        self,
        weigh: Callable[[Array, Any], Array],
        rest: Any,
        operands: Operands,
        batched: dict[int, bool],
        cts: Any,
        keys: Key[Array, "*each"] | None = None,
    ) -> tuple[Float[Array, "batch 4"], Array]:
        """A few examples at a time: their gradients squared, weighted, added up; one where norms are estimated."""
        other, size = 1 - self.index, cts[0].shape[0]
        x = operands[other] if batched[other] else jnp.broadcast_to(operands[other], (size, *operands[other].shape))
        a, g = self._factors(x, cts[0], 1)
        precision = self.eqn.params["precision"]
        if self.choice.estimator(*self.sizes(cts[0].shape[1:])) is not None:
            assert keys is not None
            total, norms = estimated_clipped_sum(a[:, 0], g[:, 0], weigh, rest, self.choice, keys, precision)
            return norms, self._unfold(total[None])
        total, norms = clipped_outer_sum(a, g, weigh, rest, precision, self.choice.examples)
        return norms, self._unfold(total)


def _by_part(a: Array, g: Array, parts: tuple[Parts, Parts]) -> tuple[Array, Array]:
    """Factors of the gradient's blocks, one for each device that holds a block: their squared norms add up.

    A Gram matrix over features that several devices hold would be added up among them, entry by entry, for every
    example; of blocks it is a number.
    """
    rows, columns = (math.prod(count for _, count in side) for side in parts)
    if rows * columns == 1:
        return a, g
    a, g = _blocks(a, parts[0])[:, :, None], _blocks(g, parts[1])[:, None]
    spread = lambda x: jnp.broadcast_to(x, (a.shape[0], rows, columns, *x.shape[3:])).reshape(-1, *x.shape[3:])
    return spread(a), spread(g)


def _blocks(x: Float[Array, "k t features"], parts: Parts) -> Float[Array, "k blocks t size"]:
    """A factor cut along its features, of which there are `parts` of (length, number of blocks)."""
    k, t, _ = x.shape
    cut = [n for length, count in parts for n in (count, length // count)]
    moved = [2 + 2 * i for i in range(len(parts))]
    kept = [3 + 2 * i for i in range(len(parts))]
    return x.reshape(k, t, *cut).transpose(0, *moved, 1, *kept).reshape(k, math.prod(cut[::2]), t, -1)
