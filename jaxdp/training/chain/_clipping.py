"""From `[clipping]` to what clips a phase's gradients: groups, thresholds, and how norms are found."""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import optax
from jaxtyping import PRNGKeyArray

from jaxdp import norms, transforms
from jaxdp.per_example import Blocks, resolve_groups
from jaxdp.training._errors import UserError
from jaxdp.training.config._config import Config
from jaxdp.training.config._phase import PhaseConfig
from jaxdp.training.config._privacy import ClippingConfig
from jaxdp.training.tasks._shapes import trained_shapes
from jaxdp.transforms._adaptive import Indicators
from jaxdp.transforms._clipped_sum import remaining_noise_multiplier

# The name of the group of each trained path.
GroupNames = Mapping[str, str]


def clip_spec(phase: PhaseConfig, clipping: ClippingConfig, groups: GroupNames | None = None) -> transforms.ClipSpec:
    """The phase's clipping, from which its privacy event comes; `groups` are those that the plan has counted."""
    bound = phase.max_norm or clipping.max_norm
    names = {} if groups is None else dict.fromkeys(groups.values())
    return transforms.ClipSpec(
        # By name, so that groups other than those that were accounted for are an error.
        {name: bound / math.sqrt(len(names)) for name in names} or bound,
        groups=_given(clipping.groups) if groups is None else lambda path: groups.get(_bare(path)),
        rule=clipping.rule,
        normalize=clipping.normalize,
        noise_shape=clipping.noise_shape,
        norm=_norm(clipping),
    )


def counted_groups(config: Config, phase: PhaseConfig) -> dict[str, str] | None:
    """The group of each path that a phase trains; None where neither the privacy loss nor clipping needs to know."""
    clipping = config.clipping
    if clipping.groups == "all" or not (config.privacy.enabled and _depends_on_groups(clipping)):
        return None
    return groups_of(clipping, trained_shapes(config, phase))


def _depends_on_groups(clipping: ClippingConfig) -> bool:
    return clipping.norm != "exact" or clipping.adaptive or isinstance(clipping.groups, int)


def private_mean(
    phase: PhaseConfig,
    clipping: ClippingConfig,
    groups: GroupNames | None,
    *,
    noise_multiplier: float,
    expected_batch_size: float,
    key: PRNGKeyArray,
    with_stddev: bool,
    grid: float | None = None,
) -> optax.GradientTransformation:
    """Clip, noise, divide by the expected batch size."""
    spec = clip_spec(phase, clipping, groups)
    options: dict[str, Any] = {
        "noise_multiplier": noise_multiplier,
        "expected_batch_size": expected_batch_size,
        "key": key,
        "groups": spec.groups,
        "rule": spec.rule,
        "normalize": spec.normalize,
        "noise_shape": spec.noise_shape,
        "with_stddev": with_stddev,
        "grid": grid,
    }
    if not clipping.adaptive:
        return transforms.dpsgd(max_norm=spec.max_norm, norm=spec.norm, **options)
    return transforms.adaptive_dpsgd(
        initial_norm=spec.max_norm,
        target_quantile=clipping.target_quantile,
        learning_rate=clipping.threshold_rate,
        indicator_noise_stddev=clipping.indicator_noise,
        floor=clipping.floor,
        **options,
    )


def noise_on_the_sum(
    phase: PhaseConfig, clipping: ClippingConfig, groups: GroupNames | None, noise: float, batch_size: float
) -> float:
    """The sum's own noise multiplier, where adaptive thresholds take a share of the joint one.

    Raises:
      UserError: they leave nothing, or begin below their floor.
    """
    if not clipping.adaptive:
        return noise
    count = 1 if groups is None else len(set(groups.values()))
    first = (phase.max_norm or clipping.max_norm) / math.sqrt(count)
    if first < clipping.floor:
        raise UserError(
            f"clipping.floor is {clipping.floor:g}, above the first threshold of phase {phase.name}, {first:g}: "
            "lower it."
        )
    indicators = Indicators(batch_size, clipping.indicator_noise)
    try:
        return remaining_noise_multiplier(noise, indicators.spent_precision(count))
    except ValueError:
        raise UserError(
            f"clipping.indicator_noise is {indicators.stddev(count):g} in phase {phase.name}, which leaves nothing for "
            f"the sum at a noise multiplier of {noise:.4g} with {count} group(s): give more than "
            f"{noise * math.sqrt(count) / 2:.4g} (five times that raises the sum's noise by 2%)."
        ) from None


def threshold_metrics(state: Any) -> dict[str, float]:
    """The clipping norm that adaptive thresholds make up now, for the log: made of noisy counts, so it is public."""
    is_adaptive = lambda node: isinstance(node, transforms.AdaptiveClipState)
    found = [node for node in jax.tree.leaves(state, is_leaf=is_adaptive) if is_adaptive(node)]
    return {"clipping_norm": float(f"{math.hypot(*map(float, found[0].thresholds)):.5g}")} if found else {}


def groups_of(clipping: ClippingConfig, shapes: Mapping[str, Any]) -> dict[str, str]:
    """The group of each path."""
    if not isinstance(clipping.groups, int):
        return {path: path if clipping.groups == "param" else _module(path) for path in shapes}
    modules: dict[str, dict[str, Any]] = {}
    for path in sorted(shapes, key=_natural):
        modules.setdefault(_module(path), {})[path] = shapes[path]
    # Numbered, since a mapping's keys would be sorted as text: layer 10 before layer 2.
    tree = dict(enumerate(modules.values()))
    # A phase that trains fewer modules, a head say, has a block for each.
    found = resolve_groups(Blocks(min(clipping.groups, len(tree))), tree)
    paths = [path for _, members in sorted(tree.items()) for path in sorted(members)]
    return {path: str(found.names[own[0]]) for path, own in zip(paths, found.of_leaf, strict=True)}


def _given(groups: Any) -> Any:
    """A run's parameters are one flat mapping, in which no container tells the modules."""
    return (lambda path: _module(_bare(path))) if groups == "layer" else groups


def _bare(path: str) -> str:
    """A key of a flat mapping as JAX prints it, without the brackets."""
    return path.removeprefix("['").removesuffix("']")


def _module(path: str) -> str:
    """The module of a leaf; a leaf beside modules is one."""
    return path.rpartition("/")[0] or path


def _natural(path: str) -> list[Any]:
    """Sorts numbers as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"/", path)]


def _norm(clipping: ClippingConfig) -> norms.Norm:
    if clipping.norm == "hutchinson":
        return norms.Hutchinson(clipping.probes, clipping.sharing)
    if clipping.norm == "hutch++":
        return norms.HutchPP(clipping.probes, clipping.sketch, clipping.sharing)
    return norms.Exact()
