"""`jaxdp train` on a mesh: the model of one device, checkpoints that go on on another mesh."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxdp.training import load_config, resume, train
from jaxdp.training._loop import Interrupted

from ..training.conftest import compile_each_program_once, table, tiny_model  # noqa: F401
from ..training.small import Quiet, two_phases

SEED = 99


def shortened(text: str) -> str:
    return text.replace("steps = 12\n", "steps = 3\n").replace("steps = 18\n", "steps = 4\n")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, table: Path, tiny_model: Path) -> Path:  # noqa: F811
    path = tmp_path_factory.mktemp("config") / "small.toml"
    path.write_text(shortened(two_phases(table, tiny_model)).replace("evaluations = 9", "evaluations = 1"))
    return path


def parameters(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "model" / "model.safetensors")


def stopping_at(step: int) -> Quiet:
    import os
    import signal

    return Quiet(lambda done: os.kill(os.getpid(), signal.SIGINT) if done == step else None)


def test_a_run_on_a_mesh_stopped_and_resumed_on_another_is_that_of_one_device(config: Path, tmp_path: Path):
    alone = train(load_config(config), tmp_path / "alone", Quiet(), SEED)
    eight = load_config(config, [("mesh.data", "4"), ("mesh.fsdp", "2")])
    with pytest.raises(Interrupted):
        train(eight, tmp_path / "cut", stopping_at(5), SEED)
    display = Quiet()
    resume(tmp_path / "cut", display, [("mesh.data", "1"), ("mesh.fsdp", "4")])
    assert display.steps == [6, 7]
    found, expected = parameters(tmp_path / "cut"), parameters(alone)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, rtol=1e-4, atol=2e-6, err_msg=name)
