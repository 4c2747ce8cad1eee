"""`train` and `resume`: from a configuration to a finished run directory."""

import dataclasses
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxdp import sampling
from jaxdp.training._checkpoint import Checkpoints
from jaxdp.training._config import Config
from jaxdp.training._config_io import dump_config, load_config
from jaxdp.training._console import Display, epsilon_text
from jaxdp.training._errors import UserError
from jaxdp.training._loop import (
    Interrupted,
    Job,
    StopRequest,
    TrainState,
    initial_state,
    run_phases,
    save_first,
    template_state,
)
from jaxdp.training._mesh import make_layout, mesh_sizes
from jaxdp.training._metrics import MetricsLog, read_metrics
from jaxdp.training._plan import Plan, make_plan, plan_from_saved, saved_plan
from jaxdp.training._processes import check_processes, is_first, of_the_first, run_directory
from jaxdp.training._report import write_report
from jaxdp.training._run_directory import (
    RunDirectory,
    check_unchanged,
    read_json,
    versions,
    write_json,
    write_text,
)
from jaxdp.training._split_model import fingerprint
from jaxdp.training._statement import make_statement
from jaxdp.training._task import Task
from jaxdp.training._tasks import load_task


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
    with StopRequest().listening() as stop:
        task = load_task(config)
        plan = make_plan(config, task.num_train)
        task.check(config.phase)
        run.create()
        with run.lock():
            _announce(plan, display)
            write_text(run.config, dump_config(config))
            write_json(run.plan, saved_plan(plan) | {"num_examples": plan.num_examples, "seeded": seed is not None})
            statement = make_statement(plan, seeded=seed is not None)
            write_text(run.statement_json, statement.to_json() + "\n")
            write_text(run.statement_text, statement.to_text())
            write_json(run.manifest, _manifest(run, task) | {"plan": read_json(run.plan)})
            write_json(run.running, mesh_sizes(config.mesh))
            job = _job(run, plan, task, display, stop, after_step=0)
            key = of_the_first(sampling.key_from_entropy() if seed is None else sampling.key_from_seed(seed))
            state = initial_state(job, key)
            save_first(job, state)
            return _finish(run, job, state, 0)


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
    if run.result.exists():
        display.say(f"{run.path} is complete: see {run.path / 'report.md'}.")
        return run.path
    if not run.manifest.exists():
        raise UserError(f"{run.path} was stopped before anything was saved: remove it and start again.")
    with StopRequest().listening() as stop, run.lock():
        config = load_config(run.config, overrides)
        check_processes(config)
        check_mesh(run, config)
        manifest = read_json(run.manifest)
        task = load_task(config)
        check_unchanged(run, manifest, _manifest(run, task))
        plan = plan_from_saved(config, task.num_train, manifest["plan"])
        checkpoints = Checkpoints(run.saved)
        latest = checkpoints.latest()
        if latest is None:
            raise UserError(f"{run.path} was stopped before anything was saved: remove it and start again.")
        step, meta = latest
        job = _job(run, plan, task, display, stop, after_step=step, checkpoints=checkpoints)
        job.seconds.update(meta["seconds"])
        _announce(plan, display)
        display.say(f"going on after step {step} of {job.total}.")
        write_json(run.running, mesh_sizes(config.mesh))
        state = checkpoints.restore(step, meta, template_state(job, meta["phase"]))
        return _finish(run, job, state, meta["phase"])


def _finish(run: RunDirectory, job: Job, state: TrainState, index: int) -> Path:
    """Train to the end and write what the run is for."""
    stopped = False
    try:
        state = run_phases(job, state, index)
    except Interrupted:
        stopped = True
        raise
    finally:
        # Also when interrupted: what is being written must get onto the disk.
        job.checkpoints.close()
        job.log.close()
        job.display.close()
        if stopped:
            # No step was made after the last checkpoint, so none will be made again.
            run.running.unlink(missing_ok=True)
    trained = job.layout.whole(state.params)
    if not is_first():
        return run.path
    job.task.save(trained, run.model)
    if samples := job.task.samples(trained):
        write_json(run.samples, [dataclasses.asdict(sample) for sample in samples])
    metric = job.task.metric
    last = [line for line in read_metrics(run.metrics) if metric.name in line][-1]
    write_json(
        run.result,
        {
            metric.name: last[metric.name],
            "held_out_loss": last["held_out_loss"],
            "held_out_examples": job.task.num_held_out,
            "train_examples": job.plan.num_examples,
            "steps": job.total,
            "device": _device(),
            "seconds_per_step": _public_times(job),
        },
    )
    write_report(run)
    epsilon = epsilon_text(job.plan.epsilon)
    job.display.say(f"done: {metric.text(last[metric.name])}, epsilon {epsilon}; see {run.path / 'report.md'}.")
    return run.path


