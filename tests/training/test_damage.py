"""Damaged run directories: one sentence or the very same results, never a traceback, never something else."""

import os
import random
import shutil
import signal
from pathlib import Path

import pytest

from jaxdp import training
from jaxdp.training import Interrupted

from .damage import KINDS, call, copied, damage, files_of, results_of
from .small import Quiet, two_phases, write_table


@pytest.fixture(scope="module")
def kept(tmp_path_factory, tiny_model):
    """The same run killed, stopped and finished, what it comes to, and the place where it was made."""
    folder = tmp_path_factory.mktemp("damage")
    path = folder / "small.toml"
    text = two_phases(write_table(folder / "mine.csv", rows=160), tiny_model, log="checkpoint_seconds = 0.0")
    text = text[: text.index("[[phase]]")] + text[text.rindex("[[phase]]") :]
    text = (
        text.replace("steps = 18", "steps = 7").replace("= 240", "= 40").replace("evaluations = 9", "evaluations = 3")
    )
    path.write_text(text.replace("microbatch_size = 64", "microbatch_size = 16"))
    run = folder / "run"
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def act(done: int) -> None:
        if done == 4:
            # As a process that is killed now leaves it.
            shutil.copytree(run, folder / "killed")
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        training.train(training.load_config(path), run, Quiet(act))
    shutil.copytree(run, folder / "stopped")
    training.resume(run, Quiet())
    shutil.copytree(run, folder / "finished")
    return folder, results_of(run), (run / "report.md").read_bytes()


def try_one(capsys, kept, state: str, name: Path, kind: str, draw: random.Random) -> str:
    """Damage one file of one of the three; both commands have to be right about it."""
    folder, expected, report = kept
    run = copied(folder / state, folder / "run")
    damage(run / name, kind, draw)
    code, _ = call(capsys, "report", str(run))
    if code == 0 and state == "finished":
        assert (run / "report.md").read_bytes() == report, (state, name, kind)
    code, said = call(capsys, "resume", str(run))
    if code == 2:
        return "refused"
    assert results_of(run) == expected, (state, name, kind, said)
    return "mended"


def cases(kept, count: int, seed: int):
    """(state, file, what is done to it), every file at least once where there are enough."""
    folder, draw, found = kept[0], random.Random(seed), []
    every = [(state, name) for state in ("killed", "stopped", "finished") for name in files_of(folder / state)]
    draw.shuffle(every)
    for number in range(count):
        state, name = every[number % len(every)]
        found.append((state, name, KINDS[draw.randrange(len(KINDS))]))
    return found


@pytest.mark.quick
def test_what_is_damaged_is_named_or_mended(capsys, kept):
    draw, killed = random.Random(1), kept[0] / "killed"
    newest = killed / "checkpoints" / str(max(int(p.name) for p in (killed / "checkpoints").glob("[0-9]")))
    large = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    assert try_one(capsys, kept, "killed", large.relative_to(killed), "flip", draw) == "mended"
    for name in ("manifest.json", "journal.json"):
        for kind in ("empty", "flip"):
            assert try_one(capsys, kept, "stopped", Path("checkpoints") / name, kind, draw) == "refused"
    for name in ("plan.json", "statement.txt", "metrics.jsonl", "result.json", "model/model.safetensors"):
        assert try_one(capsys, kept, "finished", Path(name), "truncate", draw) == "mended"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_damaged_directories_are_refused_or_come_to_the_same(capsys, kept, seed):
    draw = random.Random(seed)
    outcomes = [try_one(capsys, kept, *case, draw) for case in cases(kept, 120, seed)]
    assert outcomes.count("mended") > 60 and outcomes.count("refused") > 5
