"""Atomic checkpoints of the whole training state, random key included."""

import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding

from jaxdp.training._processes import wait_for_all

PyTree = Any


class Checkpoints:
    """The checkpoints of one run.

    A checkpoint holds the root key of all noise, and whoever knows that key can take the noise off again: the
    directory is readable by its owner only, and must not be published with the model.

    Args:
      directory: where they are kept; made if need be.
      keep: how many of the newest to keep.
    """

    def __init__(self, directory: Path, keep: int = 2):
        if jax.process_index() == 0:
            directory.mkdir(parents=True, exist_ok=True)
            os.chmod(directory, 0o700)
            _remove_torn(directory)
        wait_for_all("checkpoints")
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(directory.resolve(), options=options)
        self._saved = self._manager.latest_step()

    def save(self, step: int, state: PyTree, meta: dict[str, Any], *, wait: bool = False) -> None:
        """Write one checkpoint; without `wait` the files are written while training goes on."""
        if step != self._saved:
            arguments = ocp.args.Composite(
                state=ocp.args.StandardSave(_storable(state)),
                meta=ocp.args.JsonSave(meta | {"leaves": _names(state)}),
            )
            self._manager.save(step, args=arguments, force=True)
            self._saved = step
        if wait:
            self._manager.wait_until_finished()

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest complete checkpoint's step and what was noted with it."""
        step = self._manager.latest_step()
        if step is None:
            return None
        restored = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        return step, restored["meta"]

    def restore(self, step: int, meta: dict[str, Any], template: PyTree) -> PyTree:
        """Read a checkpoint into the structure of `template`, bit for bit, and cut over devices as it is."""
        if meta["leaves"] != _names(template):
            raise RuntimeError("the checkpoint's state has another structure than this version's.")
        structs = jax.tree.map(ocp.utils.to_shape_dtype_struct, _storable(template))
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(structs))
        stored = self._manager.restore(step, args=arguments)["state"]
        leaves, treedef = jax.tree.flatten(template)
        return treedef.unflatten(
            [_restored(like, x) for like, (_, x) in zip(leaves, sorted(stored.items()), strict=True)]
        )

    def leaves(self, step: int) -> list[np.ndarray]:
        """The stored arrays of a checkpoint, in the order of the names noted with it."""
        stored = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
        return [np.asarray(x) for _, x in sorted(stored.items())]

    def close(self) -> None:
        """Finish what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()


def _remove_torn(directory: Path) -> None:
    """Delete what a killed process left half written, so that its step can be saved again."""
    for path in directory.iterdir():
        torn = path.name.isdigit() and not (path / "_CHECKPOINT_METADATA").exists()
        if path.is_dir() and (torn or ".orbax-checkpoint-tmp" in path.name):
            shutil.rmtree(path)


def _names(tree: PyTree) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _storable(tree: PyTree) -> dict[str, Any]:
    """Leaves by number: names with slashes and empty states are nothing for a file system."""
    leaves = [jax.random.key_data(x) if _is_key(x) else x for x in jax.tree.leaves(tree)]
    return {f"{i:06d}": x for i, x in enumerate(leaves)}


def _restored(like: Any, x: Any) -> Any:
    # On one device through the host, so that a resumed step sees arrays placed just as in a run never stopped.
    array = x if isinstance(like.sharding, NamedSharding) else jnp.asarray(np.asarray(x))
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like)) if _is_key(like) else array


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
