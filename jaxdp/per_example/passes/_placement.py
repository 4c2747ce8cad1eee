"""Where a step's arrays lie when there is more than one device."""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxdp.lowering._shards import axis_names, check_partitionable, num_shards

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Placement:
    """How a batch and the parameters are cut over the devices of a mesh.

    It changes no value: it says which device computes what, where the compiler would otherwise have to guess.

    Attributes:
      batch: of the batch's leading axis, as from `jaxdp.parallel.batch_sharding`.
      params: a pytree like the parameters of `NamedSharding`, as from `jaxdp.parallel.ShardingRules`; None leaves them
        to the compiler.

    Raises:
      ValueError: `jax_threefry_partitionable` is off, so that random numbers would depend on the mesh; a mesh whose
        axes are not of the type `jax.sharding.AxisType.Auto`; a batch that is cut along another axis than the first.

    Example:
      >>> import jax.numpy as jnp, jaxdp
      >>> mesh = jaxdp.parallel.make_mesh(data=1)
      >>> placement = jaxdp.parallel.Placement(jaxdp.parallel.batch_sharding(mesh))
      >>> grads = jaxdp.per_example_grad(lambda w, x: w @ x)(jnp.ones(2), jnp.ones((4, 2)), placement=placement)
    """

    batch: NamedSharding
    params: PyTree = None

    def __post_init__(self) -> None:
        check_partitionable()
        check_automatic(self.batch.mesh)
        if any(axis is not None for axis in self.batch.spec[1:]):
            raise ValueError(f"placement.batch is {self.batch.spec}: cut the batch along its first axis only.")

    @property
    def shards(self) -> int:
        """In how many parts the batch is cut."""
        return num_shards(self.batch)

    def parts(self) -> dict[int, tuple[int, ...]]:
        """For each leaf, by number, in how many parts its axes are cut among devices that share their examples."""
        axes = {name for entry in self.batch.spec[:1] for name in axis_names(entry)}
        found: dict[int, tuple[int, ...]] = {}
        for leaf, sharding in enumerate(jax.tree.leaves(self.params)):
            names = [[name for name in axis_names(entry) if name not in axes] for entry in sharding.spec]
            found[leaf] = tuple(math.prod(sharding.mesh.shape[name] for name in part) for part in names)
        return found

    def of_sum(self, tree: PyTree, projected: dict[int, tuple[int, ...]] | None = None) -> PyTree | None:
        """Shardings of a sum of gradients; `projected` has the axes, by leaf, that are those of a subspace."""
        if self.params is None:
            return None
        leaves, treedef = jax.tree.flatten(tree)
        shardings = treedef.flatten_up_to(self.params)
        for leaf, axes in (projected or {}).items():
            shardings[leaf] = _without(shardings[leaf], leaves[leaf].ndim, axes)
        return treedef.unflatten(shardings)


def check_sizes(placement: Placement, batch_size: int, microbatch_size: int | None) -> None:
    """Refuse sizes that do not divide over the shards."""
    for name, size in (("the batch", batch_size), ("microbatch_size", microbatch_size)):
        if size is not None and size % placement.shards:
            raise ValueError(
                f"{name} is {size} with a batch cut into {placement.shards} parts ({placement.batch.spec}): make it a "
                f"multiple of {placement.shards}."
            )


def check_automatic(mesh: Any) -> None:
    """Refuse meshes whose axes are part of arrays' types, which the traced loss knows nothing of."""
    if any(kind != jax.sharding.AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            "the mesh's axes are not automatic: make it with jaxdp.parallel.make_mesh, or with "
            "axis_types=(jax.sharding.AxisType.Auto,) * number of axes."
        )


def _without(sharding: NamedSharding, ndim: int, axes: tuple[int, ...]) -> NamedSharding:
    spec = [*sharding.spec, *(None,) * (ndim - len(sharding.spec))]
    return NamedSharding(sharding.mesh, PartitionSpec(*(None if i in axes else x for i, x in enumerate(spec))))
