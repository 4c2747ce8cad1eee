"""NumPy's numbers are numbers wherever Python's are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp import norms, per_example, sampling, transforms
from jaxdp._numbers import is_number, is_whole

KEY = jax.random.key(0)
LOSS = lambda w, x: jnp.sum(jnp.tanh(x @ w))
PARAMS, BATCH = jnp.ones((3, 2)), jnp.ones((4, 3))


@pytest.mark.quick
def test_what_is_a_number() -> None:
    for value in (1, np.int64(1), np.uint8(1)):
        assert is_whole(value) and is_number(value)
    for value in (1.0, np.float32(1), np.float64(1), np.float16(1)):
        assert is_number(value) and not is_whole(value)
    for value in (True, np.bool_(True), "1", None, jnp.ones(()), np.ones(1), 1j):
        assert not is_whole(value) and not is_number(value)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("whole, real", [(np.int64, np.float64), (np.uint8, np.float32), (np.int32, np.float16)])
def test_numbers_of_numpy_are_taken(whole: type, real: type) -> None:
    def noisy(one: float, half: float) -> list[jax.Array]:
        grads = jaxdp.per_example_grad(LOSS)(PARAMS, BATCH, microbatch_size=whole(2))
        out = []
        for clip in (
            transforms.clip(one),
            transforms.clip(one, groups=per_example.Blocks(whole(1))),
            transforms.adaptive_clip(one, expected_batch_size=whole(4), indicator_noise_stddev=whole(9), key=KEY),
        ):
            tx = optax.chain(clip, transforms.add_gaussian_noise(half, KEY))
            out.append(tx.update(grads, tx.init(PARAMS), PARAMS)[0])
        dpsgd = transforms.dpsgd(max_norm=one, noise_multiplier=half, expected_batch_size=whole(4), key=KEY)
        return [*out, dpsgd.update(grads, dpsgd.init(PARAMS), PARAMS)[0]]

    for mine, pythons in zip(noisy(real(1), real(0.5)), noisy(1.0, 0.5), strict=True):
        assert mine.dtype == pythons.dtype and jnp.array_equal(mine, pythons)
    assert norms.Hutchinson(whole(64)).probes == 64
    assert transforms.zeroth_order(optax.sgd(0.1), directions=whole(2), scale=real(0.5), key=KEY) is not None
    sampler = sampling.PoissonSampling.from_expected_batch_size(num_examples=whole(100), expected_batch_size=whole(10))
    indices, mask = sampler.sample(KEY, 0)
    assert indices.shape == mask.shape


@pytest.mark.usefixtures("without_type_checks")
def test_booleans_are_not() -> None:
    with pytest.raises(TypeError, match="noise_multiplier is True"):
        transforms.add_gaussian_noise(True, KEY)
    with pytest.raises(TypeError, match="noise_multiplier is"):
        transforms.add_gaussian_noise(np.bool_(True), KEY)
    with pytest.raises(TypeError, match=r"Blocks\(True\)"):
        per_example.Blocks(True)
