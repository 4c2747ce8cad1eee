"""The usual chains in one call: clip, noise, divide by the expected batch size."""

from typing import Any

import dp_accounting
import optax
from jaxtyping import PRNGKeyArray

from jaxdp._numbers import takes_numbers
from jaxdp.norms import EXACT, Norm
from jaxdp.transforms._adaptive import AdaptiveClip, adaptive_clip
from jaxdp.transforms._clipping import Clip, clip
from jaxdp.transforms._noise import add_gaussian_noise
from jaxdp.transforms._spec import NoiseShape, Rule, check_expected_batch_size

PyTree = Any


class DPSGD(optax.GradientTransformation):
    """The transformation that `dpsgd` and `adaptive_dpsgd` return: it carries what accounting reads."""

    clip: Clip | AdaptiveClip
    noise_multiplier: float
    expected_batch_size: float

    def dp_event(self) -> dp_accounting.DpEvent:
        """The privacy event of one update on one (sub)sample."""
        return self.clip.dp_event(self.noise_multiplier)


@takes_numbers
def dpsgd(
    *,
    max_norm: Any,
    noise_multiplier: float | int,
    expected_batch_size: float | int,
    key: PRNGKeyArray,
    groups: Any = "all",
    norm: Norm = EXACT,
    rule: Rule = "flat",
    normalize: bool = False,
    noise_shape: NoiseShape = "isotropic",
    with_stddev: bool = False,
    grid: float | int | None = None,
) -> DPSGD:
    r"""Privatised mean gradient $\frac1b\big(\sum_i w_i g_i + \mathcal N(0, (\sigma S)^2 I)\big)$.

    Args:
      max_norm: the clipping norm R, or thresholds by group, as in `clip`.
      noise_multiplier: $\sigma$, the noise's std as a multiple of the sensitivity S.
      expected_batch_size: b, the public expected number of examples in a Poisson batch (never the drawn number,
        which is private).
      key: a typed PRNG key for the noise (and the probes of estimated norms), as from
        `jaxdp.sampling.key_from_entropy()`.
      groups: clipping groups, as in `clip`.
      norm: how norms are found, as in `clip`.
      rule: clipping function, as in `clip`.
      normalize: as in `clip`.
      noise_shape: how the noise is shared out over the groups, as in `clip`.
      with_stddev: return a `NoisyGradient` for `rmt_denoise` and others to follow, as in `add_gaussian_noise`.
      grid: the share of the sensitivity that rounding to a grid may add, as in `add_gaussian_noise`; None for no grid.

    Returns:
      An `optax.GradientTransformation` from `PerExampleGrads` to a plain pytree; chain any optimiser after it. Its
      `.dp_event()` is the event of one update.

    Raises:
      ValueError: an impossible argument, named.
      TypeError: an argument of another kind, named; at update, what `clip` and `add_gaussian_noise` refuse.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxdp
      >>> private = jaxdp.transforms.dpsgd(
      ...     max_norm=1.0, noise_multiplier=0.8, expected_batch_size=2.0, key=jax.random.key(0)
      ... )
      >>> tx = optax.chain(private, optax.adam(1e-3))
      >>> params = jnp.ones(2)
      >>> grads = jaxdp.per_example_grad(lambda w, x: w @ x)(params, jnp.array([[3.0, 4.0], [0.0, 0.5]]))
      >>> updates, state = tx.update(grads, tx.init(params), params)

    References:
      Abadi et al., Deep Learning with Differential Privacy, arXiv 1607.00133.
    """
    check_expected_batch_size(expected_batch_size)
    clipping = clip(
        max_norm, groups=groups, norm=norm, rule=rule, normalize=normalize, noise_shape=noise_shape, key=key
    )
    return _private_mean(clipping, noise_multiplier, expected_batch_size, key, with_stddev, grid)


