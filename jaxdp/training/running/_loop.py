"""The host's loop: phases, steps, evaluations, checkpoints, and stopping in good order."""

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdp import sampling
from jaxdp.training._errors import UserError
from jaxdp.training.chain._clipping import threshold_metrics
from jaxdp.training.chain._optimizer import make_transformation
from jaxdp.training.chain._spectrum import denoising_metrics
from jaxdp.training.files._checksums import digest, digest_of_data
from jaxdp.training.running._checkpoint import Checkpoints, state_checksums
from jaxdp.training.running._console import Display
from jaxdp.training.running._journal import Journal
from jaxdp.training.running._mesh import Layout
from jaxdp.training.running._metrics import MetricsLog
from jaxdp.training.running._plan import PhasePlan, Plan, evaluation_steps
from jaxdp.training.running._processes import agree
from jaxdp.training.running._step import StepFunction, TrainState, make_step
from jaxdp.training.tasks._split_model import Params
from jaxdp.training.tasks._task import Prepared, Task


class Interrupted(Exception):
    """The user asked to stop; the state is saved."""


class StopRequest:
    """Turns the first Ctrl-C (or SIGTERM) into a flag, so that a step is never cut in two."""

    def __init__(self):
        self.requested = False

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Listen while inside; a second Ctrl-C stops at once."""
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.getsignal(number) for number in signals}

        def handle(number: int, frame: Any) -> None:
            del frame
            self.requested = True
            signal.signal(number, before[signal.Signals(number)])

        for number in signals:
            signal.signal(number, handle)
        try:
            yield self
        finally:
            for number in signals:
                signal.signal(number, before[number])

    def check(self) -> None:
        """Raise if a stop was asked for."""
        if self.requested:
            raise Interrupted


@dataclasses.dataclass(eq=False)
class Job:
    """All that a run works with.

    Attributes:
      plan: phases and noise.
      task: what it trains, and on what.
      features: directory for the outputs of frozen layers.
      checkpoints: where the state is saved.
      journal: what was noted of earlier steps, so that none is made again on another sum.
      display: what the user sees.
      state_rounding: called with a phase's number and what its noise covers for rounding, before its first step.
      stop: whether the user wants to stop.
      layout: where arrays lie.
      seconds: for each phase by name, seconds and steps that were timed.
      log: where metrics go; opened when it is known how far the state is.
    """

    plan: Plan
    task: Task
    features: Path
    checkpoints: Checkpoints
    journal: Journal
    display: Display
    state_rounding: Callable[[int, float], None]
    stop: StopRequest
    layout: Layout = dataclasses.field(default_factory=Layout)
    seconds: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    log: MetricsLog = dataclasses.field(init=False)

    @property
    def total(self) -> int:
        """Updates of the whole run."""
        return self.plan.phases[-1].last_step

    def trained(self, index: int) -> tuple[str, ...]:
        """What a phase trains."""
        return self.task.trained_paths(self.plan.phases[index].config.train, f"phase.{index + 1}.train")

    def initial_params(self) -> Params:
        """Copies of every parameter that some phase trains."""
        names = sorted({name for index in range(len(self.plan.phases)) for name in self.trained(index)})
        return {name: jnp.array(self.task.params[name], copy=True) for name in names}

    def frozen_params(self, state: TrainState) -> Params:
        """Every other value of the model."""
        return {name: x for name, x in self.task.params.items() if name not in state.params}


def initial_state(job: Job, key: jax.Array) -> TrainState:
    """The state before the first update."""
    return _state(job, 0, key)


def template_state(job: Job, index: int) -> TrainState:
    """A state with the structure that it has in a phase; its values mean nothing."""
    return _state(job, index, sampling.key_from_seed(0))


def _state(job: Job, index: int, key: jax.Array) -> TrainState:
    params, root = job.layout.place(job.initial_params()), job.layout.replicate(jax.random.clone(key))
    step = job.layout.replicate(jnp.zeros((), jnp.int32))
    return TrainState(params, _init_phase(job, index, params, root), root, step)


def run_phases(job: Job, state: TrainState, index: int) -> TrainState:
    """Train from a state that belongs to phase `index` to the end."""
    begun = index
    for number in range(index, len(job.plan.phases)):
        if number != begun:
            state = state._replace(opt_state=_init_phase(job, number, state.params, state.key))
        if int(state.step) < job.plan.phases[number].last_step:
            state = _run_phase(job, number, state)
    job.checkpoints.save(int(state.step), state, _meta(job, len(job.plan.phases) - 1), wait=True)
    return state


def _run_phase(job: Job, index: int, state: TrainState) -> TrainState:
    phase, field = job.plan.phases[index], f"phase.{index + 1}"
    frozen = job.layout.place(job.frozen_params(state))

    def progress(done: int, total: int) -> None:
        job.display.prepare(f"phase {phase.config.name}: frozen layers", done, total)
        job.stop.check()

    cached = phase.config.features == "cached"
    known = job.frozen_params(state) | (job.layout.whole(state.params) if cached else state.params)
    data = job.task.prepare(known, phase.config, field, job.features, progress)
    job.journal.same_data(index, digest_of_data(data.train))
    train = job.layout.examples(in_random_order(data.train, state.key), phase.sampler)
    data = dataclasses.replace(data, held_out=[(job.layout.replicate(x), real) for x, real in data.held_out])
    step = _make_step(job, index, state, data)
    evaluations = evaluation_steps(phase)
    config = job.plan.config
    done, saved_at = int(state.step), time.monotonic()
    timed = job.seconds.setdefault(phase.config.name, [0.0, 0])
    first, took = done, 0.0
    # The state after the first step is noted: a resumed run that makes that step again has to come to the same.
    unproven = True
    if done == 0 and job.task.scored_at_first and not job.log.has(0):
        _evaluate(job, phase, state, frozen, data)
    if done == 0:
        _check_start(data.evaluate(frozen | state.params, data.held_out[:1]))
    if phase.noise_multiplier is not None:
        job.state_rounding(index, step.rounding(state, frozen, train))
    job.display.begin(phase.config.name, phase.first_step, done, phase.last_step)
    while done < phase.last_step:
        job.journal.claim(done + 1, job.total, took)
        began = time.monotonic()
        state, private = step.run(state, frozen, train)
        jax.block_until_ready(state)
        if done > first:
            # The first one compiles.
            took = time.monotonic() - began
            timed[0], timed[1] = timed[0] + took, timed[1] + 1
        done += 1
        if unproven or job.journal.knows(done):
            # Before anything is made of it.
            job.journal.same_state(done, digest(state_checksums(state)))
        job.checkpoints.tend()
        epsilon = job.plan.epsilon_after(done)
        job.display.step(done, phase.config.name, epsilon)
        if private:
            values = {name: float(x) for name, x in private.items()}
            job.log.write({"step": done, "phase": phase.config.name, "private": values})
        if done in evaluations:
            _evaluate(job, phase, state, frozen, data)
        # Read once: a request between two reads would skip the save and still stop.
        stopping = job.stop.requested and done < job.total
        due = time.monotonic() - saved_at >= config.log.checkpoint_seconds
        stopping, due = agree(stopping, due)
        unproven = stopping or due or done == phase.last_step
        if unproven:
            job.checkpoints.save(done, state, _meta(job, index), wait=stopping)
            saved_at = time.monotonic()
        if stopping:
            raise Interrupted
    return state


def _check_start(scores: dict[str, Any]) -> None:
    """Refuse to spend budget on a model whose loss on held-out examples is no number before the first step."""
    if not math.isfinite(scores["held_out_loss"]):
        raise UserError(
            "model.path gives a held-out loss that is not finite before the first step, so nothing was spent: load "
            "another checkpoint."
        )


def in_random_order(examples: Any, key: jax.Array) -> Any:
    """The examples in an order that only the root key tells: what rounding may reveal then is bounded by two places."""
    count = len(jax.tree.leaves(examples)[0])
    order = np.asarray(jax.random.permutation(sampling.streams(key).order, count))
    return jax.tree.map(lambda x: x[order], examples)


def _evaluate(job: Job, phase: PhasePlan, state: TrainState, frozen: Params, data: Prepared) -> None:
    """Score the model on the held-out data, and say so."""
    done = int(state.step)
    epsilon, metric = job.plan.epsilon_after(done), job.task.metric
    scores = data.evaluate(frozen | state.params, data.held_out)
    job.log.write_details({"step": done, "classes": list(job.task.label_names), **scores.pop("details", {})})
    spent = epsilon if math.isfinite(epsilon) else None
    job.log.write(
        {"step": done, "phase": phase.config.name, "epsilon": spent, **scores}
        | denoising_metrics(state)
        | threshold_metrics(state)
    )
    job.display.evaluated(done, job.total, phase.config.name, epsilon, metric.text(scores[metric.name]))
    if not math.isfinite(scores["held_out_loss"]):
        number = job.plan.phases.index(phase) + 1
        job.display.say(f"warning: the held-out loss is not finite: lower phase.{number}.learning_rate.")


def _make_step(job: Job, index: int, state: TrainState, data: Prepared) -> StepFunction:
    phase, config = job.plan.phases[index], job.plan.config
    norm = phase.config.max_norm or config.clipping.max_norm
    return make_step(
        lambda trained, frozen, example: data.loss(frozen | trained, example),
        sampler=phase.sampler,
        transformation=phase_transformation(job.plan, index, state.key),
        trained=job.trained(index),
        microbatch_size=phase.config.microbatch_size,
        dropout=config.model.dropout > 0 and phase.config.features == "live",
        private_metrics_norm=norm if config.log.private_metrics else None,
        placement=job.layout.placement(job.trained(index), phase.sampler),
        state_shardings=job.layout.state_shardings(state),
    )


def _init_phase(job: Job, index: int, params: Params, key: jax.Array) -> Any:
    """The state of a phase's transformations at its beginning."""
    init = lambda trained, key: phase_transformation(job.plan, index, key).init(trained)
    return job.layout.initialised(init, {name: params[name] for name in job.trained(index)}, key)


def phase_transformation(plan: Plan, index: int, key: jax.Array) -> optax.GradientTransformation:
    """What turns a phase's per-example gradients into updates, with the phase's own stream of noise."""
    phase = plan.phases[index]
    # Each phase counts its releases from 0, so each needs a stream of its own.
    noise = jax.random.fold_in(sampling.streams(key).noise, index)
    return make_transformation(
        phase.config,
        plan.config.clipping,
        phase.noise_multiplier,
        phase.sampler.expected_batch_size,
        noise,
        plan.config.denoise,
        plan.config.subspace_of(phase.config),
        phase.groups,
        plan.config.privacy.grid,
    )


def _meta(job: Job, index: int) -> dict[str, Any]:
    return {"phase": index, "seconds": job.seconds, "log": job.log.lines, "details": job.log.details}
