"""Damaged run directories: one sentence or the very same results, never a traceback, never something else."""

import io
import json
import os
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from jaxdp import training
from jaxdp.training import Interrupted
from jaxdp.training.files._sealed import write_sealed

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
    if not {"features", "state", "meta"} & set(name.parts):
        code, _ = call(capsys, "report", str(run))
        if code == 0 and state == "finished":
            # Without a result it says so itself.
            said = (run / "report.md").read_bytes()
            assert said == report or (not (run / "result.json").exists() and b"is not finished" in said), (name, kind)
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


def test_a_run_without_a_good_checkpoint_begins_again_with_its_key(capsys, kept):
    folder, expected, _ = kept
    for kind in ("none", "damaged", "torn"):
        run = copied(folder / "killed", folder / "run")
        for path in (run / "checkpoints").glob("[0-9]"):
            if kind == "none":
                shutil.rmtree(path)
            else:
                damage(
                    path / ("files.json" if kind == "damaged" else "_CHECKPOINT_METADATA"), "delete", random.Random(0)
                )
                (path / "meta" / "metadata").write_text("{}")
        code, said = call(capsys, "resume", str(run))
        assert code == 0 and "going on after step 0 of 7" in said and results_of(run) == expected
        assert ("is damaged (" in said, "is not complete" in said) == (kind == "damaged", kind == "torn")


def test_steps_that_come_to_something_else_are_refused(capsys, kept):
    folder = kept[0]
    for name, sentence in (
        ("states", "gave other numbers than when it was first made"),
        ("prepared", "came out differ"),
    ):
        run = copied(folder / "killed", folder / "run")
        journal = json.loads((run / "checkpoints" / "journal.json").read_text())
        journal[name] = dict.fromkeys(journal[name], "0" * 64)
        before = (run / "metrics.jsonl").read_bytes()
        write_sealed(run / "checkpoints" / "journal.json", {k: v for k, v in journal.items() if k != "sha256"})
        newest = str(max(int(p.name) for p in (run / "checkpoints").glob("[0-9]")))
        shutil.rmtree(run / "checkpoints" / newest)
        code, said = call(capsys, "resume", str(run))
        assert code == 2 and sentence in said
        assert not (run / "result.json").exists() and before.startswith((run / "metrics.jsonl").read_bytes())


def test_damaged_features_are_computed_again_and_left_over_ones_removed(capsys, kept):
    folder, expected, _ = kept
    run = copied(folder / "killed", folder / "run")
    features = run / "checkpoints" / "features"
    stored = {path.name: path.read_bytes() for path in features.iterdir()}
    assert len(stored) == 2
    for path in features.iterdir():
        damage(path, "flip", random.Random(4))
    (features / "half.4711.tmp").write_bytes(b"private")
    (run / "config.toml.tmp").write_bytes(b"[task]")
    assert call(capsys, "resume", str(run))[0] == 0 and results_of(run) == expected
    with_arrays = {path.name: path for path in features.iterdir()}
    assert with_arrays.keys() == stored.keys() and not (run / "config.toml.tmp").exists()
    for name, path in with_arrays.items():
        with np.load(path) as now, np.load(io.BytesIO(stored[name])) as then:
            assert all(np.array_equal(now[x], then[x]) for x in then.files)


def test_a_kill_before_the_result_leaves_a_run_to_finish(capsys, kept):
    folder, expected, report = kept
    run = copied(folder / "finished", folder / "run")
    for path in (run / "result.json", run / "report.md", run / "checkpoints" / "finished.json"):
        path.unlink()
    code, said = call(capsys, "resume", str(run))
    assert code == 0 and "going on after step 7 of 7" in said
    assert results_of(run) == expected and (run / "report.md").read_bytes() == report
    modes = {path.name: path.stat().st_mode & 0o777 for path in (run / "model").iterdir()}
    assert len(set(modes.values())) == 1, modes
    # What may be published needs none of the rest.
    shutil.rmtree(run / "checkpoints")
    assert "is complete" in call(capsys, "resume", str(run))[1]
    (run / "result.json").write_text("{")
    code, said = call(capsys, "resume", str(run))
    assert code == 2 and "result.json is damaged, as it is no JSON" in said


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_damaged_directories_are_refused_or_come_to_the_same(capsys, kept, seed):
    draw = random.Random(seed)
    outcomes = [try_one(capsys, kept, *case, draw) for case in cases(kept, 120, seed)]
    assert outcomes.count("mended") > 60 and outcomes.count("refused") > 5
