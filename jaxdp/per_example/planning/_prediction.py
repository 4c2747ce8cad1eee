"""What a rank costs: how well a noisy update in a random subspace points along the gradient."""

from collections.abc import Sequence
from typing import NamedTuple

# Lengths of the mean clipped gradient, in clipping norms, for which a rank's cost is shown.
MEAN_GRADIENTS = (1.0, 0.3, 0.1)


class Prediction(NamedTuple):
    """Cosines between the update and the clipped sum of gradients, and what they were predicted from.

    Attributes:
      full: with the noise and without a projection.
      projected: with the noise and the projection.
      width: $(k + 1)/r$ averaged over the projected matrices by their share of the squared gradient.
      coordinates: number of parameters, of which each has noise in the update.
    """

    full: float
    projected: float
    width: float
    coordinates: int

    @property
    def loss(self) -> float:
        """Share of the cosine that the projection costs."""
        return 1.0 - self.projected / self.full


def predict(
    sizes: Sequence[int],
    sides: Sequence[int | None],
    *,
    rank: int,
    noise_multiplier: float | int,
    mean_gradient: float | int,
    expected_batch_size: float | int,
) -> Prediction:
    """From each parameter's size and the length of its projected side, None for one that is not projected."""
    if not 0 < mean_gradient <= 1:
        raise ValueError(f"mean_gradient is {mean_gradient}: it must be above 0 and at most 1.")
    count = sum(sizes)
    width = sum(n * (k + 1) / rank for n, k in zip(sizes, sides, strict=True) if k is not None) / count
    noise = count * (noise_multiplier / (mean_gradient * expected_batch_size)) ** 2
    return Prediction((1 + noise) ** -0.5, (1 + width + noise) ** -0.5, width, count)
