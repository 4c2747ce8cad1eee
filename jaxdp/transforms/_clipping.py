"""Clipping as a gradient transformation: per-example gradients in, a sum of known sensitivity out."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import dp_accounting
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxdp.per_example import PerExampleGrads, resolve_groups, stacked_squared_norms, stacked_weighted_sum
from jaxdp.transforms._clipped_sum import ClippedSum, describe, refuse_masked

PyTree = Any
Rule = Literal["flat", "auto_s", "auto_v"]

# The stability constant of AUTO-S (arXiv 2206.07136).
AUTO_S_GAMMA = 0.01

# Squares below 1e-38 are lost to float32, so that a shorter norm may be too small by any factor.
_SMALLEST_NORM = 1e-10
_SMALLEST_BOUND, _LARGEST_BOUND = 1e-8, 1e18


@dataclasses.dataclass(frozen=True)
class ClipSpec:
    """What is clipped to what: the one place where the sensitivity is derived.

    Attributes:
      max_norm: the clipping norm R, in the unit of the gradients.
      groups: `"all"`, `"param"`, or a function from a leaf's path to the name of its group.
      rule: the clipping function.
      normalize: whether the clipped gradients are divided by R.
    """

    max_norm: float | int
    groups: Any = "all"
    rule: Rule = "flat"
    normalize: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.max_norm, bool) or not isinstance(self.max_norm, int | float):
            raise TypeError(f"max_norm is {self.max_norm!r}: give the clipping norm as a Python number.")
        if not (math.isfinite(self.max_norm) and self.max_norm > 0):
            raise ValueError(
                f"max_norm is {self.max_norm}: the clipping norm must be positive and finite, "
                "or the sum has no bounded sensitivity."
            )
        if not _SMALLEST_BOUND <= self.max_norm <= _LARGEST_BOUND:
            raise ValueError(
                f"max_norm is {self.max_norm}: float32 cannot square norms of that size, so scale the loss and give "
                f"a clipping norm from {_SMALLEST_BOUND:g} to {_LARGEST_BOUND:g}."
            )
        if self.rule not in ("flat", "auto_s", "auto_v"):
            raise ValueError(f'rule is {self.rule!r}: use "flat", "auto_s" or "auto_v".')

    @property
    def sensitivity(self) -> float:
        """L2 bound on one example's influence: M groups of threshold R / sqrt(M) add up to R."""
        return 1.0 if self.normalize else float(self.max_norm)

    def weights(self, squared_norm: Float[Array, "..."], num_groups: int = 1) -> Float[Array, "..."]:
        """The factor on each example's gradient (of one group): zero where the norm is not finite."""
        threshold = self.max_norm / math.sqrt(num_groups)
        norm = jnp.sqrt(squared_norm)
        # Dividing by a safe norm keeps 0/0 out of the branch that `where` discards.
        safe = jnp.where(norm > 0, norm, 1.0)
        if self.rule == "flat":
            weight = jnp.where(norm > threshold, threshold / safe, 1.0)
        elif self.rule == "auto_s":
            weight = threshold / (norm + AUTO_S_GAMMA)
        else:
            weight = jnp.where(norm > 0, threshold / jnp.maximum(safe, _SMALLEST_NORM), 0.0)
        weight = weight / self.max_norm if self.normalize else weight
        return jnp.where(jnp.isfinite(squared_norm), weight, 0.0)

    def dp_event(self, noise_multiplier: float | int) -> dp_accounting.DpEvent:
        """The event of one release of the clipped sum with Gaussian noise of this multiplier."""
        if noise_multiplier == 0:
            return dp_accounting.NonPrivateDpEvent()
        return dp_accounting.GaussianDpEvent(noise_multiplier)


class Clip(optax.GradientTransformation):
    """The transformation that `clip` returns: it carries the `spec` that accounting reads."""

    spec: ClipSpec

    @property
    def sensitivity(self) -> float:
        """L2 sensitivity of the clipped sum under adding or removing one example."""
        return self.spec.sensitivity

    def dp_event(self, noise_multiplier: float | int) -> dp_accounting.DpEvent:
        """The privacy event of one noisy release of the clipped sum."""
        return self.spec.dp_event(noise_multiplier)


