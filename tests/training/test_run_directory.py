"""What a run keeps secret."""

import stat

from jaxdp.training.files._run_directory import RunDirectory


def test_what_is_secret_is_its_owners_only(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.create()
    assert stat.S_IMODE(run.checkpoints.stat().st_mode) == 0o700
    assert "secret" in (run.checkpoints / "README.txt").read_text()
