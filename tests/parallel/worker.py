"""One of two processes that train together: `python -m tests.parallel.worker PORT PROCESS OUTPUT`."""

import sys

import jax

port, process, output = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_disable_most_optimizations", True)
jax.distributed.initialize(f"localhost:{port}", 2, int(process))

import numpy as np  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402

import jaxdp  # noqa: E402

from . import steps  # noqa: E402

assert jax.device_count() == 8 and jax.local_device_count() == 4
program = steps.OnMesh("grape", 2, 2, 2)
held = jaxdp.parallel.process_rows(program.sampler)
assert len(held) == steps.N // 2
trained = multihost_utils.process_allgather(program.run(), tiled=True)
results = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(trained)}


def read(rows):
    assert np.isin(rows, held).all(), "a process was asked for rows that it does not hold"
    return rows


# Batches from examples that are not on the devices: the same rows, each read by the process that holds it.
for step in range(3):
    formed = jaxdp.parallel.form_batch(program.sampler, jax.random.key(5), step, read)
    rows, real = multihost_utils.process_allgather(formed, tiled=True)
    results[f"rows {step}"] = np.sort(rows[real])
if process == "0":
    np.savez(output, **results)
jax.distributed.shutdown()
