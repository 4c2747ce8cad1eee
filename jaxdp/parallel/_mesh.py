"""Meshes of devices with the axes that jaxdp knows: data, fsdp and tensor."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxdp._numbers import is_whole

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(
    *, data: int | Literal["rest"] = "rest", fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh of data x fsdp x tensor devices.

    | axis | what is cut along it |
    |---|---|
    | data | the batch; parameters are held by each |
    | fsdp | the batch, and parameters and optimiser states, which are put together where they are used |
    | tensor | single layers' parameters, and what is computed with them; each sees the same examples |

    Args:
      data: number of devices, or `"rest"`: what the other axes leave.
      fsdp: number of devices.
      tensor: number of devices.
      devices: by default all, of all processes.

    Returns:
      A `jax.sharding.Mesh` with automatic axes.

    Raises:
      ValueError: a size below 1; sizes that do not use up the devices.

    Example:
      >>> dict(make_mesh(data=1).shape)
      {'data': 1, 'fsdp': 1, 'tensor': 1}
    """
    for name, size in (("data", data), ("fsdp", fsdp), ("tensor", tensor)):
        if not (name == "data" and size == "rest") and (isinstance(size, str) or not is_whole(size) or size < 1):
            rest = ', or "rest"' if name == "data" else ""
            raise ValueError(f"mesh.{name} is {size!r}: give a number of devices from 1{rest}.")
    available = list(jax.devices() if devices is None else devices)
    if data == "rest":
        if len(available) % (fsdp * tensor):
            raise ValueError(
                f"mesh.fsdp = {fsdp} times mesh.tensor = {tensor} does not divide the {len(available)} devices: "
                "change one of them."
            )
        data = len(available) // (fsdp * tensor)
    sizes = (data, fsdp, tensor)
    needed = math.prod(sizes)
    if needed > len(available) or (devices is None and jax.process_count() > 1 and needed != len(available)):
        raise ValueError(
            f"the mesh of data = {data}, fsdp = {fsdp}, tensor = {tensor} needs {needed} devices where there are "
            f"{len(available)}: make the product of its axes {len(available)}."
        )
    return jax.make_mesh(sizes, AXES, (AxisType.Auto,) * len(AXES), devices=available[:needed])


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How a leading batch axis is cut: along all axes of the mesh whose devices see different examples.

    Args:
      mesh: as from `make_mesh`.

    Returns:
      The sharding of an array's first axis.

    Example:
      >>> tuple(batch_sharding(make_mesh(data=1)).spec)
      (('data', 'fsdp'),)
    """
    names = tuple(name for name in BATCH_AXES if name in mesh.axis_names)
    return NamedSharding(mesh, PartitionSpec(names))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())
