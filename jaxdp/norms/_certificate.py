r"""What is known of one gradient's norm: enough to bound the norm of what is really added to a sum.

A certificate is four numbers, each of which adds up over parts of a gradient that touch different entries:

| | |
|---|---|
| 0 | the squared norm as found |
| 1 | what rounding can have taken from it |
| 2 | the square of what rounding can add to this example's own share of the weighted sum, for a weight of one |
| 3 | the square of what rounding can add when other examples' terms share its accumulator |

The certified norm is $\hat n = \max(\sqrt{c_0 + c_1} + \sqrt{c_2},\; \sqrt{c_3}/\mu)$. A weight $w \le R/\hat n$ leaves
no more than R of this example in the sum, and moves the rounding errors of all by no more than $\mu R$; the public
number $\mu$ goes into the sensitivity. Proofs: docs/floating_point.md.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdp.lowering._weighted import BLOCK_ROWS, in_blocks
from jaxdp.norms._rounding import (
    OTHER_ROUNDINGS,
    SMALLEST_SQUARE,
    UPWARDS,
    norm_product_unit,
    reduction_depth,
    sum_unit,
    unit,
)

# Length of a certificate.
TERMS = 4

# Sums of blocks of examples take so many elements at most, and no more than this part of their factors.
_BLOCKED_ELEMENTS, _BLOCKED_PART = 1 << 23, 4

# Weights, roots and sums of few certificates are rounded, too.
_LAST_ROUNDINGS = 1.0 + 2.0**-21


def certificate(squared: Array, margin: Any, rounding: Any, background: Any) -> Float[Array, "4"]:
    """The four numbers of one gradient, from scalars."""
    found = [jnp.asarray(x, jnp.float32) for x in (squared, margin, rounding, background)]
    return jnp.stack([x.reshape(()) for x in found])


def of_array(gradient: Float[Array, "..."], examples: int) -> Float[Array, "4"]:
    """The certificate of a gradient whose very entries, times a weight, are added to those of `examples` in all."""
    squared = jnp.sum(jnp.square(gradient))
    return of_squared_norms(squared, gradient.size, gradient.dtype, examples)


def of_squared_norms(
    squared: Float[Array, "*any"], size: int, dtype: Any, examples: int, axis: int = -1
) -> Float[Array, "..."]:
    """The same from squared norms, each added up from `size` squares, along a new axis."""
    u = unit(dtype)
    own, all_of_them = OTHER_ROUNDINGS * u, meeting_of_arrays(examples, dtype).unit
    margin = squared * ((reduction_depth(size) + 2) * u * UPWARDS) + SMALLEST_SQUARE * size
    found = (squared, margin, squared * (own * own * UPWARDS), squared * (all_of_them * all_of_them * UPWARDS))
    return jnp.stack([x.astype(jnp.float32) for x in found], axis=axis)


class Accumulation(NamedTuple):
    r"""How the examples' terms meet in a sum.

    Attributes:
      rows: how many examples' terms are added up in one accumulator.
      unit: how much that rounds, as a share of what they measure.
      links: how many sums of such, at most, are added up one after the other.
      tree: whether they are added up in pairs of pairs instead.
    """

    rows: int
    unit: float
    links: int = 0
    tree: bool = False


def meeting_of_arrays(examples: int, dtype: Any) -> Accumulation:
    """Of one array for each example, added up by `weighted_total`."""
    blocks = in_blocks(examples)
    rows = BLOCK_ROWS if blocks else examples
    return Accumulation(rows, (rows + OTHER_ROUNDINGS) * unit(dtype), math.ceil(examples / rows) - 1, blocks)


def meeting_of_products(sizes: tuple[int, int, int, int], dtype: Any, precision: Any, examples: int) -> Accumulation:
    """Of factors of sizes K, T, C, P for each example, in one product or in products of blocks of examples."""
    k, t, c, p = sizes
    if blocked_product(k, t, c, p, examples):
        rows = max(1, BLOCK_ROWS // t)
        return Accumulation(rows, sum_unit(rows * t, c, p, dtype, precision), math.ceil(examples / rows) - 1, True)
    return Accumulation(examples, sum_unit(t * examples, c, p, dtype, precision))


def blocked_product(k: int, t: int, c: int, p: int, examples: int) -> bool:
    """Whether a product over examples is made block by block: where many short ones meet in a small result."""
    if t > BLOCK_ROWS or not in_blocks(t * examples):
        return False
    held = math.ceil(examples / max(1, BLOCK_ROWS // max(1, t))) * k * c * p
    return held <= min(_BLOCKED_ELEMENTS, k * t * examples * (c + p) // _BLOCKED_PART)


def of_sum(
    squared: Array, margin: Array, magnitudes: Float[Array, "*k"], made: float, summed: float, shared: float
) -> Float[Array, "4"]:
    r"""The certificate of $A_k^\top G_k$ for each k, which is found by itself and summed from its factors.

    `magnitudes` are $\sum_t|a_t||g_t|$; `made`, `summed` and `shared` the units of the product that the norm was found
    from, of the sum of its own terms, and of the sum with those of all examples.
    """
    total = jnp.sum(jnp.square(magnitudes)) * UPWARDS
    own = made + summed
    return certificate(squared, margin, total * (own * own), total * (shared * shared))


def of_product(
    squared: Array,
    magnitudes: Float[Array, "*k"],
    sizes: tuple[int, int, int, int],
    dtype: Any,
    precision: Any,
    examples: int,
    estimated: bool = False,
) -> Float[Array, "4"]:
    r"""The certificate of $A_k^\top G_k$ for each k of sizes K, T, C, P, whose norm is that of a product made for it.

    `estimated` says that it was a product with random combinations of G's columns.
    """
    k, t, c, p = sizes
    u = unit(dtype)
    made = norm_product_unit(t, c, p, dtype)
    if estimated:
        # Combinations of columns are off by their products' unit times the probes' norm: the root of their number.
        n = min(c, p)
        made = 2 * math.sqrt(n) * (made + norm_product_unit(n, t, t, dtype))
    margin = squared * ((reduction_depth(k * c * p) + 2) * u * UPWARDS) + SMALLEST_SQUARE * k * c * p
    summed = sum_unit(t, c, p, dtype, precision)
    return of_sum(squared, margin, magnitudes, made, summed, shared_unit(sizes, dtype, precision, examples))


def shared_unit(sizes: tuple[int, int, int, int], dtype: Any, precision: Any, examples: int) -> float:
    """`sum_unit` where other examples' terms are added up in the same product."""
    return meeting_of_products(sizes, dtype, precision, examples).unit


def certified_norm(terms: Float[Array, "*any 4"], limit: float) -> Float[Array, "*any"]:
    r"""$\hat n$ from certificates along the last axis; `limit` is $\mu$."""
    squared, margin, rounding, background = (terms[..., i] for i in range(TERMS))
    own = jnp.sqrt(squared + margin) + jnp.sqrt(rounding)
    return jnp.maximum(own * _LAST_ROUNDINGS, jnp.sqrt(background) * (_LAST_ROUNDINGS / limit))
