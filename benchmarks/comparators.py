"""The same private step by other libraries: jax_privacy and optax.contrib."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import optax.contrib

from benchmarks.variants import Absent, Privacy, Variant
from benchmarks.workloads import Workload

PyTree = Any

NAMES = ("jax_privacy", "optax")


def microbatch_sizes(batch_size: int) -> tuple[int, ...]:
    """The powers of two below the batch size that divide it."""
    return tuple(k for k in (2**i for i in range(batch_size.bit_length())) if k < batch_size and batch_size % k == 0)


def jax_privacy(workload: Workload, privacy: Privacy, microbatch_size: int | None = None) -> Variant | Absent:
    """`jax_privacy.clipped_grad` and its own Gaussian noise; `None` is the whole batch at once."""
    form = "unbatched" if microbatch_size is None else f"microbatch {microbatch_size}"
    key, label = f"jax_privacy/{microbatch_size or workload.batch_size}", f"jax_privacy, {form}"
    details = {"microbatch_size": microbatch_size}
    if importlib.util.find_spec("jax_privacy") is None:
        note = "jax_privacy is not installed: pip install '.[bench]'."
        return Absent("jax_privacy", "jax_privacy", "jax_privacy", note)
    library = importlib.import_module("jax_privacy")
    noise_addition = importlib.import_module("jax_privacy.noise_addition")
    clipped = library.clipped_grad(
        workload.loss,
        l2_clip_norm=privacy.max_norm,
        normalize_by=float(workload.batch_size),
        keep_batch_dim=False,
        microbatch_size=microbatch_size,
    )
    stddev = privacy.noise_multiplier * clipped.sensitivity()
    noise = noise_addition.gaussian_privatizer(stddev=stddev, prng_key=jax.random.key(5))

    def gradient(params: PyTree, state: PyTree, batch: PyTree) -> tuple[PyTree, PyTree]:
        return noise.update(clipped(params, batch), state, params)

    # Its loop over microbatches stops after the last real example, so that its length is data.
    trips = workload.batch_size // (microbatch_size or workload.batch_size)
    return Variant(key, label, "jax_privacy", noise.init, gradient, trips, details)


def optax_aggregate(workload: Workload, privacy: Privacy) -> Variant:
    """`optax.contrib.differentially_private_aggregate` on `vmap(grad)`."""
    chain = optax.contrib.differentially_private_aggregate(
        privacy.max_norm, privacy.noise_multiplier, key=jax.random.key(5)
    )
    per_example: Callable = jax.vmap(jax.grad(workload.loss), in_axes=(None, 0))

    def gradient(params: PyTree, state: PyTree, batch: PyTree) -> tuple[PyTree, PyTree]:
        return chain.update(per_example(params, batch), state, params)

    return Variant("optax", "optax.contrib aggregate", "optax", chain.init, gradient)
