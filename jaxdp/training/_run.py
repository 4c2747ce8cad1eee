"""`train` and `resume`: from a configuration to a finished run directory."""

import functools
import json
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from jaxtyping import PRNGKeyArray

from jaxdp import sampling
from jaxdp._files import write_text
from jaxdp.accounting import PrivacyStatement
from jaxdp.training._errors import UserError
from jaxdp.training._finish import is_complete, write_results
from jaxdp.training.config._config import Config
from jaxdp.training.config._io import dump_config, load_config
from jaxdp.training.files._environment import devices
from jaxdp.training.files._failures import in_one_sentence
from jaxdp.training.files._run_directory import RunDirectory
from jaxdp.training.files._stored import remove_left_over
from jaxdp.training.running._checkpoint import Checkpoints, DamagedCheckpoint
from jaxdp.training.running._console import Display
from jaxdp.training.running._journal import Journal
from jaxdp.training.running._loop import (
    Interrupted,
    Job,
    StopRequest,
    TrainState,
    initial_state,
    run_phases,
    template_state,
)
from jaxdp.training.running._manifest import (
    check_config,
    check_environment,
    check_task,
    read_key,
    read_manifest,
    restore_files,
    write_key,
    write_manifest,
    write_texts,
)
from jaxdp.training.running._mesh import make_layout, mesh_sizes
from jaxdp.training.running._metrics import MetricsLog
from jaxdp.training.running._plan import Plan, make_plan, plan_from_saved, saved_plan
from jaxdp.training.running._processes import check_processes, of_the_first, run_directory
from jaxdp.training.running._statement import make_statement, with_rounding
from jaxdp.training.tasks._load import load_task
from jaxdp.training.tasks._task import Task


def train(config: Config, run_dir: Path, display: Display, seed: int | None = None) -> Path:
    """Run a configuration from the start.

    Args:
      config: the configuration.
      run_dir: a new directory for everything that the run writes.
      display: shows how it goes.
      seed: for reproducible experiments only; by default the root key comes from the operating system's entropy.

    Returns:
      The run directory.

    Raises:
      UserError: something in the configuration does not fit, named.
      Interrupted: stopped by Ctrl-C; the state is saved.
    """
    check_processes(config)
    run = run_directory(run_dir, resumed=False)
    if seed is not None and not 0 <= seed < 1 << 64:
        raise UserError("--seed must be a whole number from 0 to 2^64 - 1: give another one, or none.")
    with StopRequest().listening() as stop, in_one_sentence(run):
        task = load_task(config)
        plan = make_plan(config, task.num_train)
        task.check(config.phase)
        run.create()
        with run.lock():
            # Another process may have begun here since it was looked at.
            run.create()
            _announce(plan, display)
            key = of_the_first(sampling.key_from_entropy() if seed is None else sampling.key_from_seed(seed))
            journal = _begin(run, task, plan, key, seeded=seed is not None)
            job = _job(run, plan, task, display, stop, journal, Checkpoints(run.saved))
            job.log = MetricsLog(run.metrics, lines=[], sums=run.metrics_sums)
            return _finish(run, job, initial_state(job, key), 0)


def _begin(run: RunDirectory, task: Task, plan: Plan, key: PRNGKeyArray, *, seeded: bool) -> Journal:
    """Write all that a run is resumed from, before anything is drawn from its key."""
    saved, statement = saved_plan(plan), make_statement(plan, seeded=seeded)
    public = saved | {"num_examples": plan.num_examples, "seeded": seeded}
    files = {
        run.plan: json.dumps(public, indent=2) + "\n",
        run.statement_json: statement.to_json() + "\n",
        run.statement_text: statement.to_text(),
        run.config: dump_config(plan.config),
    }
    write_key(run, key)
    journal = Journal.begin(run.journal, _layout(plan.config))
    # With the manifest the run has begun: it holds the texts of all that is still to be written.
    write_manifest(run, task, saved, files)
    for path, text in files.items():
        write_text(path, text)
    return journal


def resume(run_dir: Path, display: Display, overrides: Sequence[tuple[str, str]] = ()) -> Path:
    """Go on with a run that was stopped or killed, to the very parameters it would have reached without.

    Args:
      run_dir: the directory that `train` made.
      display: shows how it goes.
      overrides: fields of `[mesh]`, to go on over other devices; the parameters are then those up to rounding.

    Returns:
      The run directory.

    Raises:
      UserError: there is nothing to resume, or something changed that must not.
      Interrupted: stopped by Ctrl-C; the state is saved.
    """
    wrong = next((name for name, _ in overrides if not name.startswith("mesh.")), None)
    if wrong is not None:
        raise UserError(f"resume takes no --{wrong}: that is for `jaxdp train`.")
    run = run_directory(run_dir, resumed=True)
    run.require()
    if not run.checkpoints.is_dir() and not run.result.exists():
        raise UserError(f"{run.checkpoints} is missing, without which no run can be resumed: put it back.")
    with StopRequest().listening() as stop, in_one_sentence(run):
        if not run.checkpoints.is_dir():
            # A finished run whose secrets were deleted, as they may be.
            is_complete(run, display)
            return _complete(run, display)
        with run.lock():
            run.remove_left_over()
            manifest = _looked_after(run, display)
            if is_complete(run, display):
                return _complete(run, display)
            return _go_on(run, manifest or read_manifest(run), display, stop, overrides)


def _looked_after(run: RunDirectory, display: Display) -> dict[str, Any] | None:
    """The manifest, with which the run's public files were compared and mended."""
    try:
        manifest = read_manifest(run)
    except UserError as error:
        if not run.result.exists():
            raise
        display.say(f"warning: {error}")
        return None
    check_config(run, manifest)
    for path in restore_files(run, manifest):
        display.say(f"warning: {path} was missing, damaged or changed: it was written again.")
    return manifest


