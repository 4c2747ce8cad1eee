"""The privacy side of a run: what each phase draws and how much noise it adds, all in one budget."""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import dp_accounting

from jaxdp import accounting, sampling
from jaxdp.training._errors import UserError
from jaxdp.training.chain._clipping import clip_spec, counted_groups, noise_on_the_sum
from jaxdp.training.config._config import Config
from jaxdp.training.config._meaning import named
from jaxdp.training.config._phase import PhaseConfig
from jaxdp.training.running._mesh import mesh_of, sharded_sampler

Sampler = sampling.PoissonSampling | sampling.FullBatch | sampling.ShardedPoissonSampling

_CURVE_POINTS = 16


@dataclasses.dataclass(frozen=True)
class PhasePlan:
    """One phase with its numbers.

    Attributes:
      config: the phase's fields.
      sampler: how its batches are drawn.
      noise_multiplier: std of the noise over the sensitivity; None in a run without privacy.
      first_step: updates done before the phase.
      last_step: updates done after it.
      groups: the clipping group of each path that it trains, where the plan depends on their number.
    """

    config: PhaseConfig
    sampler: Sampler
    noise_multiplier: float | None
    first_step: int
    last_step: int
    groups: dict[str, str] | None = None

    def sum_noise_multiplier(self, config: Config) -> float:
        """That of the clipped sum alone: larger where adaptive thresholds have a share in `noise_multiplier`."""
        noise, batch_size = self.noise_multiplier or 0.0, self.sampler.expected_batch_size
        return noise_on_the_sum(self.config, config.clipping, self.groups, noise, batch_size)


@dataclasses.dataclass(frozen=True)
class Plan:
    """All phases of a run and what they cost together.

    Attributes:
      config: the run's configuration.
      num_examples: n, the number of training examples; public.
      phases: in the order in which they run.
      epsilon: of the whole run; infinite in a run without privacy.
      curve: pairs (steps done, epsilon spent), rising, from (0, 0) to the whole run.
      warnings: sentences for the user.
    """

    config: Config
    num_examples: int
    phases: tuple[PhasePlan, ...]
    epsilon: float
    curve: tuple[tuple[int, float], ...]
    warnings: tuple[str, ...]

    @property
    def event(self) -> dp_accounting.DpEvent:
        """The event of the whole run."""
        return self.event_after(self.phases[-1].last_step)

    def event_after(self, steps: int) -> dp_accounting.DpEvent:
        """The event of the first `steps` updates."""
        return _compose(self.config, self.phases, steps)

    def epsilon_after(self, steps: int) -> float:
        """Epsilon spent by the first `steps` updates: never less than it is, as it is that of the next curve point."""
        at = bisect.bisect_left([point for point, _ in self.curve], steps)
        return self.curve[min(at, len(self.curve) - 1)][1]

    def phase_at(self, step: int) -> int:
        """Index of the phase that makes the update after `step` updates."""
        return next((i for i, phase in enumerate(self.phases) if step < phase.last_step), len(self.phases) - 1)


def make_plan(config: Config, num_examples: int) -> Plan:
    r"""Choose samplers and calibrate the noise so that all phases together stay within the budget.

    Phase p has noise multiplier $\sigma w_p$ with its `noise_weight` $w_p$; one $\sigma$ is found for the composition
    of all phases.

    Args:
      config: the configuration.
      num_examples: n, the number of training examples.

    Returns:
      The plan.

    Raises:
      UserError: fields that do not fit n or each other, named.
    """
    privacy = config.privacy
    phases, ends = _unpriced(config, num_examples), _ends(config)
    if not privacy.enabled:
        curve = ((0, 0.0), (ends[-1], math.inf))
        return Plan(config, num_examples, phases, math.inf, curve, _warnings(config, num_examples))
    try:
        planned = _priced(config, phases)
        for phase in planned:
            # Refuses thresholds whose counts leave nothing of the budget.
            _ = phase.sum_noise_multiplier(config)
        steps = _curve_steps(planned)
        spent = accounting.epsilon_curve(
            lambda count: _compose(config, planned, count), steps, privacy.delta, privacy.accountant
        )
    except ValueError as error:
        raise UserError(f"privacy: {error}") from error
    # Rounding inside the accountant must not make the curve fall.
    curve = tuple(zip(steps, _running_maximum(spent), strict=True))
    return Plan(config, num_examples, planned, spent[-1], curve, _warnings(config, num_examples))


