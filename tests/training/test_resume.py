"""A killed run, resumed, is the run that was never killed: real processes, real signals."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from jaxdp.training.running._checkpoint import Checkpoints, DamagedCheckpoint
from jaxdp.training.running._metrics import MetricsLog, read_metrics

from .small import two_phases

SEED = "4242"


def start(*arguments: str, cache: Path) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    environment |= {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", "jaxdp.cli", *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen, code: int) -> str:
    _, said = process.communicate(timeout=240)
    assert process.returncode == code, said
    return said


def send_when(process: subprocess.Popen, number: signal.Signals, ready: Callable[[], bool]) -> str:
    """Send a signal as soon as something is true, and return what the process said before it ended."""
    deadline = time.monotonic() + 240
    while not ready():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    return process.communicate(timeout=240)[1]


def reached(run: Path, step: int) -> Callable[[], bool]:
    return lambda: any(line["step"] >= step for line in read_metrics(run / "metrics.jsonl"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, table, tiny_model):
    """(never stopped, stopped by Ctrl-C in phase 1 and killed in phase 2), and what was said on the way."""
    folder = tmp_path_factory.mktemp("runs")
    config = folder / "small.toml"
    # Slow enough to be hit between two steps, and saved only now and then: a kill loses steps.
    text = two_phases(table, tiny_model, log="checkpoint_seconds = 0.15").replace("evaluations = 9", "evaluations = 60")
    config.write_text(text.replace("steps = 12\n", "steps = 400\n").replace("steps = 18\n", "steps = 120\n"))
    whole, broken = folder / "whole", folder / "broken"
    said = {}
    uninterrupted = start("train", str(config), "--run-dir", str(whole), "--seed", SEED, cache=folder / "one")
    cache = folder / "two"
    process = start("train", str(config), "--run-dir", str(broken), "--seed", SEED, cache=cache)
    said["interrupted"] = send_when(process, signal.SIGINT, reached(broken, 1))
    said["interrupted code"] = process.returncode
    said["lines then"] = read_metrics(broken / "metrics.jsonl")
    process = start("resume", str(broken), cache=cache)
    send_when(process, signal.SIGKILL, reached(broken, 440))
    said["killed code"] = process.returncode
    said["killed at"] = read_metrics(broken / "metrics.jsonl")[-1]["step"]
    said["finished"] = (broken / "result.json").exists()
    said["resumed"] = finish(start("resume", str(broken), cache=cache), 0)
    finish(uninterrupted, 0)
    return whole, broken, said


def test_the_signals_hit_runs_that_were_under_way(runs):
    _, broken, said = runs
    assert said["interrupted code"] == 130
    assert f"stopped; go on with: jaxdp resume {broken}" in said["interrupted"]
    assert "Traceback" not in said["interrupted"]
    assert 1 <= said["lines then"][-1]["step"] < 400
    assert said["killed code"] == -signal.SIGKILL and not said["finished"]
    assert 440 <= said["killed at"] < 520
    after = int(said["resumed"].split("going on after step ")[1].split()[0])
    assert 0 < after <= said["killed at"]


def test_the_parameters_are_the_same_bit_for_bit(runs):
    whole, broken, _ = runs
    for name in ("model.safetensors", "config.json"):
        assert (whole / "model" / name).read_bytes() == (broken / "model" / name).read_bytes()


def test_the_whole_state_is_the_same_noise_counts_included(runs):
    whole, broken, _ = runs
    states = []
    for run in (whole, broken):
        checkpoints = Checkpoints(run / "checkpoints")
        step, meta = checkpoints.latest()
        leaves = checkpoints.leaves(step)
        checkpoints.close()
        assert step == 520
        states.append({name: x.tobytes() for name, x in zip(meta["leaves"], leaves, strict=True)})
        counts = [x for name, x in zip(meta["leaves"], leaves, strict=True) if name.endswith(".count")]
        assert counts and all(int(x) == 120 for x in counts)
    assert states[0] == states[1]


def test_the_log_has_every_evaluation_once(runs):
    whole, broken, _ = runs
    lines = read_metrics(whole / "metrics.jsonl")
    assert len(lines) == 64
    assert lines == read_metrics(broken / "metrics.jsonl")


def test_everything_that_may_be_published_is_the_same(runs):
    whole, broken, _ = runs
    for name in ("config.toml", "plan.json", "statement.json", "statement.txt"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()


def test_a_torn_line_and_lines_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]
    log = MetricsLog(path, after_step=2)
    log.write({"step": 3, "again": True})
    log.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1},
        {"step": 2},
        {"step": 3, "again": True},
    ]


@pytest.mark.quick
def test_a_checkpoint_half_written_is_not_taken_for_one(tmp_path):
    def state(i):
        return {"x": jax.numpy.arange(3) + i, "key": jax.random.key(i)}

    checkpoints = Checkpoints(tmp_path / "c")
    for i in (1, 2):
        checkpoints.save(i, state(i), {"phase": i}, wait=True)
    checkpoints.close()
    (tmp_path / "c" / "2" / "_CHECKPOINT_METADATA").unlink()
    (tmp_path / "c" / "3.orbax-checkpoint-tmp").mkdir()
    again = Checkpoints(tmp_path / "c")
    assert again.latest()[0] == 1
    restored = again.restore(1, again.latest()[1], state(0))
    assert restored["x"].tolist() == [1, 2, 3]
    assert jax.random.key_data(restored["key"]).tolist() == jax.random.key_data(jax.random.key(1)).tolist()
    again.save(2, state(5), {"phase": 2}, wait=True)
    assert again.latest()[0] == 2
    again.close()


@pytest.mark.parametrize("with_sums", [True, False])
def test_no_flipped_bit_of_an_array_is_restored(tmp_path, with_sums):
    state = {"w": jax.random.normal(jax.random.key(0), (64, 64))}
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, state, {"phase": 0}, wait=True)
    meta = checkpoints.meta(1)
    if not with_sums:
        # As a process leaves it that is killed before they are written: arrays have checksums of their own.
        (tmp_path / "c" / "1" / "files.json").unlink()
    data = max((p for p in (tmp_path / "c" / "1").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = data.read_bytes()
    draw = random.Random(0)
    for _ in range(12):
        changed = bytearray(content)
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        data.write_bytes(changed)
        with pytest.raises(DamagedCheckpoint):
            checkpoints.restore(1, checkpoints.meta(1), state)
    data.write_bytes(content)
    assert jax.numpy.array_equal(checkpoints.restore(1, checkpoints.meta(1), state)["w"], state["w"])
    assert checkpoints.meta(1) == meta
    checkpoints.close()
