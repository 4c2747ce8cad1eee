"""Flat, layer-wise, estimated and subspace chains on data-, fsdp- and tensor-parallel meshes: `pytest -m slow`."""

import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from . import steps
from .meshes import CHAINS, MESHES

ROOT = Path(__file__).parents[2]


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


@pytest.fixture(scope="module", params=["one process of 8 devices", "two processes of 4 devices"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    output = tmp_path_factory.mktemp("meshes") / "parameters.npz"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    port = free_port()
    given = [[]] if request.param.startswith("one") else [[port, "0"], [port, "1"]]
    command = [sys.executable, "-m", "tests.parallel.meshes", str(output)]
    workers = [subprocess.Popen([*command, *arguments], cwd=ROOT, env=environment) for arguments in given]
    try:
        assert [worker.wait(timeout=3600) for worker in workers] == [0] * len(workers)
    finally:
        for worker in workers:
            worker.kill()
    return np.load(output)


@pytest.mark.slow
@pytest.mark.parametrize(("chain", "kind"), list(itertools.product(CHAINS, MESHES)))
def test_parameters_are_those_of_one_device(trained, chain: str, kind: str) -> None:
    start = dict(jax.tree_util.tree_leaves_with_path(steps.make_params()))
    for path, expected in jax.tree_util.tree_leaves_with_path(steps.one_device(chain)):
        np.testing.assert_allclose(
            trained[f"{chain} {kind} {jax.tree_util.keystr(path)}"], expected, rtol=1e-5, atol=1e-6
        )
        assert np.abs(expected - start[path]).max() > 1e-3
