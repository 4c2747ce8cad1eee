"""Two processes with four devices each, over the loopback interface."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxdp import sampling

from . import steps

ROOT = Path(__file__).parents[2]


def test_two_processes_train_as_one_device_does(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    output = tmp_path / "parameters.npz"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.parallel.worker", str(port)]
    workers = [
        subprocess.Popen(
            [*command, str(process), str(output)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]
    try:
        logs = [worker.communicate(timeout=600)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(logs)
    found = np.load(output)
    for path, expected in jax.tree_util.tree_leaves_with_path(steps.one_device("grape")):
        np.testing.assert_allclose(found[jax.tree_util.keystr(path)], expected, rtol=1e-5, atol=1e-6)
    sampler = sampling.PoissonSampling(steps.N, steps.RATE)
    for step in range(3):
        drawn = sampler.sample(jax.random.key(5), jnp.int32(step))
        np.testing.assert_array_equal(found[f"rows {step}"], np.sort(np.asarray(drawn.indices)[np.asarray(drawn.mask)]))
