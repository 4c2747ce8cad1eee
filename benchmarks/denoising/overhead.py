"""What denoising adds to a training step, beside the ordinary step of the same process."""

import random
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.measurement import summary
from benchmarks.variants import Choice, Privacy, baselines, make_step, optimizer, ours
from benchmarks.workloads import Workload
from jaxdp import transforms

_IN_A_ROW = 5

METHODS: dict[str, dict[str, Any]] = {
    "subspace, 8": {"method": "subspace", "width": 8},
    "subspace, 16": {"method": "subspace", "width": 16},
    "gram": {"method": "gram"},
}


def measure(workload: Workload, repeats: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Times of the non-private step, the private step and the denoising of its gradient alone.

    Ratios are of the processor's time where the processor computes: on a shared machine it hardly depends on what
    else runs.

    Denoising is timed by itself, on the same shapes: it is a few percent of the step, which is less than what two
    measurements of a whole step differ by. Inside a step it can only be cheaper.
    """
    privacy = Privacy()
    params, batch = workload.make_params(), workload.make_batch()
    runs: dict[str, Callable[[], Any]] = {}
    variants = [v for v in baselines(workload, privacy) if v.family == "baseline"]
    variants += [v for v in ours(workload, privacy, [Choice("auto", "all")]) if hasattr(v, "gradient")]
    for variant in variants:
        step = jax.jit(make_step(variant))
        given = (params, optimizer().init(params), variant.init(params), batch)
        runs[variant.label] = lambda step=step, given=given: step(*given)
    noisy = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), params)
    matrices = 0
    for name, options in METHODS.items():
        tx = transforms.rmt_denoise(1.0, **options)
        run, state = jax.jit(tx.update), tx.init(params)
        matrices = len(state.rank)
        # The second call and all later ones start from the last step's subspace.
        _, state = run(noisy, state)
        runs[f"denoising alone: {name}"] = lambda run=run, state=state: run(noisy, state)
    runs["denoising alone: full SVD"] = _full_svd(noisy, params)
    samples = _interleaved(runs, repeats, say)
    clock = "cpu_seconds" if jax.default_backend() == "cpu" else "seconds"
    baseline = [v.label for v in variants if v.family == "baseline"]
    reference = min(summary(samples[label][clock])["median"] for label in baseline)
    rows = [
        {
            "label": label,
            **{name: summary(values) for name, values in times.items()},
            "ratio": summary(times[clock])["median"] / reference,
        }
        for label, times in samples.items()
    ]
    parameters = sum(x.size for x in jax.tree.leaves(params))
    return {"workload": workload.title, "parameters": parameters, "matrices": matrices, "rows": rows}


def _full_svd(noisy: Any, params: Any) -> Callable[[], Any]:
    """The published way: a singular value decomposition of every matrix that is denoised."""
    tx = transforms.rmt_denoise(1.0)
    names = set(tx.init(params).rank)
    leaves = [x for path, x in jax.tree_util.tree_leaves_with_path(noisy) if jax.tree_util.keystr(path) in names]

    @jax.jit
    def run(leaves: Any) -> Any:
        def one(y: Any) -> Any:
            u, s, vt = jnp.linalg.svd(y, full_matrices=False)
            return (u * s[None, :]) @ vt

        return [one(y) for y in leaves]

    return lambda: run(leaves)


def _interleaved(
    runs: dict[str, Callable[[], Any]], repeats: int, say: Callable[[str], None]
) -> dict[str, dict[str, list[float]]]:
    """Every round runs each once, in another order, after one round that compiles."""
    samples: dict[str, dict[str, list[float]]] = {label: {"seconds": [], "cpu_seconds": []} for label in runs}
    generator = random.Random(0)
    for number in range(repeats + 1):
        order = list(runs)
        generator.shuffle(order)
        for label in order:
            # What is short is run several times in a row: a single run measures how warm the caches are.
            count = _IN_A_ROW if number and label.startswith("denoising alone") else 1
            start, worked = time.perf_counter(), time.process_time()
            for _ in range(count):
                jax.block_until_ready(runs[label]())
            seconds, cpu_seconds = (time.perf_counter() - start) / count, (time.process_time() - worked) / count
            if number:
                samples[label]["seconds"].append(seconds)
                samples[label]["cpu_seconds"].append(cpu_seconds)
            say(f"round {number} {label}: {seconds:.3f} s, {cpu_seconds:.3f} s of the processor")
    return samples
