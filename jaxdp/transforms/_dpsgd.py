"""The usual chain in one call: clip, noise, divide by the expected batch size."""

import math
from collections.abc import Callable
from typing import Any

import dp_accounting
import optax
from jaxtyping import PRNGKeyArray

from jaxdp.transforms._clipping import Clip, Rule, clip
from jaxdp.transforms._noise import add_gaussian_noise


class DPSGD(optax.GradientTransformation):
    """The transformation that `dpsgd` returns: it carries what accounting reads."""

    clip: Clip
    noise_multiplier: float
    expected_batch_size: float

    def dp_event(self) -> dp_accounting.DpEvent:
        """The privacy event of one update on one (sub)sample."""
        return self.clip.dp_event(self.noise_multiplier)


def dpsgd(
    *,
    max_norm: float | int,
    noise_multiplier: float | int,
    expected_batch_size: float | int,
    key: PRNGKeyArray,
    groups: str | Callable[[str], Any] = "all",
    rule: Rule = "flat",
    normalize: bool = False,
) -> DPSGD:
    r"""Privatised mean gradient $\frac1b\big(\sum_i w_i g_i + \mathcal N(0, (\sigma S)^2 I)\big)$.

    Args:
      max_norm: the clipping norm R.
      noise_multiplier: $\sigma$, the noise's std as a multiple of the sensitivity S.
      expected_batch_size: b, the public expected number of examples in a Poisson batch (never the drawn number,
        which is private).
      key: a typed PRNG key for the noise, as from `jaxdp.sampling.key_from_entropy()`.
      groups: clipping groups, as in `clip`.
      rule: clipping function, as in `clip`.
      normalize: as in `clip`.

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
    if isinstance(expected_batch_size, bool) or not isinstance(expected_batch_size, int | float):
        raise TypeError(f"expected_batch_size is {expected_batch_size!r}: give a public Python number.")
    if not (math.isfinite(expected_batch_size) and expected_batch_size > 0):
        raise ValueError(f"expected_batch_size is {expected_batch_size}: it must be positive and finite.")
    clipping = clip(max_norm, groups=groups, rule=rule, normalize=normalize)
    chain = optax.chain(clipping, add_gaussian_noise(noise_multiplier, key), optax.scale(1.0 / expected_batch_size))
    transformation = DPSGD(chain.init, chain.update)
    transformation.clip = clipping
    transformation.noise_multiplier = noise_multiplier
    transformation.expected_batch_size = expected_batch_size
    return transformation
