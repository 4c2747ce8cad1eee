r"""Sums and noise as whole multiples of a public number, so that the lowest bits of what is released tell nothing.

In floating point a sum is no real number, and neither is Gaussian noise: which floats noise can be depends on the sum
that it is added to, and the lowest bits tell (Mironov 2012). With a spacing $g$ that is a power of two,

$$M = g\,\Big(\big\lfloor s / g \big\rceil + \big\lfloor z / g \big\rceil\Big), \qquad z \sim \mathcal N(0, \tau^2),$$

is a function of $g \lfloor s/g \rceil + z$, as $\lfloor k + x \rceil = k + \lfloor x \rceil$ for whole k: rounding the
Gaussian release of a sum that lies on the grid. Rounding moves each of d entries of either neighbour's sum by $g/2$ at
most, so the sensitivity is $S + g \sqrt d$. Dividing by a power of two, rounding to a whole number and multiplying
again are exact in floating point, and the last addition rounds an exact whole number of $g$: whatever it does is a
function of $M$.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Grid(NamedTuple):
    """Where a release may lie.

    Attributes:
      share: of the sensitivity, by which rounding to the grid may enlarge it.
      entries: d, of all parameters together.
    """

    share: float
    entries: int

    def enlargement(self, scales: Sequence[Float[Array, ""]]) -> Float[Array, ""]:
        """What rounding to the grid multiplies all sensitivities with (or what one unit of noise multiplier is).

        One number for all, as it is all entries' rounding together that it makes room for.
        """
        most = [self.spacing(scale) * (math.sqrt(self.entries) * (1 + 2.0**-20)) / scale for scale in scales]
        shares = [jnp.maximum(share, self.share).astype(jnp.float32) for share in most]
        # Up by more than this sum and its product with a sensitivity round, which a small share would be lost in.
        return (1 + functools.reduce(jnp.maximum, shares)) * (1 + 2.0**-22)

    def spacing(self, scale: Float[Array, "..."]) -> Float[Array, "..."]:
        r"""The largest power of two with $g \sqrt d$ no more than the share of the sensitivity.

        No less than the smallest normal number, which only sensitivities near it are too small for.
        """
        # Rounded down by more than the division rounds.
        wanted = scale * (self.share / math.sqrt(self.entries) * (1 - 2.0**-20))
        return largest_power_of_two(jnp.maximum(wanted, jnp.finfo(wanted.dtype).tiny))


def largest_power_of_two(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The largest power of two that is no more than a positive, normal number: the number without its mantissa."""
    info = jnp.finfo(x.dtype)
    of_size = jnp.uint32 if info.bits == 32 else jnp.uint64
    mask = of_size(((1 << info.bits) - 1) ^ ((1 << info.nmant) - 1))
    return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(x, of_size) & mask, x.dtype)


def on_grid(x: Float[Array, "..."], spacing: Float[Array, "..."]) -> Float[Array, "..."]:
    """The nearest multiple."""
    return jnp.round(x / spacing) * spacing


def add_noise(
    leaf: Float[Array, "..."],
    stddev: Float[Array, "..."],
    normals: Float[Array, "..."],
    spacing: Float[Array, "..."] | None,
) -> Float[Array, "..."]:
    """A sum with noise of this std, both on the grid if there is one."""
    noise = stddev * normals
    if spacing is None:
        return leaf + noise
    return on_grid(leaf, spacing) + on_grid(noise, spacing)
