"""What the examples share: real texts as bytes, a check of the norms, and a private training loop."""

import dataclasses
import importlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxdp

PyTree = Any
Loss = Callable[[PyTree, PyTree], jax.Array]


@dataclasses.dataclass(frozen=True)
class Training:
    """How the model is trained."""

    steps: int = 60
    batch_size: int = 256
    """Examples of a step, on average."""
    microbatch_size: int = 128
    epsilon: float = 8.0
    delta: float = 1e-5
    max_norm: float = 1.0
    """The clipping norm."""
    groups: str = "all"
    """What is clipped together: all, layer or param."""
    learning_rate: float = 0.01
    examples: int = 12_000
    """Training examples that are used, at most."""


def need(name: str, package: str) -> Any:
    """A module of another package; the program ends with what to install if it is not there."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error.name} is not installed: pip install '.[examples]', which brings {package}.") from None


def texts_as_bytes(texts: Sequence[str], length: int) -> dict[str, np.ndarray]:
    """The first `length` + 1 bytes of each text; zeros fill it up and are masked out."""
    ids = np.zeros((len(texts), length + 1), np.int32)
    for row, text in zip(ids, texts, strict=True):
        found = np.frombuffer(text.encode()[: length + 1], np.uint8)
        row[: len(found)] = found
    return {"ids": ids, "mask": ids[:, 1:] > 0}


def next_byte_loss(logits: jax.Array, example: dict[str, jax.Array]) -> jax.Array:
    """Bits per byte of one text."""
    nats = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), example["ids"][1:])
    weights = example["mask"].astype(jnp.float32)
    return jnp.sum(weights * nats) / jnp.maximum(jnp.sum(weights), 1.0) / jnp.log(2.0)


def compare_norms(loss: Loss, params: PyTree, batch: PyTree) -> float:
    """The largest relative difference between jaxdp's norms and those of `vmap(grad)`, which stores every gradient."""
    each = jax.tree.leaves(jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, batch))
    stored = jnp.sqrt(sum(jnp.sum(jnp.square(g).reshape(len(g), -1), axis=1) for g in each))
    squared = jax.jit(lambda p, b: jaxdp.per_example_grad(loss)(p, b).squared_norms())(params, batch)
    return float(jnp.max(jnp.abs(jnp.sqrt(squared) / stored - 1)))


def train_privately(
    loss: Loss,
    params: PyTree,
    data: PyTree,
    held_out: PyTree,
    metric: Callable[[PyTree, PyTree], jax.Array],
    name: str,
    training: Training,
) -> dict[str, float]:
    """Compare norms, train with DP-Adam, and print what came of it.

    Args:
      loss: of one example.
      params: the parameters that are trained.
      data: the private examples, with a leading axis.
      held_out: public ones, to judge by.
      metric: of one example; its mean over `held_out` is printed.
      name: what the metric is called.
      training: how.
    """
    data = jax.tree.map(lambda rows: jnp.asarray(rows[: training.examples]), data)
    difference = compare_norms(loss, params, jax.tree.map(lambda rows: rows[:16], data))
    entries = sum(x.size for x in jax.tree.leaves(params))
    print(f"{entries:,} parameters; largest relative difference to the norms of vmap(grad): {difference:.1e}")

    num_examples = len(jax.tree.leaves(data)[0])
    sampler = jaxdp.sampling.PoissonSampling.from_expected_batch_size(
        num_examples=num_examples, expected_batch_size=min(training.batch_size, num_examples // 2)
    )
    clip = jaxdp.transforms.clip(training.max_norm, groups=training.groups)
    run = lambda sigma: sampler.event(clip.dp_event(sigma), num_steps=training.steps)
    sigma = jaxdp.accounting.calibrate(run, target_epsilon=training.epsilon, delta=training.delta)
    keys = jaxdp.sampling.streams(jaxdp.sampling.key_from_entropy())
    tx = optax.chain(
        clip,
        jaxdp.transforms.add_gaussian_noise(sigma, keys.noise),
        optax.scale(1 / sampler.expected_batch_size),
        optax.adam(optax.cosine_decay_schedule(training.learning_rate, training.steps)),
    )

    @jax.jit
    def step(params: PyTree, state: PyTree, number: int) -> tuple[PyTree, PyTree]:
        indices, mask = sampler.sample(keys.sampling, number)
        batch = jax.tree.map(lambda rows: rows[indices], data)
        grads = jaxdp.per_example_grad(loss)(params, batch, mask=mask, microbatch_size=training.microbatch_size)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    # On held-out examples only: what is computed from the training data is not covered by the guarantee.
    judge = jax.jit(lambda params: jnp.mean(jax.lax.map(lambda x: metric(params, x), held_out, batch_size=64)))
    before, start, state = float(judge(params)), time.perf_counter(), tx.init(params)
    for number in range(training.steps):
        params, state = step(params, state, number)
    after = float(judge(params))
    epsilon = jaxdp.accounting.epsilon_of(run(sigma), delta=training.delta)
    print(f"{training.steps} steps on {num_examples:,} examples in {time.perf_counter() - start:.0f} s")
    print(f"held-out {name}: {before:.3f} before, {after:.3f} after, at epsilon {epsilon:.2f} (delta {training.delta})")
    return {"difference": difference, "before": before, "after": after, "epsilon": epsilon}
