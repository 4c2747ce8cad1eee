"""Many devices and hosts: meshes, how parameters are cut over them, and batches that no host sees whole."""

from jaxdp.parallel._hosts import form_batch, process_rows, shard_examples
from jaxdp.parallel._mesh import batch_sharding, make_mesh, replicated
from jaxdp.parallel._rules import ShardingRules, place, state_shardings
from jaxdp.per_example import Placement

__all__ = [
    "Placement",
    "ShardingRules",
    "batch_sharding",
    "form_batch",
    "make_mesh",
    "place",
    "process_rows",
    "replicated",
    "shard_examples",
    "state_shardings",
]
