"""Training steps that are compared: without privacy, and private by each method."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

import jaxdp
from benchmarks import comparators
from benchmarks.variants import Absent, Privacy, Variant, baselines, optimizer
from benchmarks.workloads import Workload
from jaxdp.per_example import Placement

PyTree = Any

PROBES, RANK = 32, 16
LABELS = {
    "plain": "non-private: jax.grad",
    "tapped": "non-private: tapped, weights 1",
    "ghost": "ghost/all",
    "ghost-unplaced": "ghost/all, placement not said",
    "fused": "fused/layer",
    "bookkeeping": "bookkeeping/all",
    "randomised": f"ghost/all, Hutchinson({PROBES})",
    "grape": f"GRAPE, rank {RANK}",
    "jax_privacy": "jax_privacy, unbatched",
    "jax_privacy-1": "jax_privacy, microbatch 1",
}
_METHODS = {"ghost": ("ghost", "all"), "fused": ("fused", "layer"), "bookkeeping": ("bookkeeping", "all")}


@dataclasses.dataclass(frozen=True)
class Step:
    """One way to train.

    Attributes:
      key: one of `LABELS`.
      init: from parameters to the state of noise and optimiser.
      run: `(params, state, batch) -> (params, state)`.
    """

    key: str
    init: Callable[[PyTree], PyTree]
    run: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]


def build(key: str, workload: Workload, placement: Placement | None = None) -> Step | Absent:
    """A step by name, with Adam; `placement` says to jaxdp how batch and parameters are cut over devices."""
    size, loss = workload.batch_size, workload.loss
    if key in ("plain", "tapped"):
        return _then_adam(next(v for v in baselines(workload, Privacy()) if v.key == key))
    if key.startswith("jax_privacy"):
        found = comparators.jax_privacy(workload, Privacy(), 1 if key.endswith("-1") else None)
        return found if isinstance(found, Absent) else dataclasses.replace(_then_adam(found), key=key)
    randomised = key == "randomised"
    method, groups = _METHODS.get(key, ("ghost", "all"))
    chain = optax.chain(
        jaxdp.transforms.dpsgd(
            max_norm=1.0,
            noise_multiplier=1.0,
            expected_batch_size=size,
            key=jax.random.key(5),
            groups=groups,
            **({"norm": jaxdp.norms.Hutchinson(PROBES)} if randomised else {}),
        ),
        optimizer(),
    )
    per_example: Any = jaxdp.per_example_grad(loss, method="auto" if key == "grape" else method)  # pyright: ignore[reportArgumentType]
    lazy = functools.partial(per_example, placement=None if key == "ghost-unplaced" else placement)
    if key == "grape":
        shapes = jax.eval_shape(workload.make_params), jax.eval_shape(workload.make_batch)
        chain = jaxdp.transforms.grape(
            chain, rank=RANK, refresh_every=100, key=jax.random.key(7), matrices=per_example(*shapes).matrices()
        )

    def run(params: PyTree, state: PyTree, batch: PyTree) -> tuple[PyTree, PyTree]:
        updates, state = chain.update(lazy(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    return Step(key, chain.init, run)


def _then_adam(variant: Variant) -> Step:
    adam = optimizer()

    def run(params: PyTree, state: PyTree, batch: PyTree) -> tuple[PyTree, PyTree]:
        gradient, own = variant.gradient(params, state[0], batch)
        updates, moments = adam.update(gradient, state[1], params)
        return optax.apply_updates(params, updates), (own, moments)

    return Step(variant.key, lambda params: (variant.init(params), adam.init(params)), run)


def memory(compiled: Any) -> dict[str, int]:
    """Bytes of one device: what comes in, what is temporary, and what there is in all at the same time."""
    analysis = compiled.memory_analysis()
    temp, arguments = int(analysis.temp_size_in_bytes), int(analysis.argument_size_in_bytes)
    outputs = int(analysis.output_size_in_bytes) - int(analysis.alias_size_in_bytes)
    return {"arguments": arguments, "temp": temp, "total": arguments + temp + outputs}


def shapes_of(step: Step, workload: Workload) -> tuple[PyTree, PyTree, PyTree]:
    """Abstract parameters, state and batch."""
    params = jax.eval_shape(workload.make_params)
    return params, jax.eval_shape(step.init, params), jax.eval_shape(workload.make_batch)
