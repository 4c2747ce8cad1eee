"""The end of a run: the trained model, the report, and last of all the result."""

import dataclasses
import platform

import jax

from jaxdp import sampling
from jaxdp._files import sync_directory, sync_tree
from jaxdp.training._errors import UserError
from jaxdp.training.files._run_directory import RunDirectory
from jaxdp.training.files._sealed import read_json, read_sealed, write_json, write_sealed
from jaxdp.training.reporting._report import write_finished_report, write_report
from jaxdp.training.reporting._results import damaged_results, sums_of_results
from jaxdp.training.running._console import Display, epsilon_text
from jaxdp.training.running._loop import Job, TrainState
from jaxdp.training.running._processes import is_first


def write_results(run: RunDirectory, job: Job, state: TrainState) -> None:
    """Write what the run is for; a run without a result is not finished, so that comes when all else is on the disk."""
    trained = job.layout.whole(state.params)
    if not is_first():
        return
    run.result.unlink(missing_ok=True)
    job.task.save(trained, run.model)
    if samples := job.task.samples(trained):
        write_json(run.samples, [dataclasses.asdict(sample) for sample in samples])
    metric = job.task.metric
    last = [line for line in job.log.lines if metric.name in line][-1]
    result = {
        metric.name: last[metric.name],
        "held_out_loss": last["held_out_loss"],
        "held_out_examples": job.task.num_held_out,
        "train_examples": job.plan.num_examples,
        "steps": job.total,
        "device": _device(),
        "seconds_per_step": _public_times(job),
    }
    write_finished_report(run, result)
    sync_tree(run.model)
    sync_directory(run.path)
    write_sealed(run.finished, {"files": sums_of_results(run), "result": result})
    write_json(run.result, result)
    epsilon = epsilon_text(job.plan.epsilon)
    job.display.say(f"done: {metric.text(last[metric.name])}, epsilon {epsilon}; see {run.report}.")


def is_complete(run: RunDirectory, display: Display) -> bool:
    """Whether there is nothing left to do; what is damaged is named, and to be written again from the last state."""
    if not run.result.exists():
        return False
    if not run.finished.exists():
        # Somebody deleted what `resume` needs, as a finished run may: the result has to speak for itself.
        _ = read_json(run.result)
        if not run.manifest.exists():
            return True
        display.say(f"warning: {run.finished} is missing: the results are written again.")
        return False
    try:
        finished = read_sealed(run.finished)
    except UserError as error:
        display.say(f"warning: {error}")
        return False
    damaged = damaged_results(run, finished["files"])
    try:
        intact = read_json(run.result) == finished["result"]
    except UserError:
        intact = False
    for path in [*damaged, *([] if intact else [run.result])]:
        display.say(f"warning: {path} is missing, damaged or changed: it is written again.")
    if damaged or not intact:
        return False
    if not run.report.exists():
        write_report(run)
    return True


def _public_times(job: Job) -> dict[str, float]:
    """Average time of a step, of the phases where it may be told: it follows the size of the batches drawn."""
    open_book = not job.plan.config.privacy.enabled or job.plan.config.log.private_metrics
    public = {p.config.name for p in job.plan.phases if open_book or isinstance(p.sampler, sampling.FullBatch)}
    return {name: _coarse(total / n) for name, (total, n) in job.seconds.items() if n and name in public}


def _device() -> str:
    device = jax.devices()[0]
    return f"{device.device_kind} ({platform.machine()})" if device.platform == "cpu" else device.device_kind


def _coarse(seconds: float) -> float:
    return float(f"{seconds:.2g}")
