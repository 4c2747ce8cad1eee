"""`[mesh]` in configurations: what is refused."""

from pathlib import Path

import pytest

from jaxdp.training import RunDirectory, UserError, load_config, make_plan
from jaxdp.training._mesh import mesh_sizes
from jaxdp.training._run import check_mesh
from jaxdp.training._run_directory import write_json


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
    write_json(run.running, mesh_sizes(load_config(config).mesh))
    check_mesh(run, load_config(run.config))
    with pytest.raises(UserError, match="was killed on a mesh of data = 1, fsdp = 1, tensor = 1"):
        check_mesh(run, load_config(run.config, [("mesh.data", "2")]))
    run.running.unlink()
    check_mesh(run, load_config(run.config, [("mesh.data", "2")]))
    with pytest.raises(UserError, match="phase top has a padded_batch_size"):
        padded = [("mesh.data", "2"), ("phase.top.padded_batch_size", "300")]
        check_mesh(run, load_config(run.config, padded))
