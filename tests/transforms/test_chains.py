"""After the noise anything goes: optimisers, schedules, masks. It is post-processing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp import transforms
from tests.transforms.small import PARAMS, flat64, loss, normal_batch

BATCH = normal_batch(4)
BIASES = {"dense": {"bias": True, "kernel": False}, "head": False}
OPTIMISERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1, weight_decay=0.1),
    "lion": optax.lion(0.1),
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=2),
    "schedule": optax.sgd(optax.warmup_cosine_decay_schedule(0.01, 0.1, 1, 3)),
    "global norm": optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1)),
    "masked": optax.chain(optax.masked(optax.add_decayed_weights(0.1), BIASES), optax.sgd(0.1)),
    "multi_transform": optax.multi_transform({True: optax.adam(0.1), False: optax.sgd(0.01)}, BIASES),
    "frozen": optax.multi_transform({True: optax.sgd(0.1), False: optax.set_to_zero()}, BIASES),
    "average": optax.chain(optax.sgd(0.1), optax.ema(0.9)),
}


def private(key):
    return transforms.dpsgd(max_norm=1.0, noise_multiplier=0.5, expected_batch_size=4.0, key=key)


@pytest.mark.parametrize("name", list(OPTIMISERS))
def test_the_optimiser_sees_the_privatised_mean_and_nothing_else(key, name):
    """The same updates as the optimiser alone on the privatised mean, over three steps of one compiled chain."""
    optimiser = OPTIMISERS[name]
    chain, noisy = optax.chain(private(key), optimiser), private(key)
    # Optax's own arithmetic mixes kinds of numbers, and ranks in adafactor.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):

        @jax.jit
        def step(params, chained, alone):
            grads = jaxdp.per_example_grad(loss)(params, BATCH)
            updates, chained = chain.update(grads, chained, params)
            mean, noise_state = noisy.update(grads, alone[0], params)
            expected, optimiser_state = optimiser.update(mean, alone[1], params)
            return optax.apply_updates(params, updates), chained, (noise_state, optimiser_state), updates, expected

        params, chained, alone = PARAMS, chain.init(PARAMS), (noisy.init(PARAMS), optimiser.init(PARAMS))
        for _ in range(3):
            params, chained, alone, updates, expected = step(params, chained, alone)
            np.testing.assert_allclose(flat64(updates), flat64(expected), rtol=1e-5, atol=1e-7)
    assert step._cache_size() == 1
    assert int(chained[0][1].count) == 3
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), params, PARAMS)
    assert moved == (BIASES if name == "frozen" else jax.tree.map(lambda _: True, PARAMS))


def test_dpsgd_is_clip_noise_and_scale(key):
    by_hand = optax.chain(transforms.clip(1.0), transforms.add_gaussian_noise(0.5, key), optax.scale(0.25))
    grads = jaxdp.per_example_grad(loss, method="materialize")(PARAMS, BATCH)
    ours, _ = private(key).update(grads, private(key).init(PARAMS))
    theirs, _ = by_hand.update(grads, by_hand.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(flat64(ours), flat64(theirs))


def test_params_reach_clip_in_a_chain(key):
    """`optax.chain` hands them on, so a stacked pytree works in any position where clip may stand."""
    grads = jaxdp.per_example_grad(loss)(PARAMS, BATCH)
    tx = optax.chain(optax.identity(), private(key), optax.sgd(0.1))
    lazy, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    stacked, _ = tx.update(grads.materialize(), tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(flat64(lazy), flat64(stacked), rtol=1e-5, atol=1e-7)