def _complete(run: RunDirectory, display: Display) -> Path:
    display.say(f"{run.path} is complete: see {run.report}.")
    return run.path


def _go_on(
    run: RunDirectory,
    manifest: dict[str, Any],
    display: Display,
    stop: StopRequest,
    overrides: Sequence[tuple[str, str]],
) -> Path:
    """Check that nothing else changed, and train on from the newest state that is not damaged."""
    check_environment(run, manifest)
    config = load_config(run.config, overrides)
    check_processes(config)
    journal = Journal.read(run.journal)
    checkpoints = Checkpoints(run.saved)
    try:
        for step in checkpoints.torn:
            display.say(f"warning: the checkpoint of step {step} is not complete, and is left out.")
        check_mesh(run, config, journal, next(iter(checkpoints.steps()), 0))
        task = load_task(config)
        check_task(run, manifest, task)
        plan = plan_from_saved(config, task.num_train, manifest["plan"])
        job = _job(run, plan, task, display, stop, journal, checkpoints)
        state, meta = _newest_state(run, job)
        step = int(state.step)
        check_mesh(run, config, journal, step)
        journal.go_on(step, _layout(config))
        job.seconds.update(meta["seconds"])
        job.log = MetricsLog(run.metrics, step, meta["log"], run.metrics_sums, meta["details"])
    except BaseException:
        checkpoints.close()
        raise
    _announce(plan, display)
    display.say(f"going on after step {step} of {job.total}.")
    return _finish(run, job, state, meta["phase"])


def _newest_state(run: RunDirectory, job: Job) -> tuple[TrainState, dict[str, Any]]:
    """The newest state that can be read, and what was noted with it; the very first one if there is none."""
    for step in job.checkpoints.steps():
        try:
            meta = job.checkpoints.meta(step)
            return job.checkpoints.restore(step, meta, template_state(job, meta["phase"])), meta
        except DamagedCheckpoint as error:
            aside = job.checkpoints.set_aside(step)
            job.display.say(
                f"warning: the checkpoint of step {step} is damaged ({error}) and was set aside as {aside}: the steps "
                "since the one before it are made again."
            )
    return initial_state(job, read_key(run)), {"phase": 0, "seconds": {}, "log": [], "details": None}


def _finish(run: RunDirectory, job: Job, state: TrainState, index: int) -> Path:
    """Train to the end and write what the run is for."""
    with ExitStack() as last:
        # Also when interrupted: what is being written must get onto the disk.
        last.callback(job.display.close)
        last.callback(job.log.close)
        last.callback(job.checkpoints.close)
        try:
            state = run_phases(job, state, index)
        except Interrupted:
            last.callback(job.journal.stop)
            raise
    write_results(run, job, state)
    return run.path


def check_mesh(run: RunDirectory, config: Config, journal: Journal, step: int) -> None:
    """Refuse another mesh where steps after `step` may be made again, or where it would be another release."""
    journal.check_layout(run.path, step, _layout(config))
    changed = mesh_sizes(config.mesh) != mesh_sizes(load_config(run.config).mesh)
    padded = [phase.name for phase in config.phase if phase.padded_batch_size is not None]
    if changed and padded:
        raise UserError(
            f"phase {padded[0]} has a padded_batch_size, of which each device has its part, so that another mesh is "
            "another release: resume on the mesh of the run."
        )


def _layout(config: Config) -> dict[str, Any]:
    """Over what a step is cut, which decides how it is rounded."""
    return mesh_sizes(config.mesh) | devices()


def _job(
    run: RunDirectory,
    plan: Plan,
    task: Task,
    display: Display,
    stop: StopRequest,
    journal: Journal,
    checkpoints: Checkpoints,
) -> Job:
    cache = plan.config.data.cache
    features = run.features if cache is None else Path(cache).expanduser()
    remove_left_over(features)
    layout = make_layout(plan.config.mesh, task.params)
    state_rounding = functools.partial(_state_rounding, run)
    return Job(plan, task, features, checkpoints, journal, display, state_rounding, stop, layout)


def _state_rounding(run: RunDirectory, index: int, rounding: float) -> None:
    """Write what a phase's noise covers for rounding into the statement; the most of it, on whatever meshes it runs."""
    manifest = read_manifest(run)
    statement = PrivacyStatement.from_json(manifest["files"][run.statement_json.name])
    if (statement.phases[index].rounding or 0.0) >= rounding:
        return
    statement = with_rounding(statement, index, rounding)
    texts = {run.statement_json: statement.to_json() + "\n", run.statement_text: statement.to_text()}
    write_texts(run, manifest, texts)


def _announce(plan: Plan, display: Display) -> None:
    for sentence in plan.warnings:
        display.say(f"warning: {sentence}")
    for phase in plan.phases:
        noise = "no noise" if phase.noise_multiplier is None else f"noise multiplier {phase.noise_multiplier:.4g}"
        display.say(
            f"phase {phase.config.name}: {phase.config.steps} steps of {phase.sampler.expected_batch_size:g} of "
            f"{plan.num_examples} examples, {noise}"
        )


def default_run_dir(config_path: Path) -> Path:
    """`runs/NAME-DATE-TIME`, with microseconds: two runs may begin in one second."""
    return Path("runs") / f"{config_path.stem}-{datetime.now():%Y%m%d-%H%M%S-%f}"


__all__ = ["Interrupted", "default_run_dir", "resume", "train"]
