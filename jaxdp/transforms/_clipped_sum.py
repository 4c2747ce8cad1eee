"""`ClippedSum`: the only thing noise may be added to."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxdp.norms import EXACT, Norm
from jaxdp.per_example import PerExampleGrads, Private
from jaxdp.transforms._noisy_gradient import NoisyGradient

PyTree = Any

# Nearer to the limit than this, a rounding error would be as large as what is left for the sum.
_LEAST_SHARE = 1e-6


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ClippedSum(Private):
    r"""A sum over examples, each of bounded influence, together with that bound.

    Adding or removing any one example moves `tree` by at most `sensitivity` in L2 norm. The value is private until
    noise is added. It is not a pytree and takes no part in arithmetic, so scaling it between clipping and noise is an
    error and not a silently changed sensitivity.

    Attributes:
      tree: pytree like the parameters, float32 or better.
      sensitivity: the L2 bound, in the unit of the gradients; traced where thresholds adapt.
      noise_scales: pytree like `tree` of what one unit of noise multiplier is on each entry (arrays that broadcast
        against the leaves), such that a change of `tree` by one example, divided by them, has an L2 norm of at most 1;
        None for the same scale everywhere, `sensitivity`.
      spent_precision: $\sum 1/\sigma_j^2$ over what else was released about the same examples, with noise multipliers
        $\sigma_j$ of its own.
      norm: how the norms were found. Where they were estimated, `sensitivity` is the nominal $\sqrt{\sum_m R_m^2}$, and
        only the law that `Clip.dp_event` names bounds an example's influence.
      shardings: pytree like `tree`, how its leaves are cut over the devices of a mesh; None on one device.
      slack: the share of the clipping norm that `sensitivity` and `noise_scales` hold for rounding, a public number.
    """

    _what = "a clipped sum reached arithmetic before noise was added to it"
    _advice = (
        "put add_gaussian_noise directly after clip, and scaling, momentum, optimisers, MultiSteps and every other "
        "wrapper behind the noise"
    )

    tree: PyTree
    sensitivity: float | Float[Array, ""]
    noise_scales: PyTree | None = None
    spent_precision: float = 0.0
    norm: Norm = EXACT
    shardings: PyTree | None = None
    slack: float = 0.0

    def noise_multiplier(self, joint: float | int) -> float:
        r"""The sum's own noise multiplier, where `joint` is that of everything released about these examples.

        Gaussian releases on the same examples add up in $1/\sigma^2$, so the sum gets
        $(\sigma^{-2} - \sum_j \sigma_j^{-2})^{-1/2}$.
        """
        return remaining_noise_multiplier(joint, self.spent_precision)


def remaining_noise_multiplier(joint: float | int, spent_precision: float) -> float:
    r"""What is left for the sum of a joint noise multiplier, after releases that spent $\sum_j \sigma_j^{-2}$."""
    # A multiplier of zero is accounted as no privacy at all.
    if joint == 0 or spent_precision == 0:
        return float(joint)
    share = 1 - spent_precision * joint * joint
    if share < _LEAST_SHARE:
        others = spent_precision**-0.5
        factor = f"by more than {joint / others:.4g}" if others else "above 0 and then"
        raise ValueError(
            f"noise_multiplier is {joint}, that of everything released about a batch, but the indicators of the "
            f"adaptive thresholds alone have {others:.6g}, which leaves nothing for the sum: multiply "
            f"indicator_noise_stddev {factor} (five times that hardly raises the sum's noise), or use fewer groups."
        )
    return joint / math.sqrt(share)


def describe(updates: PyTree) -> str:
    """What a transformation was given, in words, for its error sentence."""
    if isinstance(updates, ClippedSum):
        return "a sum that is already clipped"
    if isinstance(updates, PerExampleGrads):
        return "per-example gradients that are not clipped"
    if isinstance(updates, NoisyGradient):
        return "a gradient that noise was already added to"
    return "a plain pytree of arrays"


def check_key(key: Any) -> None:
    """Refuse a seed or an old-style key."""
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()):
        raise TypeError("key is not a typed PRNG key: use jaxdp.sampling.key_from_entropy().")


def refuse_masked(tree: PyTree, name: str) -> None:
    """Refuse parameters of which a wrapper has hidden a part: what is hidden would be neither clipped nor noisy."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    if any(isinstance(x, optax.MaskedNode) for x in leaves):
        raise TypeError(
            f"{name} sees only a part of the parameters, so it stands inside optax.masked, multi_transform or "
            "partition, where the rest would stay private data: put these around the optimiser after the noise, clip "
            "parts by themselves with groups, and keep frozen values out of params."
        )
