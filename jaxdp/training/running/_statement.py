"""The privacy statement of a run."""

import dataclasses

import dp_accounting

from jaxdp import accounting, sampling
from jaxdp.training.chain._clipping import clip_spec
from jaxdp.training.config._config import Config
from jaxdp.training.config._privacy import ClippingConfig
from jaxdp.training.config._task_sections import NAMED_SOURCES
from jaxdp.training.running._plan import PhasePlan, Plan

PRIVATE_METRICS = ("train_loss", "batch_size", "clipped_share")


def make_statement(plan: Plan, *, seeded: bool) -> accounting.PrivacyStatement:
    """What the run guarantees, from the same events that calibrated its noise.

    Args:
      plan: the run's phases.
      seeded: whether the user chose the seed.

    Returns:
      The statement.
    """
    config = plan.config
    outside = ["everything in the directory checkpoints/, which holds the key of the noise and is to be kept secret"]
    if config.data.train_limit is not None:
        outside.append("which rows data.train_limit selected, which is taken as given")
    if config.model.center is not None:
        outside.append(f"the corpus {config.model.center}, which is taken as public and on which features are centered")
    if config.task.kind == "text_classification" and config.data.source not in NAMED_SOURCES:
        outside.append("the set of labels that occur in the table, which is published with the model")
    statement = accounting.PrivacyStatement.from_phases(
        [_phase(plan, phase) for phase in plan.phases],
        delta=config.privacy.delta,
        accountant=config.privacy.accountant,
        also_outside_the_guarantee=outside,
        private_outputs=PRIVATE_METRICS if config.log.private_metrics else (),
    )
    setting = statement.setting
    if seeded:
        setting += (
            "; the seed of this run was chosen by its operator (--seed), so the guarantee holds only against those who "
            "do not know the seed"
        )
    released = "the model after every step and everything computed from it, but not the directory checkpoints/"
    if config.data.unit == "user":
        used = f"of which at most {config.data.max_records_per_user} are used"
        statement = dataclasses.replace(statement, unit_of_privacy=f"one user (all records of one user, {used})")
    return dataclasses.replace(statement, setting=setting, released=released)


def _phase(plan: Plan, phase: PhasePlan) -> accounting.Phase:
    clipping, sampler = clip_spec(phase.config, plan.config.clipping, phase.groups), phase.sampler
    if phase.noise_multiplier is None:
        event: dp_accounting.DpEvent = dp_accounting.NonPrivateDpEvent()
        mechanism = "mean of the gradients, neither clipped nor noisy: NO PRIVACY"
    else:
        event = sampler.event(clipping.dp_event(phase.noise_multiplier), phase.config.steps)
        given, released = plan.config.clipping, _released(plan.config, phase)
        mechanism = (
            f"sum of {released} clipped to {_bound(plan, phase)} (rule {given.rule}, "
            f"groups {_groups(phase, given)}, norms {_norms(given)}), plus Gaussian noise for that norm and for what "
            f"rounding may add to it, into {phase.config.optimizer}{_counts(plan, phase)}"
        )
    full = isinstance(sampler, sampling.FullBatch)
    # With estimated norms or adaptive thresholds no single number bounds a contribution.
    varying = plan.config.clipping.norm != "exact" or plan.config.clipping.adaptive
    return accounting.Phase(
        name=phase.config.name,
        mechanism=mechanism,
        event=event,
        num_steps=phase.config.steps,
        noise_multiplier=phase.noise_multiplier or 0.0,
        clipping_norm=None if phase.noise_multiplier is None or varying else clipping.bound,
        sampling="every example in every step" if full else "Poisson: each example by itself, anew in each step",
        num_examples=plan.num_examples,
        sampling_probability=sampler.sampling_probability,
        expected_batch_size=sampler.expected_batch_size,
        padded_batch_size=sampler.padded_batch_size,
        grid=None if phase.noise_multiplier is None else plan.config.privacy.grid,
    )


def with_rounding(statement: accounting.PrivacyStatement, index: int, rounding: float) -> accounting.PrivacyStatement:
    """The statement with what the noise of one phase covers for rounding, which its step tells when it is traced."""
    phases = list(statement.phases)
    phases[index] = dataclasses.replace(phases[index], rounding=rounding)
    return dataclasses.replace(statement, phases=tuple(phases))


def _released(config: Config, phase: PhasePlan) -> str:
    subspace = config.subspace_of(phase.config)
    if subspace.method == "grape":
        return f"per-example gradients projected onto random subspaces of dimension {subspace.rank},"
    if subspace.method == "zeroth_order":
        return f"differences of each example's loss along {subspace.directions} random direction(s)"
    return "per-example gradients" if config.data.unit == "record" else "gradients of users"


def _norms(clipping: ClippingConfig) -> str:
    return "exact" if clipping.norm == "exact" else f"estimated by {clipping.norm} with {clipping.probes} probes"


def _bound(plan: Plan, phase: PhasePlan) -> str:
    clipping = plan.config.clipping
    bound = clip_spec(phase.config, clipping, phase.groups).bound
    if not clipping.adaptive:
        return f"norm {bound:g}"
    return f"thresholds that start at norm {bound:g} and follow the {clipping.target_quantile:g} quantile of the norms"


def _counts(plan: Plan, phase: PhasePlan) -> str:
    """The second release of a step with adaptive thresholds."""
    if not plan.config.clipping.adaptive:
        return ""
    own = phase.sum_noise_multiplier(plan.config)
    shaped = ", in proportion to each threshold" if plan.config.clipping.noise_shape == "equal_budget" else ""
    return (
        "; and noisy counts of the examples below each threshold. The noise multiplier is that of both together: the "
        f"sum's own is {own:.6g}{shaped}"
    )


def _groups(phase: PhasePlan, clipping: ClippingConfig) -> str:
    if phase.groups is None:
        return str(clipping.groups)
    count = len(set(phase.groups.values()))
    return f"{count} blocks of modules" if isinstance(clipping.groups, int) else f"{clipping.groups}, {count} of them"
