"""`clipped_grad` with jax_privacy's keywords and results."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import dp_accounting
import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdp._shown import of_shapes
from jaxdp.interop._arguments import (
    batch_size,
    check_clipping,
    example_mask,
    refuse_unserved,
    roles,
)
from jaxdp.numerics._wide import is_complex
from jaxdp.per_example import per_example_grad
from jaxdp.per_example._api import Method, check_method
from jaxdp.per_example.passes._microbatches import reduce_microbatches
from jaxdp.per_example.tracing._check import check_microbatch_size

PyTree = Any
Neighbors = dp_accounting.NeighboringRelation

# Squares below 1e-38 are lost to float32, so that a shorter norm may be too small by any factor.
_SMALLEST_NORM = 1e-10


class AuxiliaryOutput(NamedTuple):
    """What is returned beside the sum, by example and **private**; None for what was not asked for.

    Attributes:
      values: losses, `[batch]`.
      grad_norms: norms of the gradients before clipping, float32 `[batch]`; Inf for an example that is left out because
        its gradient is not finite.
      aux: the function's second output, with a leading batch axis.
    """

    __repr__ = of_shapes

    values: Any
    grad_norms: Any
    aux: Any


@dataclasses.dataclass(frozen=True, eq=False)
class ClippedGrad:
    """A callable that carries the L2 bound of one example's influence, as jax_privacy's own does.

    Attributes:
      fun: the callable.
      l2_norm_bound: the most that one example contributes, in the unit of the returned sum.
      has_aux: whether a pair is returned, of which the bound covers the first only.
    """

    __repr__ = of_shapes

    fun: Callable[..., Any]
    l2_norm_bound: Any
    has_aux: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call `fun`."""
        return self.fun(*args, **kwargs)

    def sensitivity(self, neighboring_relation: Neighbors = Neighbors.REPLACE_SPECIAL) -> Any:
        """How far the sum moves at most, in L2 norm, between neighbours.

        Args:
          neighboring_relation: an example added or removed, or replaced by one without influence
            (`REPLACE_SPECIAL`): the bound. One example replaced by another one: twice that.

        Returns:
          A number; a traced one where the clipping norm is.
        """
        match neighboring_relation:
            case Neighbors.ADD_OR_REMOVE_ONE | Neighbors.REPLACE_SPECIAL:
                return self.l2_norm_bound
            case Neighbors.REPLACE_ONE:
                return 2 * self.l2_norm_bound
        raise ValueError(
            f"neighboring_relation is {neighboring_relation!r}: use one of dp_accounting.NeighboringRelation."
        )


