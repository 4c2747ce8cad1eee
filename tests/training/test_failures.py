"""What a disk refuses is one sentence that says how to go on; files are whole or not there; names do not collide."""

import errno
import os
import stat
from pathlib import Path

import pytest

from jaxdp import _files
from jaxdp.training import RunDirectory, UserError, default_run_dir, load_config
from jaxdp.training.files._failures import in_one_sentence
from jaxdp.training.files._sealed import read_json, read_sealed, write_sealed
from jaxdp.training.running._metrics import MetricsLog, read_details


@pytest.mark.quick
@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device): make room, then go on with"),
        (OSError(errno.EFBIG, "too large", "a.json"), "a.json could not be written or read (File too large): raise"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "b"), "b could not be written or read (Read-only file system)"),
        (ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes: No space left on device"), "make room"),
    ],
)
def test_a_refusal_of_the_disk_is_one_sentence(tmp_path, error, sentence):
    run = RunDirectory(tmp_path / "run")
    run.create()
    run.manifest.write_text("{}")
    with pytest.raises(UserError) as caught, in_one_sentence(run):
        try:
            raise error
        except (OSError, ValueError) as cause:
            raise RuntimeError("a library's own words") from cause
    assert sentence in str(caught.value) and f"jaxdp resume {run.path}" in str(caught.value)
    run.manifest.unlink()
    with pytest.raises(UserError, match="then start again with `jaxdp train`"), in_one_sentence(run):
        raise error


def test_faults_of_the_program_stay_what_they_are(tmp_path):
    with pytest.raises(ZeroDivisionError), in_one_sentence(RunDirectory(tmp_path)):
        _ = 1 / 0


@pytest.mark.quick
def test_a_file_is_synced_before_it_takes_its_place_and_its_directory_after(tmp_path, monkeypatch):
    done = []
    names = {}
    plain_open = os.open

    def opened(path, *arguments):
        number = plain_open(path, *arguments)
        names[number] = Path(path).name
        return number

    plain_replace = os.replace
    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", lambda number: done.append(f"sync {names[number]}"))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("replace"), plain_replace(a, b)))
    _files.write_text(tmp_path / "a.json", "{}", private=True)
    assert done == ["sync a.json.tmp", "replace", f"sync {tmp_path.name}"]
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o600


def test_a_file_that_could_not_be_written_leaves_the_old_one(tmp_path):
    _files.write_text(tmp_path / "a", "old")
    with pytest.raises(OSError, match="full"), _files.replaced(tmp_path / "a") as temporary:
        temporary.write_text("ne")
        raise OSError("full")
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "is missing"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xff\xfe", "is no text"),
        (b"{", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[1]", "is no table"),
        (b'{"made": 1}', "its checksum is another"),
    ],
)
def test_a_file_that_is_not_what_the_run_wrote_is_named(tmp_path, content, sentence):
    path = tmp_path / "journal.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_sealed(path)
    assert str(caught.value).startswith(str(path)) and sentence in str(caught.value)


def test_a_seal_does_not_depend_on_how_a_file_is_laid_out(tmp_path):
    path = tmp_path / "a.json"
    write_sealed(path, {"b": 1.5, "a": [None, "x"]})
    fields = read_json(path)
    path.write_text(str(dict(reversed(fields.items()))).replace("'", '"').replace("None", "null"))
    assert read_sealed(path) == {"b": 1.5, "a": [None, "x"]}


def test_runs_begun_together_have_names_of_their_own(monkeypatch):
    names = {default_run_dir(Path("configs/tweets.toml")) for _ in range(50)}
    assert len(names) == 50 and all(name.name.startswith("tweets-2") for name in names)


def test_a_run_that_never_began_is_started_again_in_its_directory(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.create()
    write_sealed(run.key, {"key": [1, 2]})
    with pytest.raises(UserError, match="stopped before the run began, with nothing drawn"):
        run.require()
    run.create()
    run.config.write_text("")
    with pytest.raises(UserError, match="already exists and is not empty"):
        run.create()


def test_paths_in_a_file_are_relative_to_it_and_typed_ones_to_where_they_are_typed(config_file, tmp_path, monkeypatch):
    folder = tmp_path / "configs"
    (folder / "model").mkdir(parents=True)
    text = config_file.read_text()
    lines = [line for line in text.splitlines() if not line.startswith(("source =", "path ="))]
    text = "\n".join(lines).replace("[data]", '[data]\nsource = "mine.csv"\ncache = "../kept"')
    (folder / "a.toml").write_text(text.replace("[model]", '[model]\npath = "model"'))
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("configs/a.toml"))
    assert config.data.source == str(folder / "mine.csv") and config.model.path == str(folder / "model")
    assert Path(config.data.cache).resolve() == tmp_path / "kept" and Path(config.data.cache).is_absolute()
    typed = [("data.source", "mine.csv"), ("model.path", "package:a/b"), ("data.cache", "~/kept")]
    config = load_config(Path("configs/a.toml"), typed)
    assert config.data.source == str(tmp_path / "mine.csv") and config.model.path == "package:a/b"
    assert config.data.cache == os.path.expanduser("~/kept")
    for name in ("data.cache", "data.source", "model.path"):
        with pytest.raises(UserError, match=f"{name} is an empty text: name a file or a directory"):
            load_config(Path("configs/a.toml"), [(name, "")])


def test_details_of_an_evaluation_are_those_of_the_checkpoint_or_named_as_damaged(tmp_path):
    path, file = tmp_path / "metrics.jsonl", tmp_path / "held_out.json"
    log = MetricsLog(path)
    log.write_details({"step": 4, "confusion": [[1, 2], [3, 4]]})
    log.close()
    kept = log.details
    assert read_details(path, 4)["confusion"] == [[1, 2], [3, 4]] and read_details(path, 3) == {}
    for content in (file.read_text().replace("2", "9"), "{", "null", ""):
        file.write_text(content)
        with pytest.raises(UserError, match="is damaged: `jaxdp resume"):
            read_details(path, 4)
    MetricsLog(path, details=kept).close()
    assert read_details(path, 4)["confusion"] == [[1, 2], [3, 4]]
    MetricsLog(path).close()
    assert read_details(path, 4) == {} and not file.exists()
