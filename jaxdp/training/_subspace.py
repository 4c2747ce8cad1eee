"""`[subspace]`: update rules in random subspaces, and what their rank is predicted to cost."""

from collections.abc import Callable

import optax
from jaxtyping import PRNGKeyArray

from jaxdp import transforms
from jaxdp.training._config import Config, PhaseConfig, SubspaceConfig
from jaxdp.training._shapes import trained_shapes

# Lengths of the mean clipped gradient, in clipping norms, for which a rank's cost is shown.
MEAN_GRADIENTS = (1.0, 0.3, 0.1)


def is_kernel(path: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter of our models is a matrix that is multiplied with: tables are none."""
    return path.endswith("kernel']") and len(shape) == 2


def in_subspace(
    subspace: SubspaceConfig,
    private: optax.GradientTransformation,
    direction: optax.GradientTransformation,
    rest: optax.GradientTransformation,
    key: PRNGKeyArray,
) -> optax.GradientTransformation:
    """Privatise in the subspace; `direction` (moments) inside it too, `rest` (decay, learning rate) behind it.

    Directions of finite differences are other ones at every step, so there the moments come behind as well.
    """
    if subspace.method == "zeroth_order":
        found = transforms.zeroth_order(private, key=key, directions=subspace.directions, scale=subspace.scale)
        return optax.chain(found, direction, rest)
    inside = optax.chain(private, direction)
    grape = transforms.grape(
        inside,
        rank=subspace.rank,
        refresh_every=subspace.refresh_every,
        key=key,
        projection=subspace.projection,
        select=is_kernel,
    )
    return optax.chain(grape, rest)


def predictions(
    config: Config, noise_multiplier: float, phase: PhaseConfig, expected_batch_size: float
) -> list[tuple[float, transforms.Prediction]]:
    """Cosines of a phase's first update for a few lengths of its mean clipped gradient; none without a projection."""
    params = trained_shapes(config, phase)
    predict: Callable[[float], transforms.Prediction] = lambda mean: transforms.predicted_cosine(
        params,
        rank=config.subspace.rank,
        noise_multiplier=noise_multiplier,
        mean_gradient=mean,
        expected_batch_size=expected_batch_size,
        select=is_kernel,
    )
    found = [(mean, predict(mean)) for mean in MEAN_GRADIENTS]
    return found if found[0][1].width else []