@dataclasses.dataclass(frozen=True)
class NormsPrice:
    """What a plan needs with norms of one kind.

    Attributes:
      config: the configuration with these norms.
      phases: with the noise that the budget then needs, or that was given.
      epsilon: of the whole run.
    """

    config: Config
    phases: tuple[PhasePlan, ...]
    epsilon: float


def price_of_norms(plan: Plan) -> tuple[NormsPrice, NormsPrice] | None:
    """The plan with exact and with estimated norms: those of the configuration, or `"hutchinson"` with its probes.

    Returns:
      What both need; None where norms cannot be estimated (no privacy, the RDP accountant, no gradients, adaptive
        thresholds).

    Raises:
      UserError: there is no model to count the groups of.
    """
    config = plan.config
    gradients = config.subspace.method != "zeroth_order" and not config.clipping.adaptive
    if not (gradients and config.privacy.enabled and config.privacy.accountant == "pld"):
        return None
    kind = "hutchinson" if config.clipping.norm == "exact" else config.clipping.norm

    def with_norms(norm: str) -> NormsPrice:
        if norm == config.clipping.norm:
            return NormsPrice(config, plan.phases, plan.epsilon)
        other = config.model_copy(update={"clipping": config.clipping.model_copy(update={"norm": norm})})
        try:
            phases = _priced(other, _unpriced(other, plan.num_examples))
            event = _compose(other, phases, phases[-1].last_step)
            return NormsPrice(other, phases, accounting.epsilon_of(event, config.privacy.delta))
        except ValueError as error:
            raise UserError(f"privacy: {error}") from error

    return with_norms("exact"), with_norms(kind)


def _unpriced(config: Config, num_examples: int) -> tuple[PhasePlan, ...]:
    """All phases without noise."""
    return tuple(
        PhasePlan(
            phase, _sampler(config, number, num_examples), None, end - phase.steps, end, counted_groups(config, phase)
        )
        for number, (phase, end) in enumerate(zip(config.phase, _ends(config), strict=True), 1)
    )


def _priced(config: Config, phases: Sequence[PhasePlan]) -> tuple[PhasePlan, ...]:
    """The phases with the noise that was given, or with what the budget needs."""
    privacy = config.privacy

    def with_noise(scale: float) -> tuple[PhasePlan, ...]:
        return tuple(dataclasses.replace(x, noise_multiplier=scale * x.config.noise_weight) for x in phases)

    if privacy.noise_multiplier is not None:
        return with_noise(privacy.noise_multiplier)
    found = accounting.calibrate(
        lambda noise: _compose(config, with_noise(noise), phases[-1].last_step),
        privacy.epsilon,  # pyright: ignore[reportArgumentType]
        privacy.delta,
        privacy.accountant,
    )
    return with_noise(found)


def plan_from_saved(config: Config, num_examples: int, saved: dict[str, Any]) -> Plan:
    """The plan that `saved_plan` wrote: a resumed run must add exactly the noise that it began with."""
    phases = tuple(
        PhasePlan(phase, _sampler(config, number, num_examples), noise, end - phase.steps, end, names)
        for number, (phase, noise, end, names) in enumerate(
            zip(config.phase, saved["noise_multipliers"], _ends(config), saved["groups"], strict=True), 1
        )
    )
    curve = tuple((int(step), _from_json(spent)) for step, spent in saved["curve"])
    return Plan(config, num_examples, phases, _from_json(saved["epsilon"]), curve, _warnings(config, num_examples))


def saved_plan(plan: Plan) -> dict[str, Any]:
    """What calibration found, as JSON values."""
    return {
        "noise_multipliers": [phase.noise_multiplier for phase in plan.phases],
        "groups": [phase.groups for phase in plan.phases],
        "epsilon": _to_json(plan.epsilon),
        "curve": [[step, _to_json(spent)] for step, spent in plan.curve],
    }