@takes_numbers
def adaptive_dpsgd(
    *,
    initial_norm: Any,
    noise_multiplier: float | int,
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
    with_stddev: bool = False,
    grid: float | int | None = None,
) -> DPSGD:
    r"""`dpsgd` whose clipping thresholds follow a quantile of the gradients' norms.

    One noise multiplier covers both releases of a step: $1/\sigma^2 = 1/\sigma_g^2 + M/(4\sigma_b^2)$, with
    $\sigma_g$ on the sum and $\sigma_b$ on the indicators of M groups. See `adaptive_clip`.

    Args:
      initial_norm: the clipping norm R of the first step, or thresholds by group, as in `clip`.
      noise_multiplier: $\sigma$, that of a step as a whole, as calibration returns it.
      expected_batch_size: b, the public expected number of examples in a Poisson batch.
      key: a typed PRNG key; the sum's and the indicators' noise are different streams of it.
      target_quantile: the share of examples whose norm shall be below the threshold.
      learning_rate: of the thresholds' logarithms.
      indicator_noise_stddev: $\sigma_b$, above $\sigma\sqrt M/2$; `None` for $b\sqrt M/20$.
      floor: no threshold falls below it.
      groups: clipping groups, as in `adaptive_clip`.
      rule: clipping function, as in `clip`.
      normalize: as in `clip`.
      noise_shape: as in `clip`.
      with_stddev: as in `dpsgd`.

    Returns:
      An `optax.GradientTransformation` from `PerExampleGrads` to a plain pytree; its `.dp_event()` is the event of one
      update, both releases included, and its `.clip` what calibration takes.

    Raises:
      ValueError: an impossible argument, named; at init, a $\sigma_b$ that leaves nothing for the sum.
      TypeError: an argument of another kind, named; at update, what `adaptive_clip` refuses.

    Example:
      >>> import jax, jax.numpy as jnp, jaxdp
      >>> tx = jaxdp.transforms.adaptive_dpsgd(
      ...     initial_norm=1.0, noise_multiplier=0.8, expected_batch_size=64.0, key=jax.random.key(0)
      ... )
      >>> tx.dp_event()
      GaussianDpEvent(noise_multiplier=0.8)
      >>> tx.init(jnp.ones(2))[0].thresholds
      Array([1.], dtype=float32)

    References:
      Andrew et al., Differentially Private Learning with Adaptive Clipping, arXiv 1905.03871.
    """
    clipping = adaptive_clip(
        initial_norm,
        expected_batch_size=expected_batch_size,
        key=key,
        target_quantile=target_quantile,
        learning_rate=learning_rate,
        indicator_noise_stddev=indicator_noise_stddev,
        floor=floor,
        groups=groups,
        rule=rule,
        normalize=normalize,
        noise_shape=noise_shape,
    )
    private = _private_mean(clipping, noise_multiplier, expected_batch_size, key, with_stddev, grid)

    def init(params: PyTree) -> Any:
        clipping.check_noise_multiplier(noise_multiplier, params)
        return private.init(params)

    return _carrying(DPSGD(init, private.update), clipping, noise_multiplier, expected_batch_size)


def _private_mean(
    clipping: Clip | AdaptiveClip,
    noise_multiplier: float | int,
    expected_batch_size: float | int,
    key: PRNGKeyArray,
    with_stddev: bool,
    grid: float | int | None,
) -> DPSGD:
    noise = add_gaussian_noise(noise_multiplier, key, with_stddev=with_stddev, grid=grid)
    chain = optax.chain(clipping, noise, optax.scale(1.0 / expected_batch_size))
    return _carrying(DPSGD(chain.init, chain.update), clipping, noise_multiplier, expected_batch_size)


def _carrying(
    transformation: DPSGD,
    clipping: Clip | AdaptiveClip,
    noise_multiplier: float | int,
    expected_batch_size: float | int,
) -> DPSGD:
    transformation.clip = clipping
    transformation.noise_multiplier = noise_multiplier
    transformation.expected_batch_size = expected_batch_size
    return transformation
