"""Where a run's arrays lie: on one device, or cut over a mesh as `[mesh]` says."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from jaxdp import parallel, sampling
from jaxdp.training._errors import UserError
from jaxdp.training.config._phase import PhaseConfig
from jaxdp.training.config._sections import MeshConfig

PyTree = Any


def mesh_of(config: MeshConfig) -> Mesh | None:
    """The mesh; None for one device."""
    if config.is_one_device:
        return None
    try:
        return parallel.make_mesh(data=config.data, fsdp=config.fsdp, tensor=config.tensor)
    except ValueError as error:
        raise UserError(str(error)) from error


def mesh_sizes(config: MeshConfig) -> dict[str, Any]:
    """What decides how a step is rounded, as JSON values."""
    mesh = mesh_of(config)
    sizes = dict.fromkeys(("data", "fsdp", "tensor"), 1) if mesh is None else dict(mesh.shape)
    return sizes | {"columns": list(config.columns), "rows": list(config.rows)}


def sharded_sampler(sampler: Any, mesh: Mesh, phase: PhaseConfig, field: str) -> Any:
    """The same sampling of examples that are cut over the mesh."""
    sharding = parallel.batch_sharding(mesh)
    if isinstance(sampler, sampling.FullBatch):
        found: Any = sampling.ShardedFullBatch(sampler.num_examples, sharding)
    else:
        try:
            found = sampling.ShardedPoissonSampling(
                sampler.num_examples, sampler.sampling_probability, sharding, phase.padded_batch_size
            )
        except ValueError as error:
            raise UserError(f"{field}.{error}") from error
    if found.num_examples <= (found.shards - 1) * found.rows_per_shard:
        raise UserError(
            f"mesh cuts {found.num_examples} training examples into {found.shards} parts, which leaves one without "
            "any: use fewer devices."
        )
    if phase.microbatch_size is not None and phase.microbatch_size % found.shards:
        raise UserError(
            f"{field}.microbatch_size is {phase.microbatch_size} with a batch that mesh cuts into {found.shards} "
            f"parts: make it a multiple of {found.shards}."
        )
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """Where arrays lie.

    Attributes:
      rules: how parameters are cut; None on one device, where everything stays as it is.
      shardings: of every value of the model, by path.
    """

    rules: parallel.ShardingRules | None = None
    shardings: dict[str, NamedSharding] = dataclasses.field(default_factory=dict)

    def of(self, params: dict[str, Any]) -> dict[str, NamedSharding]:
        """Shardings of some of the model's values."""
        return {name: self.shardings[name] for name in params}

    def placement(self, trained: tuple[str, ...], sampler: Any) -> parallel.Placement | None:
        """Where a phase's batches and what it trains lie."""
        if self.rules is None:
            return None
        return parallel.Placement(sampler.sharding, {name: self.shardings[name] for name in trained})

    def place(self, params: dict[str, Any]) -> dict[str, Any]:
        """Values of the model where they belong; copies on a mesh."""
        return params if self.rules is None else parallel.place(params, self.of(params))

    def replicate(self, tree: PyTree) -> PyTree:
        """What every device holds in full."""
        return tree if self.rules is None else parallel.place(tree, parallel.replicated(self.rules.mesh))

    def initialised(self, init: Any, params: dict[str, Any], key: Any) -> PyTree:
        """`init(params, key)`, the state of a phase's transformations, cut as the parameters are."""
        if self.rules is None:
            return init(params, key)
        shapes = jax.eval_shape(init, params, key)
        return jax.jit(init, out_shardings=parallel.state_shardings(shapes, params, self.of(params), self.rules))(
            params, key
        )

    def state_shardings(self, state: PyTree) -> PyTree | None:
        """How a state lies, so that a step leaves it as it found it; None on one device."""
        return None if self.rules is None else jax.tree.map(lambda x: x.sharding, state)

    def examples(self, train: PyTree, sampler: Any) -> PyTree:
        """All training examples of a phase, of which each device gets its own."""
        if self.rules is None:
            return jax.tree.map(jnp.asarray, train)
        return parallel.shard_examples(lambda rows: jax.tree.map(lambda x: np.asarray(x)[rows], train), sampler)

    def whole(self, params: dict[str, Any]) -> dict[str, Any]:
        """Values of the model as every process can read them."""
        if self.rules is None:
            return params
        one = jax.process_count() == 1
        values = params if one else multihost_utils.process_allgather(params, tiled=True)
        return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), values)


def make_layout(config: MeshConfig, params: dict[str, Any]) -> Layout:
    """Where the values of a model lie.

    Raises:
      UserError: a mesh that does not fit the devices, a pattern that matches nothing, an axis that does not divide.
    """
    mesh = mesh_of(config)
    if mesh is None:
        return Layout()
    given: dict[str, Any] = dict.fromkeys(config.columns, "last") | dict.fromkeys(config.rows, "first")
    rules = parallel.ShardingRules(mesh, given)
    try:
        return Layout(rules, rules(params))
    except ValueError as error:
        raise UserError(f"mesh: {error}") from error