def clipped_grad(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    l2_clip_norm: Any,
    rescale_to_unit_norm: bool = False,
    normalize_by: Any = 1.0,
    batch_argnums: int | Sequence[int] = 1,
    keep_batch_dim: bool = True,
    return_values: bool = False,
    return_grad_norms: bool = False,
    pre_clipping_transform: Any = None,
    microbatch_size: Any = None,
    nan_safe: Any = True,
    dtype: Any = None,
    prng_argnum: int | None = None,
    spmd_axis_name: Any = None,
    groups: Any = "all",
    method: Method = "auto",
) -> ClippedGrad:
    r"""A drop-in for `jax_privacy.clipped_grad` in which per-example gradients are never stored.

    $$\frac1n \sum_i \min\Big(1, \frac{R}{\|g_i\|}\Big) g_i, \qquad
      \frac1n \sum_i \min\Big(\frac1R, \frac1{\|g_i\|}\Big) g_i \text{ with } \texttt{rescale\_to\_unit\_norm}$$

    with R the clipping norm and n `normalize_by`; over the rows that `is_padding_example` does not mark. The
    sensitivity is R / n, or 1 / n when rescaled.

    | edge case | as it is | rescaled |
    |---|---|---|
    | R = 0 (or traced and negative) | zero | gradients of norm 1 |
    | R infinite | unclipped, infinite sensitivity | zero |
    | a NaN or Inf in a gradient | that example contributes zero | the same |

    | differs from jax_privacy's | |
    |---|---|
    | an example with some entries NaN or Inf | is left out; theirs sets those entries to zero |
    | outputs by example in padding rows | zero; theirs has what the padding gives |
    | half-precision parameters | the sum stays float32: rounding it could exceed the sensitivity |
    | `microbatch_size` | need not divide the batch size |
    | a parameter that does not reach the loss | refused: it would be trained on noise alone |
    | `pre_clipping_transform`, `spmd_axis_name`, `nan_safe=False`, a `dtype` below 32 bits | refused |

    Args:
      fun: the loss, `fun(params, batch, ...) -> scalar`, or `(scalar, aux)`. Called on one example at a time.
      argnums: the argument or arguments to differentiate by; a sequence gives a tuple of sums.
      has_aux: whether `fun` returns a pair.
      l2_clip_norm: R, in the unit of the gradients; may be a traced scalar.
      rescale_to_unit_norm: divide by R, so that the learning rate does not depend on it.
      normalize_by: n, a public constant such as the expected batch size; never the drawn one.
      batch_argnums: arguments with a leading batch axis. Keyword arguments of a call have one, too.
      keep_batch_dim: give `fun` each example with a batch axis of size 1, which suits a loss written for batches. With
        False it is dropped: a loss of one example, or of one user's rows `[users, rows, ...]`.
      return_values: also return the losses.
      return_grad_norms: also return the gradients' norms.
      pre_clipping_transform: refused unless None.
      microbatch_size: examples that are worked on at once.
      nan_safe: must be True.
      dtype: of the sum; None for the parameters', but float32 at least.
      prng_argnum: an argument that holds one key, split into one for each example.
      spmd_axis_name: refused unless None.
      groups: what is clipped together, as for `jaxdp.transforms.clip`: each of M groups to R / sqrt(M), which leaves
        the sensitivity as it is.
      method: as for `jaxdp.per_example_grad`.

    Returns:
      A `ClippedGrad` with the arguments of `fun` and `is_padding_example`, `[batch]` booleans. It returns the sum, or
      with `has_aux`, `return_values` or `return_grad_norms` a pair `(sum, AuxiliaryOutput)`. Values and aux take one
      more forward pass.

    Raises:
      ValueError: an argument that is refused above, or parts that overlap or are missing.
      TypeError: one of another kind.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxdp.interop.jax_privacy import clipped_grad
      >>> loss = lambda w, x: jnp.mean(x @ w)  # of a batch
      >>> grad = clipped_grad(loss, l2_clip_norm=1.0, normalize_by=2.0)
      >>> total = grad(jnp.ones(2), jnp.array([[3.0, 4.0], [0.0, 0.5], [9.0, 9.0]]),
      ...              is_padding_example=jnp.array([False, False, True]))
      >>> [f"{x:.4f}" for x in total]
      ['0.3000', '0.6500']
      >>> grad.sensitivity()
      0.5

    References:
      De et al., Unlocking High-Accuracy Differentially Private Image Classification through Scale, arXiv 2204.13650:
      rescaling to unit norm.
    """
    refuse_unserved(pre_clipping_transform, nan_safe, dtype, spmd_axis_name)
    check_clipping(l2_clip_norm, normalize_by)
    check_method(method)
    parts = roles(argnums, batch_argnums, keep_batch_dim, prng_argnum)
    wanted = (return_values, return_grad_norms, has_aux)
    traced = isinstance(l2_clip_norm, jax.Array)
    bound = jnp.where(l2_clip_norm >= 0, l2_clip_norm, 0.0) if traced else l2_clip_norm

    def sum_clipped(
        loss: Callable, params: PyTree, batch: dict[str, Any], mask: Array, micro: Any
    ) -> tuple[PyTree, AuxiliaryOutput]:
        grads = per_example_grad(loss, has_aux=has_aux, method=method)(params, batch, mask=mask, microbatch_size=micro)
        resolved = grads.groups(groups)
        share = math.sqrt(len(resolved))
        thresholds = jnp.full(len(resolved), jnp.asarray(bound, jnp.float32) / share)
        weight_fn: Callable = _unit_weight(share) if rescale_to_unit_norm else _weight
        total, squares = grads.clipped_sum_and_norms(weight_fn, resolved, thresholds)
        # Whoever adds noise goes by the bound without slack for rounding, so the sum gives way.
        divisor = normalize_by * (1 + grads.slack().total)
        total = jax.tree.map(lambda x: (x / divisor).astype(_sum_dtype(x, dtype)), total)
        values, aux = None, None
        if return_values or has_aux:
            values, aux = _forward(loss, params, batch, mask, micro, has_aux)
        if keep_batch_dim:
            aux = jax.tree.map(lambda x: x[:, 0] if x.shape[1:2] == (1,) else x, aux)
        norms = jnp.where(mask, jnp.sqrt(jnp.sum(squares, axis=1)), 0.0)
        by_example = (values, norms, aux)
        return total, AuxiliaryOutput(*(x if want else None for x, want in zip(by_example, wanted, strict=True)))

    def call(*args: Any, is_padding_example: Any = None, **kwargs: Any) -> Any:
        batch = parts.batch(args, kwargs)
        params, loss = parts.params(args), parts.loss(fun, args)
        size = batch_size(batch)
        mask = example_mask(is_padding_example, size)
        if size:
            total, by_example = sum_clipped(loss, params, batch, mask, microbatch_size)
        else:
            alone = lambda params, batch, mask: sum_clipped(loss, params, batch, mask, None)
            total, by_example = _of_nobody(alone, params, batch)
        return (total, by_example) if any(wanted) else total

    return ClippedGrad(call, (1.0 if rescale_to_unit_norm else bound) / normalize_by, any(wanted))


