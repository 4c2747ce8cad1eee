"""What a run keeps secret, and what must be the same when it is resumed."""

import stat

import pytest

from jaxdp.training import UserError
from jaxdp.training._run_directory import RunDirectory, check_unchanged

MANIFEST = {
    "versions": {"jaxdp": "1", "jax": "2", "noise": "Box-Muller"},
    "config": "a = 1",
    "data": "fingerprint",
    "model": "weights",
    "platform": "cpu",
}


@pytest.mark.quick
def test_anything_that_changed_is_refused_with_its_name(tmp_path):
    """The same noise on another sum would let the difference of the two sums be read off."""
    run = RunDirectory(tmp_path)
    check_unchanged(run, MANIFEST, MANIFEST)
    for name, words in {
        "config": "config.toml was changed",
        "data": "data changed",
        "model": "pretrained model changed",
        "platform": "another kind of device",
    }.items():
        with pytest.raises(UserError, match=f"cannot be resumed, as .*{words}.*the same noise"):
            check_unchanged(run, MANIFEST, MANIFEST | {name: "other"})
    for name in MANIFEST["versions"]:
        now = MANIFEST | {"versions": MANIFEST["versions"] | {name: "9"}}
        with pytest.raises(UserError, match=f"as {name} was .* and is 9: the same noise"):
            check_unchanged(run, MANIFEST, now)


def test_what_is_secret_is_its_owners_only(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.create()
    assert stat.S_IMODE(run.checkpoints.stat().st_mode) == 0o700
    assert "secret" in (run.checkpoints / "README.txt").read_text()