def _compose(config: Config, phases: Sequence[PhasePlan], steps: int) -> dp_accounting.DpEvent:
    """The event of the first `steps` updates, from the same objects that clip and sample."""
    events = []
    for phase in phases:
        count = min(steps, phase.last_step) - phase.first_step
        if count > 0:
            release = clip_spec(phase.config, config.clipping, phase.groups).dp_event(phase.noise_multiplier or 0.0)
            events.append(phase.sampler.event(release, count))
    return dp_accounting.ComposedDpEvent(events) if len(events) != 1 else events[0]


def _sampler(config: Config, number: int, num_examples: int) -> Sampler:
    phase = config.phase[number - 1]
    name = f"phase.{number}"
    mesh = mesh_of(config.mesh)
    if phase.batch_size == "full":
        whole = sampling.FullBatch(num_examples)
        sampler: Sampler = whole if mesh is None else sharded_sampler(whole, mesh, phase, name)
    else:
        if phase.batch_size > num_examples:
            raise UserError(
                f"{name}.batch_size is {phase.batch_size:g} with {num_examples} training examples, a sampling "
                f'probability above 1: make it smaller, or "full".'
            )
        room = -(-(num_examples + 1) // 8) * 8
        if phase.padded_batch_size is not None and phase.padded_batch_size > room:
            raise UserError(
                f"{name}.padded_batch_size is {phase.padded_batch_size:,}, and no batch of {num_examples:,} training "
                f"examples needs so much room: make it at most {room:,}, or remove it."
            )
        try:
            sampler = sampling.PoissonSampling.from_expected_batch_size(
                num_examples, phase.batch_size, phase.padded_batch_size
            )
        except ValueError as error:
            raise UserError(
                f"{name}.batch_size is {phase.batch_size:g} with {num_examples:,} training examples: {error}"
            ) from error
        sampler = sampler if mesh is None else sharded_sampler(sampler, mesh, phase, name)
    size = sampler.padded_batch_size
    if phase.microbatch_size is not None and phase.microbatch_size > size:
        raise UserError(
            f"{name}.microbatch_size is {phase.microbatch_size}, more than the padded batch of {size}: make it at "
            f"most {size}, or remove it."
        )
    return sampler


def _warnings(config: Config, num_examples: int) -> tuple[str, ...]:
    found = []
    if not config.privacy.enabled:
        found.append("privacy.enabled is false: this run gives NO privacy guarantee.")
    elif config.privacy.delta >= 1 / num_examples:
        found.append(
            f"privacy.delta is {config.privacy.delta:g}, not below 1/n = {1 / num_examples:.2g}: that permits "
            "publishing one example outright, so make it smaller."
        )
    found += named(config)
    weighted = len(config.phase) == 1 and config.phase[0].noise_weight != 1
    if weighted and config.privacy.epsilon is not None:
        found.append("phase.1.noise_weight has no meaning with one phase and privacy.epsilon, which sets the noise.")
    if config.log.private_metrics:
        found.append("log.private_metrics is true: metrics.jsonl will hold values outside the guarantee.")
    return tuple(found)


def _curve_steps(phases: Sequence[PhasePlan]) -> list[int]:
    """Where epsilon is computed: 0, the evaluations, the ends of the phases, and evenly in between."""
    steps = {0}
    for phase in phases:
        count = min(phase.config.steps, max(2, _CURVE_POINTS // len(phases)))
        steps |= evenly(phase, count) | evaluation_steps(phase)
    return sorted(steps)


def evaluation_steps(phase: PhasePlan) -> set[int]:
    """After how many updates of the run the model is evaluated during a phase."""
    return evenly(phase, min(phase.config.evaluations, phase.config.steps))


def evenly(phase: PhasePlan, count: int) -> set[int]:
    """`count` numbers of steps, spread over a phase and ending with it."""
    return {phase.first_step + -(-i * phase.config.steps // count) for i in range(1, count + 1)}


def _ends(config: Config) -> list[int]:
    """Updates done after each phase."""
    return list(itertools.accumulate(phase.steps for phase in config.phase))


def _running_maximum(values: Sequence[float]) -> list[float]:
    return [max(values[: i + 1]) for i in range(len(values))]


def _to_json(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _from_json(value: float | None) -> float:
    return math.inf if value is None else value
