"""From a phase's fields to the chain of gradient transformations."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray

from jaxdp import transforms
from jaxdp.per_example import PerExampleGrads
from jaxdp.training.chain._clipping import GroupNames, private_mean
from jaxdp.training.chain._spectrum import watch
from jaxdp.training.chain._subspace import in_subspace
from jaxdp.training.config._phase import PhaseConfig
from jaxdp.training.config._privacy import ClippingConfig, DenoiseConfig, SubspaceConfig


def learning_rate_schedule(phase: PhaseConfig) -> optax.Schedule:
    """The learning rate of each step; no step has rate zero, since every step costs privacy."""

    def schedule(count: Any) -> Any:
        count = jnp.asarray(count, jnp.float32)
        rise = jnp.minimum(1.0, (count + 1.0) / (phase.warmup_steps + 1.0))
        done = jnp.clip((count - phase.warmup_steps) / (phase.steps - phase.warmup_steps), 0.0, 1.0)
        fall = {
            "constant": jnp.ones_like(done),
            "linear": 1.0 - done,
            "cosine": 0.5 * (1.0 + jnp.cos(jnp.pi * done)),
        }
        return phase.learning_rate * rise * fall[phase.schedule]

    return schedule


def make_optimizer(phase: PhaseConfig) -> optax.GradientTransformation:
    """The update rule that follows privatisation: post-processing, free of privacy cost."""
    rate = learning_rate_schedule(phase)
    b1, b2 = phase.betas
    if phase.optimizer == "sgd":
        rule = optax.sgd(rate, momentum=phase.momentum or None)
    elif phase.optimizer == "adamw":
        rule = optax.adamw(rate, b1=b1, b2=b2, weight_decay=phase.weight_decay)
    elif phase.optimizer == "adam_corrected":
        rule = optax.chain(transforms.scale_by_corrected_adam(b1=b1, b2=b2), optax.scale_by_learning_rate(rate))
    else:
        rule = optax.adam(rate, b1=b1, b2=b2)
    return _promoting(rule)


def make_direction(phase: PhaseConfig) -> optax.GradientTransformation:
    """The part of `make_optimizer` that keeps moments, which a subspace can hold."""
    b1, b2 = phase.betas
    if phase.optimizer == "sgd":
        return optax.trace(phase.momentum) if phase.momentum else optax.identity()
    if phase.optimizer == "adam_corrected":
        return _promoting(transforms.scale_by_corrected_adam(b1=b1, b2=b2))
    return _promoting(optax.scale_by_adam(b1=b1, b2=b2))


def make_step_length(phase: PhaseConfig) -> optax.GradientTransformation:
    """The part of `make_optimizer` that needs the parameters: decoupled weight decay and the learning rate."""
    rate = optax.scale_by_learning_rate(learning_rate_schedule(phase))
    decay = [optax.add_decayed_weights(phase.weight_decay)] if phase.optimizer == "adamw" else []
    return _promoting(optax.chain(*decay, rate))


def _promoting(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        # Optax counts steps in integers and raises floats to them, which strict promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            return rule.update(updates, state, params)

    return optax.GradientTransformation(rule.init, update)


def make_transformation(
    phase: PhaseConfig,
    clipping: ClippingConfig,
    noise_multiplier: float | None,
    expected_batch_size: float,
    key: PRNGKeyArray,
    denoise: DenoiseConfig | None = None,
    subspace: SubspaceConfig | None = None,
    groups: GroupNames | None = None,
    grid: float | None = None,
) -> optax.GradientTransformation:
    """Clip, noise, mean, denoising if wanted, update rule.

    Without a noise multiplier an ordinary mean gradient, with no guarantee.
    """
    if noise_multiplier is None:
        return _updates(phase, _ordinary_mean(expected_batch_size), None, subspace, key)
    denoiser = make_denoiser(denoise) if denoise is not None and denoise.enabled else None
    private = private_mean(
        phase,
        clipping,
        groups,
        noise_multiplier=noise_multiplier,
        expected_batch_size=expected_batch_size,
        key=key,
        with_stddev=denoiser is not None or phase.optimizer == "adam_corrected",
        grid=grid,
    )
    return _updates(phase, private, denoiser, subspace, key)


def _updates(
    phase: PhaseConfig,
    mean: optax.GradientTransformation,
    denoiser: optax.GradientTransformation | None,
    subspace: SubspaceConfig | None,
    key: PRNGKeyArray,
) -> optax.GradientTransformation:
    """The mean gradient and what follows it, in the subspace if there is one."""
    between = () if denoiser is None else (denoiser,)
    if subspace is None or subspace.method == "none":
        return optax.chain(mean, *between, make_optimizer(phase))
    return in_subspace(subspace, (mean, *between), make_direction(phase), make_step_length(phase), key)


def make_denoiser(denoise: DenoiseConfig) -> optax.GradientTransformation:
    """Post-processing of the noisy gradient, which keeps one matrix before and after for the report."""
    denoiser = transforms.rmt_denoise(
        method=denoise.method,
        mode=denoise.mode,
        gate=denoise.gate,
        norm_correct=denoise.norm_correct,
        width=denoise.width,
    )
    return watch(denoiser, denoise.spectrum)


def _ordinary_mean(expected_batch_size: float) -> optax.GradientTransformation:
    """The gradient of a run without privacy."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        assert isinstance(updates, PerExampleGrads)
        return updates.weighted_sum(jnp.full(updates.batch_size, 1.0 / expected_batch_size)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
