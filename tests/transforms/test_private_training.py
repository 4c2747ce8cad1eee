"""A whole private training loop: Poisson batches, padding, microbatches, one compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp import sampling, transforms

N, DIM, STEPS, EXPECTED, RATE, MAX_NORM = 90, 4, 20, 12.0, 0.8, 0.3
X = np.random.default_rng(1).normal(size=(N, DIM)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.5, 0.0]) + 0.3 > 0).astype(np.float32)
DATA = {"x": jnp.asarray(X), "y": jnp.asarray(Y)}
START = {"w": jnp.zeros(DIM), "b": jnp.zeros(())}


def loss(params, example):
    return optax.sigmoid_binary_cross_entropy(example["x"] @ params["w"] + params["b"], example["y"])


def train(sampler, noise_multiplier, microbatch_size, root):
    """Final parameters, the real batch sizes, and how often the step was traced."""
    streams = sampling.streams(root)
    private = transforms.dpsgd(
        max_norm=MAX_NORM,
        noise_multiplier=noise_multiplier,
        expected_batch_size=sampler.expected_batch_size,
        key=streams.noise,
    )
    tx = optax.chain(private, optax.sgd(RATE, momentum=0.5))
    traces = []

    @jax.jit
    def step(params, state, number):
        traces.append(number)
        indices, mask = sampler.sample(streams.sampling, number)
        batch = jax.tree.map(lambda rows: rows[indices], DATA)
        grads = jaxdp.per_example_grad(loss)(params, batch, mask=mask, microbatch_size=microbatch_size)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, jnp.sum(mask)

    params, state, sizes = START, tx.init(START), []
    for number in range(STEPS):
        params, state, size = step(params, state, jnp.int32(number))
        sizes.append(int(size))
    assert int(state[0][1].count) == STEPS
    return params, sizes, len(traces)


def reference(sampler, root):
    """The same without noise, in float64 numpy, over exactly the examples drawn."""
    key, w, b = sampling.streams(root).sampling, np.zeros(DIM), 0.0
    velocity = np.zeros(DIM + 1)
    sample = jax.jit(sampler.sample)
    for number in range(STEPS):
        batch = sample(key, number)
        total = np.zeros(DIM + 1)
        for i in np.asarray(batch.indices)[np.asarray(batch.mask)]:
            x = X[i].astype(np.float64)
            residual = 1 / (1 + np.exp(-(x @ w + b))) - Y[i]
            grad = residual * np.append(x, 1.0)
            total += grad * min(1.0, MAX_NORM / np.linalg.norm(grad))
        velocity = 0.5 * velocity + total / EXPECTED
        w, b = w - RATE * velocity[:DIM], b - RATE * velocity[DIM]
    return w, b


@pytest.mark.quick("14-4")
@pytest.mark.parametrize("padded, microbatch_size", [(None, 5), (None, None), (14, 4)])
def test_training_equals_numpy_with_one_compilation(key, padded, microbatch_size):
    """Padded sizes that hold every sample, and one that truncates the large ones."""
    sampler = sampling.PoissonSampling.from_expected_batch_size(N, EXPECTED, padded)
    params, sizes, traces = train(sampler, 0.0, microbatch_size, key)
    assert traces == 1
    assert len(set(sizes)) >= 5 and max(sizes) <= sampler.padded_batch_size
    assert (max(sizes) == 14) == (padded == 14)
    w, b = reference(sampler, key)
    np.testing.assert_allclose(params["w"], w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(params["b"], b, rtol=1e-4, atol=1e-5)
    assert np.mean((X @ w + b > 0) == Y) > 0.9


def test_noise_is_there_and_depends_on_the_root_key(key):
    sampler = sampling.PoissonSampling.from_expected_batch_size(N, EXPECTED)
    noisy, _, _ = train(sampler, 1.0, 5, key)
    other, _, _ = train(sampler, 1.0, 5, jax.random.key(99))
    clean, _, _ = train(sampler, 0.0, 5, key)
    for params in (clean, other):
        assert np.all(np.abs(np.asarray(noisy["w"] - params["w"])) > 1e-4)
