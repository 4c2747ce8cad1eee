"""A small scanned transformer, the chains that train it, and one private step on any mesh."""

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

import jaxdp
from jaxdp import norms, parallel, per_example, sampling, transforms

N, T, D, H, V, CLASSES = 96, 12, 16, 32, 24, 4
RATE, MICROBATCH, STEPS = 0.25, 16, 2
TENSOR_RULES = {
    "layers/qkv": P(None, None, None, "tensor"),
    "layers/up": P(None, None, "tensor"),
    "layers/bias": P(None, "tensor"),
    "layers/o": P(None, "tensor"),
    "layers/down": P(None, "tensor"),
}


@contextlib.contextmanager
def same_allowance() -> Iterator[None]:
    """As much for rounding on every mesh.

    Sums are cut otherwise on each, so that other noise covers what rounding may do: no number would be the same.
    """
    allowed = per_example.Slack(2.0**-13, 2.0**-6)
    with mock.patch("jaxdp.per_example._grads.slack_of_sum", lambda *_: allowed):
        yield


def examples(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of the data set, made from their numbers."""
    ids = (rows[:, None] * 7 + np.arange(T)[None] * (rows[:, None] % 5 + 1)) % V
    return {"ids": ids.astype(np.int32), "label": (rows % CLASSES).astype(np.int32)}


def make_params() -> dict[str, Any]:
    draw = np.random.default_rng(3)
    normal = lambda *shape: jnp.asarray(draw.normal(size=shape) / math.sqrt(shape[-2]), jnp.float32)
    layers = {"qkv": normal(2, D, 3, 2, D // 2), "o": normal(2, 2, D // 2, D)}
    layers |= {"up": normal(2, D, H), "bias": jnp.zeros((2, H)), "down": normal(2, H, D)}
    return {"table": normal(V, D), "layers": layers, "head": normal(D, CLASSES)}


def loss(params: Any, example: Any) -> jax.Array:
    def layer(x: jax.Array, w: Any) -> tuple[jax.Array, None]:
        q, k, v = jnp.einsum("td,dnhe->nhte", x, w["qkv"])
        x = x + jnp.einsum("hts,hse,hed->td", jax.nn.softmax(jnp.einsum("hte,hse->hts", q, k)), v, w["o"])
        return x + jnp.tanh(x @ w["up"] + w["bias"][None]) @ w["down"], None

    x, _ = jax.lax.scan(jax.checkpoint(layer), params["table"][example["ids"]], params["layers"])
    return -jax.nn.log_softmax(jnp.mean(x, axis=0) @ params["head"])[example["label"]]


def chain(name: str, batch: Any) -> Any:
    key = jax.random.key(11)
    estimated = {"groups": "layer", "norm": norms.Hutchinson(8)}
    given: dict[str, Any] = {"estimated": estimated, "layer": {"groups": "layer"}}.get(name, {})
    private = transforms.dpsgd(max_norm=0.5, noise_multiplier=0.7, expected_batch_size=RATE * N, key=key, **given)
    if name == "grape":
        inner = optax.chain(private, optax.trace(0.9))
        matrices = jaxdp.per_example_grad(loss)(make_params(), batch).matrices()
        private = transforms.grape(inner, rank=4, refresh_every=1, key=key, matrices=matrices)
    return optax.chain(private, optax.sgd(0.5, momentum=0.9))


def make_step(name: str, sampler: Any, placement: parallel.Placement | None, method: Any = "auto") -> Any:
    """`step(params, state, number, data)`; the name "sum" is the same program without clipping and noise."""

    def step(params: Any, state: Any, number: jax.Array, data: Any) -> tuple[Any, Any]:
        drawn = sampler.sample(jax.random.key(5), number)
        take = sampler.take if placement is not None else lambda d, b: jax.tree.map(lambda x: x[b.indices], d)
        batch = take(data, drawn)
        grads: Any = jaxdp.per_example_grad(loss, method=method)(
            params, batch, mask=drawn.mask, microbatch_size=MICROBATCH, placement=placement
        )
        if name == "sum":
            return grads.weighted_sum(jnp.ones(grads.batch_size)), state
        updates, state = chain(name, batch).update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


@functools.cache
def one_device(name: str) -> Any:
    """Parameters after the steps on one device."""
    sampler = sampling.PoissonSampling(N, RATE)
    data = jax.tree.map(jnp.asarray, examples(np.arange(N)))
    params, step = make_params(), jax.jit(make_step(name, sampler, None))
    state = chain(name, data).init(params)
    with same_allowance():
        for number in range(STEPS):
            params, state = step(params, state, jnp.int32(number), data)
    return jax.tree.map(np.asarray, params)


class OnMesh:
    """Everything of one step on a mesh."""

    def __init__(self, name: str, data: int, fsdp: int, tensor: int, method: Any = "auto"):
        self.mesh = mesh = parallel.make_mesh(data=data, fsdp=fsdp, tensor=tensor)
        rules = parallel.ShardingRules(mesh, TENSOR_RULES if tensor > 1 else {})
        params = make_params()
        self.name, self.shardings = name, rules(params)
        self.params = parallel.place(params, self.shardings)
        self.sampler = sampling.ShardedPoissonSampling(N, RATE, parallel.batch_sharding(mesh))
        self.data = parallel.shard_examples(self.read, self.sampler)
        self.placement = parallel.Placement(self.sampler.sharding, self.shardings)
        state = () if name == "sum" else chain(name, examples(np.arange(4))).init(params)
        self.state_shardings = parallel.state_shardings(state, params, self.shardings, rules)
        self.state = parallel.place(state, self.state_shardings)
        step = make_step(name, self.sampler, self.placement, method)
        self.number = parallel.place(jnp.int32(0), parallel.replicated(mesh))
        self.step = jax.jit(step, out_shardings=(self.shardings, self.state_shardings))
        with same_allowance():
            self.compiled = self.step.lower(self.params, self.state, self.number, self.data).compile()

    def read(self, rows: np.ndarray) -> Any:
        allowed = parallel.process_rows(self.sampler)
        assert np.isin(rows, allowed).all(), "a process was asked for rows that it does not hold"
        return examples(rows)

    def run(self) -> Any:
        params, state = self.params, self.state
        for number in range(STEPS):
            placed = parallel.place(jnp.int32(number), parallel.replicated(self.mesh))
            params, state = self.compiled(params, state, placed, self.data)
        return params
