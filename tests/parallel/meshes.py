"""Every chain on every kind of mesh, in one process or two: `python -m tests.parallel.meshes OUTPUT [PORT PROCESS]`."""

import itertools
import sys

CHAINS = ("flat", "layer", "estimated", "grape")
MESHES = {"data": (8, 1, 1), "fsdp": (2, 4, 1), "tensor": (2, 2, 2)}


def main(output: str, port: str = "", process: str = "0") -> None:
    """Write the parameters after the steps, of all that is trained here."""
    import jax

    jax.config.update("jax_num_cpu_devices", 4 if port else 8)
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_disable_most_optimizations", True)

    from jaxdp import training

    if port:
        training.join_processes(f"localhost:{port}", 2, int(process))

    import numpy as np
    from jax.experimental import multihost_utils

    from . import steps

    assert jax.device_count() == 8
    results = {}
    for chain, (kind, axes) in itertools.product(CHAINS, MESHES.items()):
        method = "bookkeeping" if chain == "flat" else "auto"
        trained = multihost_utils.process_allgather(steps.OnMesh(chain, *axes, method=method).run(), tiled=True)
        for path, x in jax.tree_util.tree_leaves_with_path(trained):
            results[f"{chain} {kind} {jax.tree_util.keystr(path)}"] = np.asarray(x)
    if process == "0":
        np.savez(output, **results)
    if port:
        jax.distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
