"""The jitted step: one compilation, donated state, the accounted noise, schedules."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdp import sampling, transforms
from jaxdp.training import TrainState, make_step
from jaxdp.training.chain._optimizer import learning_rate_schedule
from jaxdp.training.config._phase import PhaseConfig

N, D = 60, 3


def data():
    x = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
    return {"x": jnp.asarray(x), "y": jnp.asarray(x[:, 0] > 0, jnp.float32)}


def loss(trained, frozen, example):
    return jnp.square(example["x"] @ trained["w"] + frozen["b"] - example["y"])


def setup(key, transformation, **options):
    step = make_step(
        loss,
        sampler=options.pop("sampler", sampling.PoissonSampling(N, 0.3)),
        transformation=transformation,
        trained=("w",),
        microbatch_size=options.pop("microbatch_size", 8),
        **options,
    )
    params = {"w": jnp.zeros(D), "other": jnp.ones(2)}
    state = TrainState(params, transformation.init({"w": params["w"]}), jax.random.clone(key), jnp.int32(0))
    return step, state, {"b": jnp.zeros(())}


@pytest.mark.quick
def test_one_compilation_serves_every_batch_that_is_drawn(key):
    tx = transforms.dpsgd(max_norm=1.0, noise_multiplier=0.5, expected_batch_size=18.0, key=key)
    step, state, frozen = setup(key, tx, private_metrics_norm=1.0)
    rows, sizes = data(), set()
    for _ in range(12):
        state, private = step.run(state, frozen, rows)
        sizes.add(int(private["batch_size"]))
    assert len(step.traces) == 1
    assert len(sizes) > 4
    assert int(state.step) == 12 and int(state.opt_state[1].count) == 12


def test_the_old_state_is_given_up_and_other_parameters_stay(key):
    tx = optax.chain(
        transforms.dpsgd(max_norm=1.0, noise_multiplier=0.5, expected_batch_size=18.0, key=key), optax.sgd(0.1)
    )
    step, state, frozen = setup(key, tx)
    old = state.params["w"]
    state, private = step.run(state, frozen, data())
    assert old.is_deleted() and private == {}
    np.testing.assert_array_equal(state.params["other"], np.ones(2))
    assert np.all(np.asarray(state.params["w"]) != 0)


def test_a_full_batch_step_is_the_clipped_mean(key):
    tx = optax.chain(transforms.clip(0.5), _take_tree(), optax.scale(-1.0))
    step, state, frozen = setup(key, tx, sampler=sampling.FullBatch(N), microbatch_size=None)
    rows = data()
    state, _ = step.run(state, frozen, rows)
    grads = 2 * (0.0 - np.asarray(rows["y"]))[:, None] * np.asarray(rows["x"])
    norms = np.linalg.norm(grads, axis=1, keepdims=True)
    expected = -(grads * np.minimum(1.0, 0.5 / np.maximum(norms, 1e-12))).sum(axis=0)
    np.testing.assert_allclose(state.params["w"], expected, rtol=1e-5)


@pytest.mark.quick
def test_a_step_is_on_the_examples_that_the_sampling_stream_draws_and_on_nobody_else(key):
    """Each example moves a coordinate of its own: padding, other streams and other steps would show."""
    sampler = sampling.PoissonSampling(N, 0.3)
    tx = optax.chain(transforms.clip(1e3), _take_tree())
    step = make_step(
        lambda trained, frozen, example: trained["w"] @ example, sampler=sampler, transformation=tx, trained=("w",),
        microbatch_size=8,
    )  # fmt: skip
    state = TrainState({"w": jnp.zeros(N)}, tx.init({"w": jnp.zeros(N)}), jax.random.clone(key), jnp.int32(0))
    seen = []
    for number in range(3):
        before = np.asarray(state.params["w"])
        state, _ = step.run(state, {}, jnp.eye(N))
        drawn = sampler.sample(sampling.streams(key).sampling, number)
        expected = np.zeros(N)
        expected[np.asarray(drawn.indices)[np.asarray(drawn.mask)]] = 1
        np.testing.assert_array_equal(np.asarray(state.params["w"]) - before, expected)
        seen.append(expected)
    assert sampler.padded_batch_size > 24 and len(np.unique(seen, axis=0)) == 3


def test_the_update_follows_from_root_key_and_step_alone(key):
    def final(root):
        noise = sampling.streams(root).noise
        tx = transforms.dpsgd(max_norm=1.0, noise_multiplier=0.5, expected_batch_size=18.0, key=noise)
        step, state, frozen = setup(root, tx)
        for _ in range(3):
            state, _ = step.run(state, frozen, data())
        return np.asarray(state.params["w"])

    np.testing.assert_array_equal(final(key), final(key))
    assert np.all(final(key) != final(jax.random.key(1)))


def test_each_example_gets_a_dropout_key_of_its_own_at_every_step(key):
    class Row(NamedTuple):
        x: jax.Array
        key: jax.Array | None = None

    def uniform(trained, frozen, example):
        return jnp.sum(trained["w"] * jax.random.uniform(example.key, (D,)))

    tx = optax.chain(transforms.clip(1e6), _take_tree())
    sampler = sampling.FullBatch(2)
    step = make_step(uniform, sampler=sampler, transformation=tx, trained=("w",), microbatch_size=None, dropout=True)
    state = TrainState({"w": jnp.zeros(D)}, tx.init({"w": jnp.zeros(D)}), jax.random.clone(key), jnp.int32(0))
    sums = []
    for _ in range(2):
        before = np.asarray(state.params["w"])
        state, _ = step.run(state, {}, Row(jnp.zeros((2, D))))
        sums.append(np.asarray(state.params["w"]) - before)
    assert np.all(sums[0] != sums[1])
    dropout = jax.random.fold_in(sampling.streams(key).dropout, 0)
    expected = sum(np.asarray(jax.random.uniform(jax.random.fold_in(dropout, i), (D,))) for i in range(2))
    np.testing.assert_allclose(sums[0], expected, rtol=1e-5)


def _take_tree():
    return optax.GradientTransformation(lambda params: optax.EmptyState(), lambda u, s, p=None: (u.tree, s))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_no_step_is_spent_at_rate_zero_and_the_peak_is_the_learning_rate(schedule):
    phase = PhaseConfig(train="head", steps=20, batch_size=5.0, learning_rate=0.3, schedule=schedule, warmup_steps=4)
    rates = np.array([float(learning_rate_schedule(phase)(jnp.int32(i))) for i in range(20)])
    assert np.all(rates > 0)
    assert rates.max() == pytest.approx(0.3) and rates.argmax() == 4
    assert np.all(np.diff(rates[:5]) > 0)
    assert (rates[-1] < 0.03) == (schedule != "constant")
