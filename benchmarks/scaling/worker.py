"""One process of the weak-scaling study: its number of simulated devices is fixed when JAX starts.

python -m benchmarks.scaling.worker '{"devices": 2, ...}' prints a line of JSON for each step.
"""

import json
import sys
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import workloads
from benchmarks.measurement import first_line
from benchmarks.scaling import steps
from benchmarks.scaling.collectives import collectives, listed, summary
from benchmarks.scaling.hlo import Program
from benchmarks.variants import Absent
from jaxdp.per_example import Placement

PyTree = Any

AXIS = "devices"


def shardings(tree: PyTree, mesh: Mesh, layout: str) -> PyTree:
    """Where parameters and optimiser state lie: everywhere, or each array in parts along its longest axis that divides.

    The leading axis of scanned layers is left whole, as a loop takes one slice of it at a time.
    """

    def place(path: Any, x: Any) -> NamedSharding:
        spec: list[str | None] = [None] * x.ndim
        first = 1 if "layers" in jax.tree_util.keystr(path) else 0
        axes = [i for i in range(first, x.ndim) if x.shape[i] % mesh.size == 0]
        if layout == "fsdp" and axes and not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            spec[max(axes, key=lambda i: x.shape[i])] = AXIS
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(place, tree)


def compile_sharded(key: str, workload: workloads.Workload, layout: str) -> Any:
    """The step as one program of all devices: the batch is shared out, parameters and state as the layout says.

    What the process lacks for the step is returned as an `Absent`.
    """
    mesh = Mesh(np.array(jax.devices()), (AXIS,))
    rows = NamedSharding(mesh, PartitionSpec(AXIS))
    params = shardings(jax.eval_shape(workload.make_params), mesh, layout)
    step = steps.build(key, workload, Placement(rows, params))
    if isinstance(step, Absent):
        return step
    arguments = steps.shapes_of(step, workload)
    held = params, shardings(arguments[1], mesh, layout)
    batch = jax.tree.map(lambda _: rows, arguments[2])
    program = jax.jit(step.run, in_shardings=(*held, batch), out_shardings=held, donate_argnums=(0, 1))
    return program.lower(*arguments).compile()


def measure(key: str, layout: str, job: dict[str, Any]) -> dict[str, Any]:
    """Memory, collectives and operations of one step."""
    devices = jax.device_count()
    workload = workloads.build("w3", job["scale"], batch_size=job["batch_per_device"] * devices, seq=job["seq"])
    row: dict[str, Any] = {"key": key, "layout": layout, "devices": devices}
    start = time.perf_counter()
    compiled = compile_sharded(key, workload, layout)
    if isinstance(compiled, Absent):
        return row | {"note": compiled.note}
    program = Program(compiled.as_text())
    found = collectives(program, devices)
    return row | {
        "memory": steps.memory(compiled),
        "flops": program.product_flops(),
        "collectives": summary(found),
        "sent": sum((one.runs * one.sent for one in found), 0.0),
        "unknown_loops": sum(one.unknown for one in found),
        "operations": listed(found),
        "compile_seconds": time.perf_counter() - start,
    }


def main(arguments: list[str]) -> None:
    """The command."""
    job = json.loads(arguments[0])
    jax.config.update("jax_num_cpu_devices", job["devices"])
    jax.config.update("jax_enable_compilation_cache", False)
    for layout in job["layouts"]:
        for key in job["steps"]:
            jax.clear_caches()
            try:
                row = measure(key, layout, job)
            except Exception as error:
                # A step that cannot be compiled in one layout must not take the others with it.
                row = {"key": key, "layout": layout, "devices": job["devices"], "note": first_line(error)}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
