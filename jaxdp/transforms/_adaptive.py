"""Clipping to thresholds that follow a quantile of the norms, accounted jointly with the sum."""

import dataclasses
import math
import zlib
from collections.abc import Hashable
from typing import Any, NamedTuple

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxdp._numbers import is_number, takes_numbers
from jaxdp._shown import of_shapes, setting
from jaxdp.numerics._wide import as_like, as_real, real_dtype
from jaxdp.per_example.grouping._groups import certain_names, resolve_groups
from jaxdp.transforms._clipped_sum import ClippedSum, check_key, refuse_masked, remaining_noise_multiplier
from jaxdp.transforms._examples import check_examples, clip_and_sum_with_norms, resolved_groups, slack_of, sum_shardings
from jaxdp.transforms._spec import (
    SMALLEST_BOUND,
    ClipSpec,
    NoiseShape,
    Rule,
    check_bound,
    check_expected_batch_size,
    clipping_weights,
    noise_scales,
)

PyTree = Any

# Folded into the caller's key: the same key given to add_gaussian_noise or to a sampler yields other bits.
_INDICATOR_TAG = zlib.crc32(b"jaxdp.transforms.adaptive_clip")

# Thresholds stop here, where float32 can still square the sum of many of them.
_CEILING = 1e15


class AdaptiveClipState(NamedTuple):
    """The thresholds in force, the key of the indicators' noise, and the number of releases so far.

    The thresholds are computed from noisy releases and may be shown; whoever knows the key can remove the noise.
    """

    __repr__ = of_shapes

    thresholds: Float[Array, " groups"]
    key: PRNGKeyArray
    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]


@dataclasses.dataclass(frozen=True)
class Indicators:
    """How the indicators are released: the one place where their sensitivity is derived.

    Attributes:
      expected_batch_size: public number that their sum is divided by.
      noise_stddev: std of the noise on each group's sum; None for a twentieth of the expected batch size for one group.
    """

    expected_batch_size: float | int
    noise_stddev: float | int | None

    def __post_init__(self) -> None:
        check_expected_batch_size(self.expected_batch_size)
        stddev = self.noise_stddev
        if stddev is not None and not is_number(stddev):
            raise TypeError(f"indicator_noise_stddev is {setting(stddev)}: give a Python number or None.")
        if stddev is not None and not (math.isfinite(stddev) and stddev >= 0):
            raise ValueError(f"indicator_noise_stddev is {stddev}: it must be finite and not negative.")

    def stddev(self, num_groups: int) -> float:
        """Std of the noise on each group's sum of indicators."""
        if self.noise_stddev is None:
            return self.expected_batch_size * math.sqrt(num_groups) / 20
        return float(self.noise_stddev)

    def spent_precision(self, num_groups: int) -> float:
        """One over the squared noise multiplier of the release: M indicators of 1/2 have a norm of sqrt(M) / 2."""
        stddev = self.stddev(num_groups)
        reciprocal = math.sqrt(num_groups) / 2 / stddev if stddev else math.inf
        return reciprocal * reciprocal

    def release(
        self,
        squared_norms: Float[Array, "batch groups"],
        thresholds: Float[Array, " groups"],
        mask: Bool[Array, " batch"],
        key: PRNGKeyArray,
    ) -> Float[Array, " groups"]:
        """Noisy estimate of the share of examples at or below each threshold; one that is not finite is above."""
        finite = jnp.all(jnp.isfinite(squared_norms), axis=1, keepdims=True)
        below = finite & (jnp.sqrt(squared_norms) <= thresholds[None])
        # Recentred, an indicator changes the sum by 1/2 and not by 1 when its example comes or goes.
        total = jnp.sum(jnp.where(mask[:, None], jnp.where(below, 0.5, -0.5), 0.0), axis=0)
        noise = self.stddev(thresholds.shape[0]) * jax.random.normal(key, thresholds.shape, jnp.float32)
        return (total + noise) / self.expected_batch_size + 0.5


class AdaptiveClip(optax.GradientTransformation):
    """The transformation that `adaptive_clip` returns.

    Attributes:
      spec: what is clipped, with the thresholds of the first step.
      indicators: how the share of examples below each threshold is released.
    """

    spec: ClipSpec
    indicators: Indicators

    def dp_event(self, noise_multiplier: float | int) -> dp_accounting.DpEvent:
        """The privacy event of one step, the thresholds' indicators and the noisy sum, at this joint multiplier."""
        if self.indicators.noise_stddev == 0:
            return dp_accounting.NonPrivateDpEvent()
        return self.spec.dp_event(noise_multiplier)

    def check_noise_multiplier(self, noise_multiplier: float | int, params: PyTree) -> None:
        """Refuse a joint noise multiplier that the indicators alone have used up."""
        count = len(_names(self.spec, params))
        try:
            remaining_noise_multiplier(noise_multiplier, self.indicators.spent_precision(count))
        except ValueError as error:
            least = noise_multiplier * math.sqrt(count) / 2
            raise ValueError(
                f"indicator_noise_stddev is {self.indicators.stddev(count):g}, which leaves nothing for the sum at a "
                f"noise_multiplier of {noise_multiplier} with {count} groups: give more than {least:.6g} (five times "
                "that raises the sum's noise by 2%)."
            ) from error


