"""`[mesh]` in configurations: what is refused."""

from pathlib import Path

import pytest

from jaxdp.training import RunDirectory, UserError, load_config, make_plan
from jaxdp.training._run import _layout, check_mesh
from jaxdp.training.running._journal import Journal


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([("mesh.tensor", "2")], "mesh.tensor is 2 with 0 patterns in mesh.columns and mesh.rows"),
        ([("mesh.columns", '["a"]')], "mesh.tensor is 1 with 1 patterns"),
        ([("mesh.data", "all")], 'mesh.data is "all"'),
        ([("mesh.fsdp", "0")], "mesh.fsdp is 0: it must be greater than or equal to 1"),
        ([("mesh.data", "16")], "needs 16 devices where there are 8"),
        ([("mesh.data", "3"), ("phase.2.microbatch_size", "64")], "phase.2.microbatch_size is 64 .* multiple of 3"),
        (
            [("mesh.data", "8"), ("phase.2.padded_batch_size", "300")],
            "phase.2.padded_batch_size is 300 .* multiple of 8",
        ),
    ],
)
def test_mistakes_are_one_sentence(config: Path, overrides: list[tuple[str, str]], message: str):
    with pytest.raises(UserError, match=message):
        make_plan(load_config(config, [*overrides, ("privacy.enabled", "false"), ("privacy.epsilon", "1.0")]), 901)


def test_steps_are_not_made_again_with_another_rounding(config: Path, tmp_path: Path):
    run = RunDirectory(tmp_path / "killed")
    run.create()
    run.config.write_text(config.read_text())
    same, other = load_config(run.config), load_config(run.config, [("mesh.data", "2")])
    Journal.begin(run.journal, _layout(same)).claim(5, 30, 0.0)
    # Killed: the state after step 4 was saved, and step 5 may have been made.
    killed = Journal.read(run.journal)
    check_mesh(run, same, killed, 4)
    with pytest.raises(UserError, match="made steps after step 4 on a mesh of data = 1, fsdp = 1, tensor = 1"):
        check_mesh(run, other, killed, 4)
    # Resumed and stopped by Ctrl-C before it was past that step: it is still to be made again.
    killed.stop()
    with pytest.raises(UserError, match="Ctrl-C after step 5 or later"):
        check_mesh(run, other, Journal.read(run.journal), 4)
    again = Journal.read(run.journal)
    again.claim(5, 30, 0.0)
    again.claim(6, 30, 0.001)
    with pytest.raises(UserError, match="made steps after step 6"):
        check_mesh(run, other, Journal.read(run.journal), 6)
    again.stop()
    stopped = Journal.read(run.journal)
    check_mesh(run, other, stopped, 6)
    # An older state, where the newest is damaged: steps 5 and 6 would be made again.
    with pytest.raises(UserError, match="made steps after step 4"):
        check_mesh(run, other, stopped, 4)
    stopped.go_on(6, _layout(other))
    stopped.claim(7, 30, 0.0)
    check_mesh(run, other, Journal.read(run.journal), 6)
    with pytest.raises(UserError, match="made steps after step 6 on a mesh of data = 2"):
        check_mesh(run, same, Journal.read(run.journal), 6)
    with pytest.raises(UserError, match="made steps after step 4 on a mesh of data = 1"):
        check_mesh(run, other, Journal.read(run.journal), 4)
    with pytest.raises(UserError, match="phase top has a padded_batch_size"):
        padded = [("mesh.data", "2"), ("phase.top.padded_batch_size", "300")]
        check_mesh(run, load_config(run.config, padded), stopped, 7)
