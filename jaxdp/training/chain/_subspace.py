"""`[subspace]`: update rules in random subspaces, and what their rank is predicted to cost."""

from collections.abc import Callable

import optax
from jaxtyping import PRNGKeyArray

from jaxdp import transforms
from jaxdp.per_example.planning._prediction import MEAN_GRADIENTS
from jaxdp.training.config._config import Config
from jaxdp.training.config._phase import PhaseConfig
from jaxdp.training.config._privacy import SubspaceConfig
from jaxdp.training.tasks._shapes import is_kernel, trained_shapes


def in_subspace(
    subspace: SubspaceConfig,
    private: tuple[optax.GradientTransformation, ...],
    direction: optax.GradientTransformation,
    rest: optax.GradientTransformation,
    key: PRNGKeyArray,
) -> optax.GradientTransformation:
    """Privatise (and denoise) in the subspace; `direction` (moments) inside too, `rest` (decay, rate) behind it.

    Directions of finite differences are other ones at every step, so there the moments come behind as well.
    """
    if subspace.method == "zeroth_order":
        (mechanism,) = private
        found = transforms.zeroth_order(mechanism, key=key, directions=subspace.directions, scale=subspace.scale)
        return optax.chain(found, direction, rest)
    inside = optax.chain(*private, direction)
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
    if config.subspace_of(phase).method != "grape":
        return []
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