def _sum_dtype(x: Array, dtype: Any) -> Any:
    """What was asked for; of a complex sum that of its parts."""
    if dtype is None or not is_complex(x):
        return x.dtype if dtype is None else dtype
    return jnp.complex128 if jnp.finfo(dtype).bits > 32 else jnp.complex64


def _weight(squared_norm: Array, threshold: Array) -> Array:
    """min(1, R / norm)."""
    return jnp.minimum(1.0, threshold / jnp.maximum(jnp.sqrt(squared_norm), _SMALLEST_NORM))


def _unit_weight(share: float) -> Callable[[Array, Array], Array]:
    """min(1 / R, 1 / norm), where R = `share` times each group's threshold: also for R = 0 and infinity."""

    def weight(squared_norm: Array, threshold: Array) -> Array:
        inverse = 1.0 / jnp.maximum(jnp.sqrt(squared_norm), _SMALLEST_NORM)
        return jnp.minimum(1.0 / threshold, inverse) / share

    return weight


def _forward(
    loss: Callable, params: PyTree, batch: dict[str, Any], mask: Array, microbatch_size: Any, has_aux: bool
) -> tuple[Array, PyTree]:
    """Losses and aux by example, in the same microbatches."""

    def microbatch(batch: dict[str, Any], mask: Array) -> tuple[Any, tuple]:
        out = jax.vmap(loss, in_axes=(None, 0))(params, batch)
        # A padding row may repeat somebody's data, who is not in this batch.
        chosen = lambda x: jnp.where(mask.reshape((-1,) + (1,) * (x.ndim - 1)), x, jnp.zeros((), x.dtype))
        return jax.tree.map(chosen, out if has_aux else (out, None)), ()

    size = check_microbatch_size(microbatch_size, mask.shape[0])
    return reduce_microbatches(microbatch, batch, mask, size)[0]


def _of_nobody(run: Callable, params: PyTree, batch: PyTree) -> tuple[PyTree, Any]:
    """The sum over an empty batch, which Poisson sampling may draw: what one row would give, but zero and no row."""
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), batch)
    total, by_example = jax.eval_shape(run, params, one, jax.ShapeDtypeStruct((1,), bool))
    zeros = lambda tree, rows: jax.tree.map(lambda x: jnp.zeros(rows(x.shape), x.dtype), tree)
    return zeros(total, lambda shape: shape), zeros(by_example, lambda shape: (0, *shape[1:]))