@takes_numbers
def adaptive_clip(
    initial_norm: Any,
    *,
    expected_batch_size: float | int,
    key: PRNGKeyArray,
    target_quantile: float | int = 0.5,
    learning_rate: float | int = 0.2,
    indicator_noise_stddev: float | int | None = None,
    floor: float | int = 1e-6,
    groups: Any = "all",
    rule: Rule = "flat",
    normalize: bool = False,
    noise_shape: NoiseShape = "isotropic",
) -> AdaptiveClip:
    r"""Clip to thresholds that follow a quantile of the gradients' norms, found privately as training goes on.

    At each step the sum is clipped to the thresholds $R_m$ that earlier steps left, and then

    $$b_m = \frac12 + \frac1b\Big(\sum_i \big(1[\|g_{i,m}\| \le R_m] - \tfrac12\big) + \mathcal N(0, \sigma_b^2)\Big),
      \qquad R_m \leftarrow \max\big(\text{floor},\, R_m e^{-\eta (b_m - q)}\big),$$

    so that a share q of the examples comes to have a norm below the threshold. The recentred indicators of M groups
    have an L2 sensitivity of $\sqrt M / 2$, so that releasing them has the noise multiplier $2\sigma_b/\sqrt M$.

    **Privacy.** `add_gaussian_noise(noise_multiplier, key)` behind it takes the **joint** noise multiplier $\sigma$,
    which is accounted, and gives the sum the larger one $\sigma_g$ that leaves
    $1/\sigma^2 = 1/\sigma_g^2 + M/(4\sigma_b^2)$: both releases are of the same examples and together one Gaussian
    release. So the event of a step is `dp_event(noise_multiplier)`, as it is for `clip`.

    | edge case | what happens |
    |---|---|
    | a NaN or Inf gradient | contributes zero to the sum and counts as above every threshold |
    | a masked example | contributes nothing to the sum, and nothing to the indicators |
    | a pytree with a leading batch axis | has no mask: every row is an example |
    | an empty batch | the thresholds move by noise alone |
    | $\sigma \ge 2\sigma_b/\sqrt M$ | refused: the indicators alone have spent the budget |
    | $\sigma_b = 0$ | no privacy, and accounted as such; with a noise multiplier of 0 only |
    | groups that only the loss tells apart (layers of a `scan`) | refused: give resolved groups |

    Args:
      initial_norm: the clipping norm R of the first step, $R_m = R/\sqrt M$; or thresholds by group, as in `clip`.
      expected_batch_size: b, the public expected number of examples in a batch; never the drawn number.
      key: a typed PRNG key for the indicators' noise; it may be the one given to `add_gaussian_noise`, whose stream is
        another one.
      target_quantile: q in (0, 1), the share of examples below the threshold.
      learning_rate: $\eta > 0$, a relative change of the threshold.
      indicator_noise_stddev: $\sigma_b$, the std of the noise on each group's *sum* of indicators; `None` for
        $b\sqrt M/20$, which gives the sum 1% more noise where $\sigma$ is about $b/70$.
      floor: no threshold falls below it, in the unit of the gradients.
      groups: as in `clip`. The number of groups must be known from the parameters: for a model that scans over its
        layers, `"layer"`, `"param"` and the like need `per_example_grad(loss)(params, batch).groups(spec)`.
      rule: as in `clip`; with `"auto_s"` and `"auto_v"` the threshold only scales the sum.
      normalize: divide the sum by $\sqrt{\sum_m R_m^2}$ of the step, so that its sensitivity is 1.
      noise_shape: as in `clip`; `"equal_budget"` follows the thresholds.

    Returns:
      An `optax.GradientTransformation` from per-example gradients to a `ClippedSum` (of traced sensitivity), with
      `.dp_event(noise_multiplier)`. Its state holds the thresholds, `[groups]` in the order of
      `jaxdp.per_example.resolve_groups(groups, params).names`.

    Raises:
      ValueError: an impossible argument, named; at update, groups other than those of `init`.
      TypeError: an argument of another kind, named; at update, what `clip` refuses.

    Example:
      >>> import jax, jax.numpy as jnp, jaxdp, optax
      >>> clip = jaxdp.transforms.adaptive_clip(
      ...     1.0, expected_batch_size=2.0, indicator_noise_stddev=8.0, key=jax.random.key(0)
      ... )
      >>> tx = optax.chain(clip, jaxdp.transforms.add_gaussian_noise(0.8, jax.random.key(1)))
      >>> grads = jaxdp.per_example_grad(lambda w, x: w @ x)(jnp.ones(2), jnp.array([[3.0, 4.0], [0.0, 0.5]]))
      >>> noisy, state = tx.update(grads, tx.init(jnp.ones(2)))
      >>> state[0].thresholds.shape
      (1,)

    References:
      Andrew et al., Differentially Private Learning with Adaptive Clipping, arXiv 1905.03871.
      Bu et al., On the accuracy and efficiency of group-wise clipping, arXiv 2310.19215.
    """
    if is_number(initial_norm):
        check_bound(initial_norm, "initial_norm")
    spec = ClipSpec(initial_norm, groups, rule, normalize, noise_shape)
    indicators = Indicators(expected_batch_size, indicator_noise_stddev)
    _check_tracking(target_quantile, learning_rate, floor)
    check_key(key)

    def init(params: PyTree) -> AdaptiveClipState:
        refuse_masked(params, "adaptive_clip")
        spec.check(params)
        thresholds = spec.thresholds(_names(spec, params))
        if np.any(thresholds < floor):
            raise ValueError(f"floor is {floor}, above the first threshold, {np.min(thresholds):g}: lower it.")
        return AdaptiveClipState(jnp.asarray(thresholds), jax.random.clone(key), jnp.zeros((), jnp.int32))

    def weight_fn(squared_norm: Any, threshold: Any) -> Any:
        return clipping_weights(rule, squared_norm, threshold)

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[Any, Any]:
        check_examples("adaptive_clip", updates, params)
        resolved = resolved_groups(updates, params, spec.group_spec)
        thresholds = state.thresholds
        known = _names(spec, updates.params if params is None else params)
        if known != resolved.names or thresholds.shape != (len(known),):
            raise ValueError(
                f"the state has {thresholds.shape[0]} thresholds where this loss has {len(resolved)} groups, as when "
                "it scans over stacked layers: make adaptive_clip with groups=jaxdp.per_example_grad(loss)(params, "
                "batch).groups(spec), or with jaxdp.per_example.resolve_groups(spec, params, stacks)."
            )
        summed = clip_and_sum_with_norms(updates, resolved, weight_fn, thresholds)
        bound = jnp.sqrt(jnp.sum(jnp.square(thresholds)))
        tree, scales, bounds = summed.tree, None, thresholds
        if normalize:
            # Divided afterwards: a weight sees its own group's threshold, not the norm of them all.
            tree = jax.tree.map(lambda x: as_like(as_real(x) / bound.astype(real_dtype(x.dtype)), x), tree)
            bounds = thresholds / bound
        gammas = spec.gammas(thresholds, resolved.names)
        slack = slack_of(updates).total
        if gammas is not None:
            scales = noise_scales(tree, resolved, bounds * (1 + slack), gammas)
        spent, shardings = indicators.spent_precision(len(resolved)), sum_shardings(updates, tree)
        sensitivity = (1.0 if normalize else bound) * (1 + slack)
        clipped = ClippedSum(tree, sensitivity, scales, spent, shardings=shardings, slack=slack)
        release_key = jax.random.fold_in(jax.random.fold_in(state.key, _INDICATOR_TAG), state.count)
        below = indicators.release(summed.squared_norms, thresholds, summed.mask, release_key)
        moved = thresholds * jnp.exp(-learning_rate * (below - target_quantile))
        return clipped, AdaptiveClipState(jnp.clip(moved, floor, _CEILING), state.key, state.count + 1)

    transformation = AdaptiveClip(init, update)
    transformation.spec = spec
    transformation.indicators = indicators
    return transformation


def _names(spec: ClipSpec, params: PyTree) -> tuple[Hashable, ...]:
    """Names of the groups as far as the parameters alone tell."""
    certain = certain_names(spec.group_spec, params)
    return resolve_groups(spec.group_spec, params).names if certain is None else certain


def _check_tracking(target_quantile: Any, learning_rate: Any, floor: Any) -> None:
    for name, value in (("target_quantile", target_quantile), ("learning_rate", learning_rate), ("floor", floor)):
        if not is_number(value):
            raise TypeError(f"{name} is {setting(value)}: give a Python number.")
    if not 0 < target_quantile < 1:
        raise ValueError(f"target_quantile is {target_quantile}: it must lie between 0 and 1.")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate is {learning_rate}: it must be positive and finite.")
    if not SMALLEST_BOUND <= floor < _CEILING:
        raise ValueError(f"floor is {floor}: give a threshold from {SMALLEST_BOUND:g} to {_CEILING:g}.")