def clip(
    max_norm: float | int,
    *,
    groups: str | Callable[[str], Any] = "all",
    rule: Rule = "flat",
    normalize: bool = False,
) -> Clip:
    r"""Clip each example's gradient and sum: $\sum_i w_i g_i$ with $\|w_i g_i\| \le R$.

    | rule | weight $w_i$ | |
    |---|---|---|
    | `"flat"` | $\min(1, R/\|g_i\|)$ | Abadi et al. |
    | `"auto_s"` | $R/(\|g_i\| + 0.01)$ | automatic clipping, stable |
    | `"auto_v"` | $R/\|g_i\|$, 0 for a zero gradient | automatic clipping |

    | edge case | what happens |
    |---|---|
    | a NaN or Inf gradient (or a norm that overflows float32) | that example contributes exactly zero |
    | a masked example | contributes exactly zero |
    | a norm below 1e-10 under `"auto_v"` | divided by 1e-10: float32 cannot square it |
    | `max_norm` of 0, below 0, NaN or infinite; below 1e-8 or above 1e18 | refused |
    | a boolean, an array or a traced `max_norm` | refused: the sensitivity is a public constant |
    | inside `optax.masked` or `optax.multi_transform` | refused: the parameters left out would not be clipped |

    Args:
      max_norm: the clipping norm R. With M groups each one is clipped to $R/\sqrt M$, so R bounds the whole.
      groups: `"all"` (one norm over everything), `"param"` (each leaf by itself), or a function from a leaf's path
        (such as `"['dense']['kernel']"`) to the name of its group.
      rule: the clipping function of the table above.
      normalize: divide by R, so that the sensitivity is 1 and the learning rate does not depend on R.

    Returns:
      An `optax.GradientTransformation` whose `update` takes `PerExampleGrads` (or a pytree with a leading batch
      axis, together with `params`) and returns a `ClippedSum`; with `.sensitivity` and `.dp_event(...)`.

    Raises:
      ValueError: an impossible `max_norm`, `rule` or `groups`.
      TypeError: at update, something that is not per-example gradients.

    Example:
      >>> import jax.numpy as jnp, jaxdp
      >>> grads = jaxdp.per_example_grad(lambda w, x: w @ x)(jnp.ones(2), jnp.array([[3.0, 4.0], [0.0, 0.5]]))
      >>> tx = jaxdp.transforms.clip(1.0)
      >>> clipped, _ = tx.update(grads, tx.init(jnp.ones(2)))
      >>> clipped.tree, clipped.sensitivity
      (Array([0.6, 1.3], dtype=float32), 1.0)

    References:
      Abadi et al., Deep Learning with Differential Privacy, arXiv 1607.00133.
      Bu et al., Automatic Clipping, arXiv 2206.07136. He et al., Group-wise clipping, arXiv 2212.01539.
    """
    spec = ClipSpec(max_norm, groups, rule, normalize)

    def init(params: PyTree) -> optax.EmptyState:
        refuse_masked(params, "clip")
        resolve_groups(groups, params)
        return optax.EmptyState()

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[Any, Any]:
        if isinstance(updates, PerExampleGrads):
            count = len(resolve_groups(groups, updates.params))
            tree = updates.clipped_sum(lambda sq: spec.weights(sq, count), groups)
        else:
            tree = _clip_stacked(updates, params, spec)
        return ClippedSum(tree, spec.sensitivity), state

    transformation = Clip(init, update)
    transformation.spec = spec
    return transformation


def _clip_stacked(updates: PyTree, params: PyTree | None, spec: ClipSpec) -> PyTree:
    """Clip a pytree whose leaves have a leading batch axis."""
    if isinstance(updates, ClippedSum):
        raise TypeError("clip was given a sum that is already clipped: use one clip in a chain.")
    if params is None:
        raise TypeError(
            f"clip was given {describe(updates)} without params, so it cannot tell per-example gradients from "
            "averaged ones: pass jaxdp.per_example_grad(loss)(params, batch), or call update(grads, state, params)."
        )
    refuse_masked(updates, "clip")
    if jax.tree.structure(updates) != jax.tree.structure(params):
        raise TypeError("clip was given gradients whose structure is not that of params.")
    sizes = set()
    leaves = jax.tree_util.tree_leaves_with_path(updates)
    for (path, leaf), param in zip(leaves, jax.tree.leaves(params), strict=True):
        name = "grads" + jax.tree_util.keystr(path)
        if leaf.shape == param.shape:
            raise TypeError(
                f"{name} has the parameter's own shape {leaf.shape}, so it is a sum or mean over examples: clipping "
                "that bounds nobody's influence; pass jaxdp.per_example_grad(loss)(params, batch)."
            )
        if leaf.shape[1:] != param.shape:
            raise TypeError(f"{name} has shape {leaf.shape} where [batch] + {param.shape} is needed.")
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"{name} has dtype {leaf.dtype}: only floating-point gradients have the norm that bounds.")
        sizes.add(leaf.shape[0])
    if len(sizes) != 1:
        raise TypeError(f"the gradients have different numbers of examples: {sorted(sizes)}.")
    groups = resolve_groups(spec.groups, params)
    norms = stacked_squared_norms(updates, groups)
    weights = spec.weights(norms, len(groups))
    return stacked_weighted_sum(updates, weights, groups)
