r"""The arithmetic that runs: how far sums of products in floating point may be from the exact ones.

Nothing here is estimated from data: these are the constants of the model of arithmetic that docs/floating_point.md
states, with the proofs of what is concluded from them. $u$ is the unit roundoff of the type that sums are made in.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdp.lowering import _target
from jaxdp.numerics._wide import wide_dtype

# Additions that one term of a matrix product passes through on a CPU, at most: its kernels add up pieces of this
# length, and the pieces' sums one after the other. (tests/norms/test_rounding.py measures both.)
_CPU_PIECE, _CPU_SHORTEST_PIECE = 512, 256
# Of results with a shorter side than this pieces are longer.
_CPU_SHORT_SIDE, _CPU_LONG_PIECE = 16, 2048
# Products with fewer entries than this, or of a vector, are one running sum there.
_CPU_SMALL = 16
# A TPU's matrix unit adds up so many terms at a time.
_TPU_PIECE = 128
# Additions that one term of a reduction passes through: compilers make trees of them.
_REDUCTION, _REDUCTION_SHARE = 64, 2048

# Roundings of a term beside those of adding up: weight, product, weight times factor, meeting another sum.
OTHER_ROUNDINGS = 4

# Matrix units may cut off instead of rounding, and align to the largest term: two more bits for all of it.
_MATRIX_UNIT_FACTOR = 4.0

# Squares below float32's smallest normal number are lost. Where norms are products of factors' norms, the loss in one
# factor is multiplied by the other, so what may be lost is added: an overestimate, of no size unless it matters.
SMALLEST_SQUARE = 2.0**-126

# What is found in floating point about rounding (row norms, their sums) is itself rounded: more than covers that.
UPWARDS = 1.0 + 2.0**-10


def unit(dtype: Any) -> float:
    """Unit roundoff of the type in which sums of values of this type are made."""
    return float(jnp.finfo(wide_dtype(dtype)).eps) / 2


def input_unit(dtype: Any, precision: Any) -> float:
    """Relative error with which an accelerator may read a factor of a product at this precision; 0 on a CPU."""
    platform = _target.current()
    if platform == "cpu" or jnp.finfo(dtype).bits > 32:
        return 0.0
    lowest = 2.0**-9 if platform == "tpu" else 2.0**-11
    names = {str(x).upper().rpartition(".")[2] for x in _as_pair(precision)}
    if names <= {"HIGHEST", "FLOAT32"}:
        return 0.0 if platform != "tpu" else 2.0**-22
    return lowest * lowest * 4 if names <= {"HIGH", "HIGHEST", "TENSORFLOAT32", "BFLOAT16_3X", "FLOAT32"} else lowest


def _as_pair(precision: Any) -> tuple[Any, ...]:
    given = precision if isinstance(precision, tuple) else (precision,)
    default = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return tuple((default or "default") if x is None or str(x).upper().endswith("DEFAULT") else x for x in given)


def product_depth(t: int, c: int, p: int) -> int:
    """Additions that one of `t` terms of each of `c` times `p` sums passes through, at most."""
    platform = _target.current()
    if platform == "cpu" and min(c, p) > 1 and c * p >= _CPU_SMALL:
        piece = _CPU_PIECE if min(c, p) >= _CPU_SHORT_SIDE else _CPU_LONG_PIECE
        return min(t, piece + -(-t // _CPU_SHORTEST_PIECE))
    if platform == "tpu":
        return min(t, _TPU_PIECE + -(-t // _TPU_PIECE))
    return t


def reduction_depth(n: int) -> int:
    """Additions that one of `n` terms of a reduction passes through, at most."""
    return min(n, _REDUCTION + -(-n // _REDUCTION_SHARE))


def sum_unit(t: int, c: int, p: int, dtype: Any, precision: Any) -> float:
    r"""$\eta$ such that a weighted sum of `t` outer products is off by $\eta \sum_t |w a_t||g_t|$ at most, in norm."""
    return _unit_of_depth(product_depth(t, c, p), dtype, precision)


def running_unit(t: int, dtype: Any, precision: Any) -> float:
    """The same of terms that are added up one after the other."""
    return _unit_of_depth(t, dtype, precision)


def _unit_of_depth(depth: int, dtype: Any, precision: Any) -> float:
    per_addition = unit(dtype) * (1.0 if _target.current() == "cpu" else _MATRIX_UNIT_FACTOR)
    return ((depth + OTHER_ROUNDINGS) * per_addition + 2 * input_unit(wide_dtype(dtype), precision)) * UPWARDS


def norm_product_unit(t: int, c: int, p: int, dtype: Any) -> float:
    """The same for a product that is made for its norm alone, at the highest precision."""
    return sum_unit(t, c, p, dtype, "highest")


def row_norms(x: Float[Array, "*lead n"]) -> Float[Array, "*lead"]:
    """Norms along the last axis, no smaller for what squares lose."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=-1) + SMALLEST_SQUARE * x.shape[-1])


def magnitude(a: Float[Array, "*k t c"], g: Float[Array, "*k t p"]) -> Float[Array, "*k"]:
    r"""$\sum_t |a_t||g_t|$: a bound on what the terms of $A^\top G$ measure before they cancel."""
    return jnp.sum(row_norms(a) * row_norms(g), axis=-1)


def kappa(t: int) -> float:
    """How many times its norm the terms of a sum of `t` may measure before its example is clipped harder for it.

    Terms of random directions measure the root of their number times the norm of their sum.
    """
    return math.sqrt(t)
