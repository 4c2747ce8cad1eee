"""Two processes with four devices each, over the loopback interface."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxdp import sampling, training

from ..training.small import Quiet
from . import steps

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    """What the two processes leave: parameters.npz, and run/, stopped after five of seven steps."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}

    def start(process: int) -> subprocess.Popen:
        arguments = [str(port), str(process), str(folder / "parameters.npz"), str(config), str(folder / "run")]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.parallel.worker", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    workers = [start(0), start(1)]
    try:
        logs = [worker.communicate(timeout=900)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(logs)
    return folder


def test_two_processes_train_as_one_device_does(together: Path):
    found = np.load(together / "parameters.npz")
    for path, expected in jax.tree_util.tree_leaves_with_path(steps.one_device("grape")):
        np.testing.assert_allclose(found[jax.tree_util.keystr(path)], expected, rtol=1e-5, atol=1e-6)
    sampler = sampling.PoissonSampling(steps.N, steps.RATE)
    for step in range(3):
        drawn = sampler.sample(jax.random.key(5), jnp.int32(step))
        np.testing.assert_array_equal(found[f"rows {step}"], np.sort(np.asarray(drawn.indices)[np.asarray(drawn.mask)]))


def test_their_run_goes_on_in_one_process_on_another_mesh_to_the_model_of_one_device(
    together: Path, config: Path, tmp_path: Path
):
    display = Quiet()
    with steps.same_allowance():
        cut = training.resume(together / "run", display, [("mesh.data", "2"), ("mesh.fsdp", "1")])
        alone = training.train(training.load_config(config), tmp_path / "alone", Quiet(), seed=99)
    assert display.steps == [6, 7]
    found, expected = (load_file(run / "model" / "model.safetensors") for run in (cut, alone))
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        # Norms are rounded up as far as the sums of a mesh may round them, and Adam divides by the noise's size.
        np.testing.assert_allclose(found[name], x, rtol=1e-4, atol=1e-5, err_msg=name)
