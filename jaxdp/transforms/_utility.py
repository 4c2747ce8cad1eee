"""What a rank costs: how well a noisy update in a subspace points along the gradient."""

import math
from typing import Any

import jax
import numpy as np

from jaxdp.per_example.planning._prediction import Prediction, predict
from jaxdp.transforms._subspace import Select, Side, choose

PyTree = Any


def predicted_cosine(
    params: PyTree,
    *,
    rank: int,
    noise_multiplier: float | int,
    mean_gradient: float | int,
    expected_batch_size: float | int,
    side: Side = "smaller",
    select: Select | None = None,
    matrices: PyTree | None = None,
) -> Prediction:
    r"""How well the first update of `grape` points along the gradient, for a user to choose the rank by.

    For one m x n matrix with a Gaussian P, a (clipped) sum of gradients G and noise of std s on each coordinate,

    $$\cos(\text{update}, G) = \Big(1 + \frac{k+1}{r} + \frac{s^2 m k}{\|G\|^2}\Big)^{-1/2},$$

    so that the projection is free while $s^2 m r \gg \|G\|^2$. Over several parameters the noise is that on all D
    coordinates, and every parameter is taken to have a share of $\|G\|^2$ in proportion to its size.

    Args:
      params: the parameters, or their shapes.
      rank: r.
      noise_multiplier: $\sigma$; the noise's std on the sum is $s = \sigma C$.
      mean_gradient: $\|G\|/(bC)$ in (0, 1], the length of the mean clipped gradient in units of the clipping norm: 1
        where all examples agree. It is a property of the data: an assumption, not a measurement.
      expected_batch_size: b.
      side: as for `grape`.
      select: as for `grape`.
      matrices: as for `grape`.

    Returns:
      The cosines with and without the projection.

    Raises:
      ValueError: `mean_gradient` is not in (0, 1], or another argument that `grape` refuses.

    Example:
      >>> import jax.numpy as jnp, jaxdp
      >>> found = jaxdp.transforms.predicted_cosine(
      ...     jnp.zeros((512, 512)), rank=16, noise_multiplier=1.0, mean_gradient=0.1, expected_batch_size=64.0
      ... )
      >>> round(found.full, 4), round(found.projected, 4)
      (0.0125, 0.0125)

    References:
      DP-GRAPE, arXiv 2506.15588.
    """
    subspace = choose(params, rank, side, select, matrices)
    return predict(
        [math.prod(np.shape(x)) for x in jax.tree.leaves(params)],
        [None if chosen is None else chosen.width for chosen in subspace.chosen],
        rank=rank,
        noise_multiplier=noise_multiplier,
        mean_gradient=mean_gradient,
        expected_batch_size=expected_batch_size,
    )
