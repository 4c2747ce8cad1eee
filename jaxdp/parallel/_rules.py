"""Which axes of which parameters are cut along which axes of a mesh, by paths."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdp.lowering._shards import axis_names

PyTree = Any


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """How parameters are cut over a mesh.

    A leaf gets the `PartitionSpec` of the last pattern that matches its path; its largest axis that the specification
    leaves free and that the mesh's axis fsdp divides is cut along fsdp. What nothing divides, every device holds in
    full.

    Args:
      mesh: as from `jaxdp.parallel.make_mesh`.
      rules: from patterns of paths, such as `"layers/*/query/kernel"`, to specifications, or to `"first"` or `"last"`:
        that axis along tensor. A `*` stands for any characters, and everything else for itself.

    Raises:
      ValueError: when called, a pattern that matches no path, a specification with more axes than the leaf has or with
        an axis that the mesh does not have, or an axis that does not divide.

    Example:
      >>> import jax.numpy as jnp, jaxdp
      >>> from jax.sharding import PartitionSpec as P
      >>> mesh = jaxdp.parallel.make_mesh(data=1)
      >>> rules = ShardingRules(mesh, {"up/*": "last", "down/*": P("tensor", None)})
      >>> params = {"up": {"kernel": jnp.ones((8, 16))}, "down": {"kernel": jnp.ones((16, 8))}}
      >>> tuple(rules(params)["up"]["kernel"].spec)
      ('fsdp', 'tensor')
    """

    mesh: Mesh
    rules: Mapping[str, PartitionSpec | Literal["first", "last"]] = dataclasses.field(default_factory=dict)

    def __call__(self, params: PyTree) -> PyTree:
        """Shardings of a pytree of arrays (or of their shapes)."""
        found, treedef = jax.tree_util.tree_flatten_with_path(params)
        paths = [path_name(path) for path, _ in found]
        unused = set(self.rules)
        shardings = []
        for name, (_, leaf) in zip(paths, found, strict=True):
            spec, matched = PartitionSpec(), None
            for pattern, given in self.rules.items():
                if _matches(pattern, name):
                    spec, matched = given, pattern
                    unused.discard(pattern)
            shardings.append(NamedSharding(self.mesh, self._full(name, tuple(np.shape(leaf)), spec, matched)))
        if unused:
            raise ValueError(
                f"the sharding rule {sorted(unused)[0]!r} matches no parameter: the paths are such as "
                f"{', '.join(map(repr, paths[:3]))}."
            )
        return treedef.unflatten(shardings)

    def _full(self, name: str, shape: tuple[int, ...], spec: Any, pattern: str | None) -> PartitionSpec:
        if spec in ("first", "last"):
            spec = PartitionSpec(*(None,) * (len(shape) - 1 if spec == "last" else 0), "tensor")
        if len(spec) > len(shape):
            raise ValueError(f"the sharding rule {pattern!r} has {len(spec)} axes where {name} has {len(shape)}.")
        entries: list[Any] = [*spec, *(None,) * (len(shape) - len(spec))]
        for axis, entry in enumerate(entries):
            unknown = [x for x in axis_names(entry) if x not in self.mesh.axis_names]
            if unknown:
                raise ValueError(
                    f"the sharding rule {pattern!r} names the axis {unknown[0]!r}, which the mesh does not have: use "
                    f"{', '.join(map(repr, self.mesh.axis_names))}."
                )
            size = math.prod(self.mesh.shape[x] for x in axis_names(entry))
            if shape[axis] % size:
                raise ValueError(
                    f"axis {axis} of {name} has length {shape[axis]}, which {entry!r} with {size} devices does not "
                    f"divide: change the sharding rule {pattern!r} or the mesh."
                )
        named = {x for entry in entries for x in axis_names(entry)}
        size = self.mesh.shape.get("fsdp", 1)
        free = [a for a, entry in enumerate(entries) if entry is None and shape[a] % size == 0 and shape[a] > 0]
        if "fsdp" in self.mesh.axis_names and "fsdp" not in named and free:
            entries[max(free, key=lambda a: shape[a])] = "fsdp"
        while entries and entries[-1] is None:
            entries.pop()
        return PartitionSpec(*entries)


def place(tree: PyTree, shardings: PyTree) -> PyTree:
    """Arrays that every process has in full, each device keeping its part.

    Args:
      tree: a pytree of arrays (PRNG keys included), with the same values on every process.
      shardings: a pytree like it, as from `ShardingRules`, or one sharding for all.

    Returns:
      The arrays on the mesh. Copies: a step may donate them.
    """
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(_placed, tree, shardings)


def _placed(x: Any, sharding: NamedSharding) -> Any:
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_placed(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    values = np.asarray(x)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def state_shardings(state: PyTree, params: PyTree, shardings: PyTree, rules: ShardingRules) -> PyTree:
    """Shardings of an optimiser's state: moments are cut as their parameters are.

    Args:
      state: the state, or its shapes.
      params: the parameters, or their shapes.
      shardings: those of the parameters.
      rules: what they come from. A moment in another shape than its parameter's (that of a subspace) is cut along fsdp
        as a parameter without a rule would be.

    Returns:
      A pytree like the state; what belongs to no parameter every device holds in full.
    """
    known = {
        tuple(path): (tuple(np.shape(x)), sharding)
        for (path, x), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
    }
    plain = ShardingRules(rules.mesh)

    def one(path: Any, x: Any) -> NamedSharding:
        for start in range(len(path)):
            if tuple(path[start:]) in known:
                shape, sharding = known[tuple(path[start:])]
                return sharding if shape == np.shape(x) else plain([x])[0]
        return NamedSharding(rules.mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(one, state)


def path_name(path: Any) -> str:
    """A leaf's path as rules write it."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _matches(pattern: str, name: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None
