"""One of two processes that train together: `python -m tests.parallel.worker PORT PROCESS OUTPUT CONFIG RUN`."""

import os
import signal
import sys
from pathlib import Path

import jax

port, process, output, config, run = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_disable_most_optimizations", True)

from jaxdp import parallel, training  # noqa: E402

training.join_processes(f"localhost:{port}", 2, int(process))

import numpy as np  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402

from ..training.small import Quiet  # noqa: E402
from . import steps  # noqa: E402

assert jax.device_count() == 8 and jax.local_device_count() == 4
program = steps.OnMesh("grape", 2, 2, 2)
held = parallel.process_rows(program.sampler)
assert len(held) == steps.N // 2
trained = multihost_utils.process_allgather(program.run(), tiled=True)
results = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(trained)}


def read(rows):
    assert np.isin(rows, held).all(), "a process was asked for rows that it does not hold"
    return rows


# Batches from examples that are not on the devices: the same rows, each read by the process that holds it.
for step in range(3):
    formed = parallel.form_batch(program.sampler, jax.random.key(5), step, read)
    rows, real = multihost_utils.process_allgather(formed, tiled=True)
    results[f"rows {step}"] = np.sort(rows[real])
if process == "0":
    np.savez(output, **results)

# A run of the command line's, which the first process alone is asked to stop.
stop = (lambda done: os.kill(os.getpid(), signal.SIGINT) if done == 5 else None) if process == "0" else None
display = Quiet(stop)
mesh = [("mesh.data", "rest"), ("mesh.fsdp", "4")]
try:
    with steps.same_allowance():
        training.train(training.load_config(Path(config), mesh), Path(run), display, seed=99)
except training.Interrupted:
    assert display.steps == [1, 2, 3, 4, 5]
else:
    raise AssertionError("the run was not stopped")
jax.distributed.shutdown()
