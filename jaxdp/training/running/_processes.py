"""A run of several processes: who writes, what all must agree on."""

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxdp.training._errors import UserError
from jaxdp.training.config._config import Config
from jaxdp.training.files._run_directory import RunDirectory


def join_processes(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Make the devices of all processes one set, as `jax.distributed.initialize` does; nothing for a single process.

    Args:
      coordinator: host and port of process 0, or `"auto"` where the cluster's environment says all three.
      processes: how many there are.
      process: which one this is, from 0.

    Raises:
      UserError: some of the three without the others, or processes that do not find each other.
    """
    if coordinator is None and processes is None and process is None:
        return
    settings: Any = jax.config
    if settings.jax_platforms in ("cpu", None) and settings.jax_cpu_collectives_implementation is None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        if coordinator == "auto":
            jax.distributed.initialize()
        elif coordinator is None or processes is None or process is None:
            raise UserError(
                "--coordinator, --processes and --process go together: give host:port of process 0, their number and "
                "this one's from 0, or --coordinator auto alone where the cluster says so."
            )
        else:
            jax.distributed.initialize(coordinator, processes, process)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes did not find each other ({error}): check --coordinator and its port."
        ) from error


def is_first() -> bool:
    """Whether this process writes and prints."""
    return jax.process_index() == 0


def check_processes(config: Config) -> None:
    """Refuse what needs one process to see everything."""
    if jax.process_count() == 1:
        return
    if config.mesh.is_one_device:
        raise UserError(
            f'mesh is that of one device with {jax.process_count()} processes: give [mesh], such as data = "rest".'
        )
    if config.denoise.enabled:
        raise UserError("denoise.enabled is true with several processes, which it was not written for: remove it.")


def run_directory(path: Path, *, resumed: bool) -> RunDirectory:
    """The run's directory; for all processes but the first a place of their own, with common checkpoints."""
    if is_first():
        return RunDirectory(path)
    folder = Path(tempfile.mkdtemp(prefix="jaxdp-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    scratch = folder / path.name
    if resumed and path.exists():
        left = lambda folder, names: [name for name in names if name.partition(".")[0].isdigit() or name == "lock"]
        shutil.copytree(path, scratch, ignore=left)
    return RunDirectory(scratch, saved=path / "checkpoints")


def wait_for_all(name: str) -> None:
    """Go on when every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def of_the_first(tree: Any) -> Any:
    """What the first process has, on all of them."""
    if jax.process_count() == 1:
        return tree
    if isinstance(tree, jax.Array) and jax.dtypes.issubdtype(tree.dtype, jax.dtypes.prng_key):
        data = multihost_utils.broadcast_one_to_all(jax.random.key_data(tree))
        return jax.random.wrap_key_data(jnp.asarray(np.asarray(data)), impl=jax.random.key_impl(tree))
    return multihost_utils.broadcast_one_to_all(tree)


def agree(stopping: bool, due: bool) -> tuple[bool, bool]:
    """Stop where anyone was asked to, save where the first process's clock says so."""
    if jax.process_count() == 1:
        return stopping, due
    flags = multihost_utils.process_allgather(np.array([stopping, due]))
    return bool(flags[:, 0].any()), bool(flags[0, 1])
