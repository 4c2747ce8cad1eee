"""The clipping function, in a form that can be applied deep inside a backward pass."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdp._shown import of_shapes
from jaxdp.norms import certified_norm
from jaxdp.per_example.tracing._compat import eval_jaxpr


@dataclasses.dataclass(frozen=True, eq=False)
class ClippingWeights:
    """A weight for what is known of one norm (and a threshold), as a jaxpr.

    Attributes:
      closed: the function of two scalars, or of one.
      consts: the arrays it closes over. The rules of a custom derivative or batching rule must be handed these, as they
        may not close over values that are being traced.
      limit: how much, as a share of the clipping norm, an example may move rounding errors in the sum.
      allowance: the norm is raised by this share: of what a second pass may find larger than the first.
    """

    __repr__ = of_shapes

    closed: Any
    consts: Sequence[Array] = ()
    limit: float = math.inf
    allowance: float = 0.0

    def with_consts(self, consts: Sequence[Array]) -> "ClippingWeights":
        """The same function on other values of `consts`."""
        return dataclasses.replace(self, consts=consts)

    def allowing(self, share: float) -> "ClippingWeights":
        """For gradients that may turn out larger by this share."""
        return dataclasses.replace(self, allowance=share)

    def norms(self, certificates: Float[Array, "*any 4"]) -> Float[Array, "*any"]:
        """The certified norms."""
        return certified_norm(certificates, self.limit) * (1 + self.allowance)

    def __call__(self, certificates: Float[Array, "*any 4"], thresholds: Array | None) -> Float[Array, "*any"]:
        """Weights of any shape; zero where a norm is not finite, whatever the function says."""
        return self.of_norms(jnp.square(self.norms(certificates)), thresholds)

    def of_norms(self, squared_norms: Float[Array, "*any"], thresholds: Array | None) -> Float[Array, "*any"]:
        """The same from squared norms."""
        apply: Callable = lambda *args: eval_jaxpr(self.closed, self.consts, *args)[0]
        for _ in squared_norms.shape:
            apply = jax.vmap(apply)
        args = [] if thresholds is None else [jnp.broadcast_to(thresholds, squared_norms.shape)]
        return jnp.where(jnp.isfinite(squared_norms), apply(squared_norms, *args), jnp.zeros((), jnp.float32))


# For passes in which nothing is clipped.
NO_WEIGHTS = ClippingWeights(None)


def clipping_weights(weight_fn: Callable, with_thresholds: bool, limit: float = math.inf) -> ClippingWeights:
    """Trace a clipping function of scalars.

    Raises:
      ValueError: it does not return one number for one norm.
    """

    def scalar(*args: Array) -> Array:
        out = jnp.asarray(weight_fn(*args))
        if out.shape:
            raise ValueError(f"weight_fn returns shape {out.shape} for one squared norm: it must be elementwise.")
        return out.astype(jnp.float32)

    one = jax.ShapeDtypeStruct((), jnp.float32)
    closed = jax.make_jaxpr(scalar)(*[one] * (2 if with_thresholds else 1))
    return ClippingWeights(closed, closed.consts, limit)