def check_mesh(run: RunDirectory, config: Config) -> None:
    """Refuse another mesh where steps may be made again, or where it would be another release."""
    if run.running.exists() and read_json(run.running) != mesh_sizes(config.mesh):
        raise UserError(
            f"{run.path} was killed on a mesh of {_words(read_json(run.running))}, and steps since its last checkpoint "
            "would be made again with the same noise and another rounding: resume it with those sizes, stop it with "
            "Ctrl-C, and resume it on another mesh then."
        )
    changed = mesh_sizes(config.mesh) != mesh_sizes(load_config(run.config).mesh)
    padded = [phase.name for phase in config.phase if phase.padded_batch_size is not None]
    if changed and padded:
        raise UserError(
            f"phase {padded[0]} has a padded_batch_size, of which each device has its part, so that another mesh is "
            "another release: resume on the mesh of the run."
        )


def _words(sizes: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {size}" for name, size in sizes.items() if isinstance(size, int))


def _public_times(job: Job) -> dict[str, float]:
    """Average time of a step, of the phases where it may be told: it follows the size of the batches drawn."""
    open_book = not job.plan.config.privacy.enabled or job.plan.config.log.private_metrics
    public = {p.config.name for p in job.plan.phases if open_book or isinstance(p.sampler, sampling.FullBatch)}
    return {name: _coarse(total / n) for name, (total, n) in job.seconds.items() if n and name in public}


def _job(
    run: RunDirectory,
    plan: Plan,
    task: Task,
    display: Display,
    stop: StopRequest,
    *,
    after_step: int,
    checkpoints: Checkpoints | None = None,
) -> Job:
    cache = plan.config.data.cache
    job = Job(
        plan=plan,
        task=task,
        features=run.features if cache is None else Path(cache).expanduser(),
        checkpoints=Checkpoints(run.saved) if checkpoints is None else checkpoints,
        log=MetricsLog(run.metrics, after_step),
        display=display,
        stop=stop,
        layout=make_layout(plan.config.mesh, task.params),
    )
    return job


def _announce(plan: Plan, display: Display) -> None:
    for sentence in plan.warnings:
        display.say(f"warning: {sentence}")
    for phase in plan.phases:
        noise = "no noise" if phase.noise_multiplier is None else f"noise multiplier {phase.noise_multiplier:.4g}"
        display.say(
            f"phase {phase.config.name}: {phase.config.steps} steps of {phase.sampler.expected_batch_size:g} of "
            f"{plan.num_examples} examples, {noise}"
        )


def _manifest(run: RunDirectory, task: Task) -> dict[str, Any]:
    """What must be the same when the run is resumed."""
    return {
        "versions": versions(),
        "config": run.config.read_text(encoding="utf-8"),
        "data": task.data_fingerprint,
        "model": fingerprint(task.params),
        "platform": jax.devices()[0].device_kind,
    }


def _device() -> str:
    device = jax.devices()[0]
    return f"{device.device_kind} ({platform.machine()})" if device.platform == "cpu" else device.device_kind


def _coarse(seconds: float) -> float:
    return float(f"{seconds:.2g}")


def default_run_dir(config_path: Path) -> Path:
    """`runs/NAME-DATE-TIME`."""
    return Path("runs") / f"{config_path.stem}-{time.strftime('%Y%m%d-%H%M%S')}"


__all__ = ["Interrupted", "default_run_dir", "resume", "train"]
