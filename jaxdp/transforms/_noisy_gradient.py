"""`NoisyGradient`: a privatised gradient that still knows the std of the noise in it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdp.per_example import Inert

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class NoisyGradient(Inert):
    """A privatised sum or mean together with the std of its noise, as the mechanism drew it.

    It is public. Like `ClippedSum` it is not a pytree: the one thing that can be done to it is to multiply it by a
    scalar, as `optax.scale` does, which multiplies the std with it. Anything else would leave a std that is no longer
    true, and is refused.

    Attributes:
      tree: pytree like the parameters, float32 or better.
      noise_stddev: pytree like `tree` of arrays that broadcast against its leaves: the std of the Gaussian noise in
        each entry (of a complex one, in either part), in the unit of `tree`; traced where thresholds adapt.
    """

    _what = "a gradient that carries the std of its noise reached arithmetic that would make the std wrong"
    _advice = (
        "put jaxdp.transforms.rmt_denoise, scale_by_corrected_adam or prune_blocks before it (only optax.scale may "
        "stand in between), or leave with_stddev out where nothing needs it"
    )
    # numpy's own scalars then leave the product to this class.
    __array_ufunc__ = None

    tree: PyTree
    noise_stddev: PyTree

    def __mul__(self, factor: Any) -> "NoisyGradient":
        """Gradient and std times a scalar."""
        if isinstance(factor, Inert) or np.ndim(factor) != 0 or jnp.iscomplexobj(factor):
            self._refuse()
        tree = jax.tree.map(lambda x: x * jnp.asarray(factor, x.dtype), self.tree)
        return NoisyGradient(tree, jax.tree.map(lambda s: s * jnp.abs(jnp.asarray(factor, s.dtype)), self.noise_stddev))

    __rmul__ = __mul__
