"""A plan on paper for training a Llama model on many accelerators: memory, operations and bytes from shapes alone."""

import dataclasses
import math
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from flax import nnx

import jaxdp
from benchmarks.workloads import Scale
from jaxdp import models
from jaxdp.norms import _costs as rates
from jaxdp.per_example.planning._costs import runs
from jaxdp.per_example.rewriting._traced import TracedLoss, trace
from jaxdp.per_example.tracing import _check

PyTree = Any

GIB = 2**30
# (key, label, method, groups, probes)
METHODS = (
    ("ghost", "ghost/all", "ghost", "all", 0),
    ("fused", "fused/layer", "fused", "layer", 0),
    ("bookkeeping", "bookkeeping/all", "bookkeeping", "all", 0),
    ("randomised", "ghost/all, Hutchinson(64)", "ghost", "all", 64),
)
NORM_TILE_BYTES = 4 * 2**24  # what one use's norm may have alive: `norms._exact._ALIVE_ELEMENTS` of float32


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What the plan assumes of the machines; the defaults are the data sheet of an H100 SXM and 400 Gb/s a card."""

    devices: int = 64
    """Accelerators, over which parameters, optimiser state and gradients are cut (fsdp)."""
    batch_per_device: int = 4
    """Examples of one device."""
    seq: int = 2048
    """Tokens of one example."""
    bf16_tflops: float = 989.0
    """Peak of bfloat16 products, in which the model computes and exact norms are found."""
    sum_tflops: float = 495.0
    """Peak of the products of clipped sums: float32 operands at default precision, tf32 on this card."""
    estimate_tflops: float = 67.0
    """Peak of the products of estimated norms: float32 at full precision."""
    utilisation: float = 0.45
    """Share of each peak that is reached."""
    memory_gbps: float = 3350.0
    """Gigabytes that one device reads or writes in a second."""
    link_gbps: float = 50.0
    """Gigabytes that one device sends to the others in a second."""
    memory_gib: float = 80.0
    """Memory of one device."""


@dataclasses.dataclass(frozen=True)
class Work:
    """Floating-point operations and traffic of one device in a step.

    Attributes:
      model: products in the model's dtype.
      sums: products of clipped sums.
      norms: products of exact norms, of 16-bit factors.
      estimates: products with probes, in float32.
      traffic: bytes that norms read and write.
      sent: bytes that the device sends to others.
    """

    model: float
    sums: float
    norms: float
    estimates: float
    traffic: float
    sent: float

    def seconds(self, cluster: Cluster) -> tuple[float, float]:
        """With everything that is sent hidden behind arithmetic, and with nothing of it hidden."""
        reached = lambda tflops: tflops * 1e12 * cluster.utilisation
        arithmetic = (
            (self.model + self.norms) / reached(cluster.bf16_tflops)
            + self.sums / reached(cluster.sum_tflops)
            + self.estimates / reached(cluster.estimate_tflops)
            + self.traffic / (cluster.memory_gbps * 1e9)
        )
        link = self.sent / (cluster.link_gbps * 1e9)
        return max(arithmetic, link), arithmetic + link


def llama(scale: Scale) -> models.LlamaConfig:
    """Llama 7B, or the smallest of the family."""
    compute = models.Compute(dtype="bfloat16", remat="full")
    if scale == "full":
        return models.LlamaConfig(compute=compute)
    return models.LlamaConfig(64, 16, 32, 2, 2, compute=compute)


def paper_plan(scale: Scale, cluster: Cluster) -> dict[str, Any]:
    """The plan, one row for each method."""
    config = llama(scale)
    decoder = nnx.eval_shape(lambda: models.LlamaDecoder(config, rngs=nnx.Rngs(0)))
    graph, params, rest = nnx.split(decoder, nnx.Param, ...)
    loss = models.token_loss(graph, rest)
    shape = (cluster.batch_per_device, cluster.seq)
    batch = models.TokenExample(jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.bool_))
    machine = rates.Machine(cluster.bf16_tflops * 1e12, *2 * (cluster.memory_gbps * 1e9,))
    # Which rule is the cheaper one is a matter of the machine that is planned for, not of this one.
    with mock.patch.dict(rates._MACHINES, {jax.default_backend(): machine}):
        traced = trace(_check.call_loss(loss, False), params, batch)
        explained = {
            key: _explain(loss, params, batch, method, groups, probes) for key, _, method, groups, probes in METHODS
        }
    size = cluster.batch_per_device
    entries = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    common = common_memory(params, config, cluster)
    training = explained["ghost"].training_flops
    sums = size * sum(runs(s.loops) * s.use.sum_cost(s.cts).flops for s in traced.sites.values() if s.sizes is not None)
    once = sent_bytes(entries, cluster, gathers=2)
    rows = [_row("plain", "non-private", common, {}, Work(training, 0.0, 0.0, 0.0, 0.0, once), cluster)]
    for key, label, *_ in METHODS:
        plan = explained[key]
        norms, estimates, traffic, reused = split_norms(plan, traced, size)
        again = plan.second_pass_flops > 0
        work = Work(
            training - sums + plan.second_pass_flops,
            sums + reused,
            norms,
            estimates,
            traffic,
            sent_bytes(entries, cluster, gathers=3 if again else 2),
        )
        extra = {"factors kept": plan.held_bytes, "norm of one use": norm_memory(traced, size)}
        rows.append(_row(key, label, common, extra, work, cluster))
    # One gradient at a time, and the weights gathered anew for each.
    one = {"one example's gradient": 4 * entries, "its sum before it is cut": 4 * entries}
    work = Work(training, 0.0, 2.0 * size * entries, 0.0, 8.0 * size * entries, size * once)
    rows.append(_row("vmap-1", "vmap(grad), microbatch 1", common, one, work, cluster))
    base = rows[0]["seconds"]
    for row in rows:
        row["ratio"] = [own / reference for own, reference in zip(row["seconds"], base, strict=True)]
    return {
        "title": f"Llama, {entries / 1e9:.2f} billion parameters",
        "cluster": dataclasses.asdict(cluster),
        "tokens": cluster.devices * math.prod(shape),
        "parameters": entries,
        "rows": rows,
    }


def _explain(loss: Any, params: PyTree, batch: PyTree, method: Any, groups: str, probes: int) -> Any:
    norm = jaxdp.norms.Hutchinson(probes) if probes else jaxdp.norms.EXACT
    return jaxdp.explain(loss, params, batch, groups=groups, method=method, norm=norm)


def split_norms(
    plan: jaxdp.per_example.Explanation, traced: TracedLoss, size: int
) -> tuple[float, float, float, float]:
    """Operations of exact and of estimated norms, their traffic, and what a norm that comes with its sum adds to it."""
    sites = [site for leaf in range(len(traced.stacks)) for site in traced.sites_of(leaf).values()]
    norms = estimates = traffic = reused = 0.0
    for row, site in zip(plan.rows, sites, strict=True):
        alone = site.use.sum_cost(site.cts).times(size * runs(site.loops))
        traffic += max(0.0, row.bytes - alone.bytes)
        if row.rule == "product, once":
            reused += row.flops - alone.flops
        elif row.rule in ("Hutchinson", "Hutch++"):
            estimates += row.flops - alone.flops
        else:
            norms += row.flops - alone.flops
    return norms, estimates, traffic, reused


def common_memory(params: PyTree, config: models.LlamaConfig, cluster: Cluster) -> dict[str, float]:
    """Bytes of one device that every step has: the parts of what is cut, and what is whole for a while."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    stacked = {jax.tree_util.keystr(path): "layers" in jax.tree_util.keystr(path) for path, _ in leaves}
    entries = {jax.tree_util.keystr(path): math.prod(x.shape) for path, x in leaves}
    total = sum(entries.values())
    layer = sum(n for name, n in entries.items() if stacked[name]) / config.num_hidden_layers
    outside = max(n for name, n in entries.items() if not stacked[name])
    tokens = cluster.batch_per_device * cluster.seq
    width = config.head_dim * (config.num_attention_heads + 2 * config.num_key_value_heads)
    inner = 6 * config.hidden_size + width + 4 * config.intermediate_size
    return {
        "parameters": 4 * total / cluster.devices,
        "Adam's moments": 8 * total / cluster.devices,
        "gradients": 4 * total / cluster.devices,
        "gathered weights": 2 * 2 * max(layer, outside),
        "gradient of a layer before it is cut": 4 * max(layer, outside),
        "inputs of layers": 2 * tokens * config.hidden_size * config.num_hidden_layers,
        "inside one layer": 2 * tokens * inner,
        "logits and their cotangents": 2 * 4 * tokens * config.vocab_size,
    }


def norm_memory(traced: TracedLoss, size: int) -> float:
    """The largest use's factors in float32, and what its norm has alive at a time."""
    sizes = [site.sizes for site in traced.sites.values() if site.sizes is not None]
    return max((4 * size * k * t * (c + p) for k, t, c, p in sizes), default=0) + NORM_TILE_BYTES


def sent_bytes(entries: int, cluster: Cluster, gathers: int) -> float:
    """Weights gathered in bfloat16 for every pass, gradients scattered in float32 once, in rings."""
    share = (cluster.devices - 1) / cluster.devices
    return share * entries * (2.0 * gathers + 4.0)


def _row(
    key: str, label: str, common: dict[str, float], extra: dict[str, float], work: Work, cluster: Cluster
) -> dict[str, Any]:
    memory = common | extra
    return {
        "key": key,
        "label": label,
        "memory": memory,
        "total": sum(memory.values()),
        "fits": sum(memory.values()) <= cluster.memory_gib * GIB,
        "work": dataclasses.asdict(work),
        "seconds": work.seconds(cluster),
    }
