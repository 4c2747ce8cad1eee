"""The noise really drawn: its scale, its independence, and that no draw ever comes twice."""

import importlib
import itertools
import pkgutil
import zlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp import sampling, transforms
from jaxdp.numerics._normals import BLOCK, normals_from, standard_normal
from jaxdp.transforms._noise import _NOISE_TAG, _with_noise
from jaxdp.transforms._noise_blocks import TOGETHER, block_length, chunks_of
from tests.transforms.small import PARAMS, flat64, loss, normal_batch

SIZE = 200_000
LEAVES = {"a": jnp.zeros(SIZE), "b": jnp.zeros((SIZE // 100, 100)), "c": jnp.zeros((10, 3))}


def noise_of(tx, state=None, tree=LEAVES, sensitivity=1.0):
    """One release of a sum that is zero everywhere: the noise alone, and the next state."""
    total = transforms.ClippedSum(tree, sensitivity)
    return tx.update(total, tx.init(tree) if state is None else state)


def correlation(a, b):
    return abs(float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]))


@pytest.mark.quick
@pytest.mark.parametrize("noise_multiplier, sensitivity", [(0.7, 1.0), (3.0, 0.25)])
def test_the_standard_deviation_is_noise_multiplier_times_sensitivity(key, noise_multiplier, sensitivity):
    noise, _ = noise_of(transforms.add_gaussian_noise(noise_multiplier, key), sensitivity=sensitivity)
    for name in ("a", "b"):
        sample = np.asarray(noise[name], np.float64).ravel() / (noise_multiplier * sensitivity)
        # The standard errors of mean, std and kurtosis of n normal draws; five of them.
        assert abs(sample.mean()) < 5 / np.sqrt(SIZE)
        assert abs(sample.std() - 1) < 5 / np.sqrt(2 * SIZE)
        assert abs((sample**4).mean() - 3) < 5 * np.sqrt(96 / SIZE)


def test_the_scale_follows_the_clipping(key):
    """`dpsgd` end to end on gradients of zero: the std of the mean is sigma R / b, or sigma / b when normalised."""
    params = jnp.zeros(SIZE)
    for normalize, unit in ((False, 4.0), (True, 1.0)):
        tx = transforms.dpsgd(
            max_norm=4.0, noise_multiplier=0.5, expected_batch_size=10.0, key=key, normalize=normalize
        )
        update, _ = tx.update(jnp.zeros((2, SIZE)), tx.init(params), params)
        assert float(jnp.std(update)) == pytest.approx(0.5 * unit / 10.0, rel=5 / np.sqrt(2 * SIZE))


def test_parameters_and_steps_have_independent_noise(key):
    tx = transforms.add_gaussian_noise(1.0, key)
    first, state = noise_of(tx)
    second, _ = noise_of(tx, state)
    draws = [first["a"], first["b"], second["a"], second["b"]]
    for i in range(4):
        for j in range(i):
            assert correlation(draws[i], draws[j]) < 5 / np.sqrt(SIZE)


def test_parameters_of_one_shape_have_independent_noise(key):
    """They are drawn together, and cut apart by rows that the compiler does not know."""
    leaves = {name: jnp.zeros(SIZE // 10) for name in "abcde"}
    noise, _ = jax.jit(lambda: noise_of(transforms.add_gaussian_noise(1.0, key), tree=leaves))()
    draws = list(noise.values())
    for i in range(5):
        for j in range(i):
            assert correlation(draws[i], draws[j]) < 5 / np.sqrt(SIZE // 10)


@pytest.mark.parametrize("word", [0, 2**32 - 1])
def test_whatever_the_key_is_no_two_parameters_share_a_draw(word):
    """Where a parameter's noise begins comes from one of two branches by a word of the key."""
    key = jax.random.wrap_key_data(jnp.asarray([word, 7], jnp.uint32))
    leaves = [jnp.zeros(shape) for shape in ((50,), (50,), (50,), (50,), (60,), (60,), (70,), (BLOCK,), (BLOCK + 1,))]
    ones, uncut = [jnp.ones(())] * len(leaves), [None] * len(leaves)
    draws = jax.jit(lambda: _with_noise(leaves, ones, None, key, jnp.int32(0), uncut))()
    assert [draw.shape for draw in draws] == [leaf.shape for leaf in leaves]
    # So few numbers of float32 do not coincide by chance.
    some = np.concatenate([part for draw in draws for part in (draw[:50], draw[-50:]) if len(draw) >= 100])
    some = np.concatenate([some, *(draw for draw in draws if len(draw) < 100)])
    assert len(np.unique(some)) == len(some)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_the_noise_does_not_depend_on_what_it_is_added_to(key, backend, monkeypatch):
    """Nor on how it is drawn: whatever the sum's bits are, each leaf has the numbers of its own places."""
    values = [jnp.zeros(0), *(jnp.full(n, v) for n in (3, 5) for v in (0.0, -0.0, -1.5, 3e38, jnp.inf, -jnp.nan))]
    values.append(jnp.zeros((200, 300)))
    stddevs, count = [jnp.float32(0.5)] * len(values), jnp.int32(3)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    noisy = jax.jit(lambda xs: _with_noise(xs, stddevs, None, key, count, [None] * len(xs)))(values)
    stream = jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(b"jaxdp.transforms.add_gaussian_noise")), 3)
    numbers = np.asarray(standard_normal(stream, (sum(x.size for x in values),), jnp.float32))
    places = np.cumsum([0, *(x.size for x in values)])
    for before, after, at in zip(values, noisy, places[:-1], strict=True):
        expected = np.asarray(before) + np.float32(0.5) * numbers[at : at + before.size].reshape(before.shape)
        np.testing.assert_allclose(after, expected, rtol=2e-6, atol=1e-6)


sizes = st.integers(0, 9 * BLOCK) | st.integers(TOGETHER - 2, 3 * TOGETHER) | st.integers(2**30, 2**31 - 1)


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(st.lists(sizes, min_size=1, max_size=12))
def test_no_two_parameters_have_a_place_in_common(sizes):
    """Nor does one reach over the end of a stream of 2^32 places, where they would begin anew."""
    chunks = chunks_of(sizes)
    assert [leaf for chunk in chunks for leaf in chunk.leaves] == list(range(len(sizes)))
    begins = [chunk.start[0] * 2**32 + chunk.start[1] * BLOCK + offset for chunk in chunks for offset in chunk.offsets]
    parts = sorted((begin, begin + size) for begin, size in zip(begins, sizes, strict=True) if size)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(parts))
    assert all(begin // 2**32 == (end - 1) // 2**32 for begin, end in parts)
    for chunk in chunks:
        assert all(
            offset + sizes[i] <= chunk.blocks * block_length(sizes)
            for i, offset in zip(chunk.leaves, chunk.offsets, strict=True)
        )
        assert len(chunk.leaves) == 1 or sum(sizes[i] for i in chunk.leaves) <= max(TOGETHER, *sizes)


def test_empty_parameters_need_no_noise(key):
    noise, _ = noise_of(transforms.add_gaussian_noise(1.0, key), tree={"a": jnp.zeros(0), "b": jnp.zeros((3, 0))})
    assert jax.tree.map(jnp.shape, noise) == {"a": (0,), "b": (3, 0)}
    assert noise_of(transforms.add_gaussian_noise(1.0, key), tree={})[0] == {}


def test_numbers_of_other_dtypes_and_generators_are_as_independent(key):
    """They are JAX's, each parameter's from a key of its own, which is none that noise was ever drawn from."""
    leaves = [jnp.zeros(SIZE // 10), jnp.zeros(SIZE // 10), jnp.zeros((SIZE // 100, 10))]
    for generator in (jax.random.key(3, impl="rbg"), key):
        with jax.threefry_partitionable(generator is not key):
            draw = lambda n: _with_noise(leaves, [jnp.ones(())] * 3, None, generator, jnp.int32(n), [None] * 3)
            draws = [*draw(0), *draw(1)]
        for i, x in enumerate(draws):
            assert abs(float(jnp.std(x)) - 1) < 5 / np.sqrt(SIZE / 5)
            assert all(correlation(x, y) < 5 / np.sqrt(SIZE // 10) for y in draws[:i])


def test_noise_takes_the_memory_of_two_draws_at_most(key):
    """They are made one after the other, and none before the sums are there, although only these need the examples."""
    shapes = [(1 << 22,), (1 << 21, 2), (2, 1 << 21), (1 << 11, 1 << 11)]
    params = [jnp.zeros(shape) for shape in shapes]
    tx = optax.chain(transforms.add_gaussian_noise(1.0, key), optax.adam(0.1))

    def step(params, state, x):
        activations = jnp.tanh(x @ x)  # as large as a parameter, and gone before the noise
        sums = [jnp.full(shape, jnp.mean(activations)) for shape in shapes]
        updates, state = tx.update(transforms.ClippedSum(sums, 1.0), state)
        return optax.apply_updates(params, updates), state

    x = jnp.zeros((1 << 11, 1 << 11))
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies numbers by counters
        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, tx.init(params), x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2.1 * 4 * (1 << 22)


def test_the_stream_is_of_its_own(key):
    """The same key given to a sampler or used directly yields other bits, and another key other noise."""
    draw = lambda k: np.asarray(noise_of(transforms.add_gaussian_noise(1.0, k))[0]["a"])
    mine = draw(key)
    assert correlation(mine, draw(sampling.key_from_seed(5))) < 5 / np.sqrt(SIZE)
    shape = (SIZE,)
    direct = [key, jax.random.fold_in(key, 0), *jax.random.split(key, 3), *sampling.streams(key)]
    for other in [*direct, jax.random.split(jax.random.fold_in(key, 0), 3)[0]]:
        assert correlation(mine, jax.random.normal(other, shape)) < 5 / np.sqrt(SIZE)
    # `PoissonSampling.sample` draws from the two halves of `fold_in(key, step)`.
    assert sampling.PoissonSampling(SIZE, 0.5).sample(key, 0).mask.any()
    kept = jax.random.bits(jax.random.split(jax.random.fold_in(key, 0))[0], shape, jnp.uint32)
    assert correlation(mine, kept) < 5 / np.sqrt(SIZE)


def test_the_numbers_are_those_of_no_key_that_is_near_at_hand(key):
    """Not of the caller's key, of one folded from it with a step, or of a run's other streams."""
    tree, zero = {"a": jnp.zeros(256)}, jnp.zeros(2, jnp.uint32)
    mine = np.asarray(noise_of(transforms.add_gaussian_noise(1.0, key), tree=tree)[0]["a"])
    near = [key, *(jax.random.fold_in(key, i) for i in range(4)), *jax.random.split(key, 3), *sampling.streams(key)]
    numbers = jax.jit(lambda words: normals_from(words, zero, (256,), block_length([256])))
    for other in near:
        assert not np.any(np.asarray(numbers(jax.random.key_data(other))) == mine)
    # These would be the numbers, were the key tagged as it is.
    tagged = jax.random.fold_in(jax.random.fold_in(key, _NOISE_TAG), 0)
    np.testing.assert_allclose(numbers(jax.random.key_data(tagged)), mine, rtol=1e-5)


def test_streams_that_one_key_may_be_given_for_never_meet():
    """Noise, probes, indicators, bases and directions each fold a tag of their own into the caller's key."""
    tags = {}
    for module in pkgutil.iter_modules(transforms.__path__, transforms.__name__ + "."):
        found = vars(importlib.import_module(module.name))
        tags |= {name: value for name, value in found.items() if name.endswith("_TAG")}
    assert {"_NOISE_TAG", "_OTHER_TAG", "_PROBE_TAG", "_INDICATOR_TAG", "_PROJECTION_TAG", "_DIRECTION_TAG"} <= set(
        tags
    )
    # A run's streams are small numbers folded into its root key.
    assert len(set(tags.values())) == len(tags) and min(tags.values()) > 1000


def test_no_noise_repeats_within_a_run_or_after_a_restart(key):
    """Fifty releases, the last thirty from a state that went through the host, share no vector."""
    tx = transforms.add_gaussian_noise(1.0, key)
    tree = {"a": jnp.zeros(40), "b": jnp.zeros((5, 8))}
    release = jax.jit(lambda state: noise_of(tx, state, tree))

    def releases(state, count):
        drawn = []
        for _ in range(count):
            noise, state = release(state)
            drawn.append(flat64(noise))
        return drawn, state

    whole, _ = releases(tx.init(tree), 50)
    begun, state = releases(tx.init(tree), 20)
    saved = np.asarray(jax.random.key_data(state.key)), np.asarray(state.count)
    restored = transforms.GaussianNoiseState(
        jax.random.wrap_key_data(saved[0], impl=jax.random.key_impl(key)), jnp.asarray(saved[1])
    )
    rest, _ = releases(restored, 30)
    np.testing.assert_array_equal(whole, begun + rest)
    assert len(np.unique(np.reshape(whole, (100, 40)), axis=0)) == 100
    # Single values of float32 do coincide now and then.
    assert len(np.unique(whole)) > 0.99 * 4000
    assert release._cache_size() <= 2


def test_noise_is_added_once_whatever_the_microbatches(key):
    batch = normal_batch(6)
    mask = jnp.arange(6) < 5
    results = []
    for size in (None, 1, 4):
        tx = transforms.dpsgd(max_norm=1.0, noise_multiplier=2.0, expected_batch_size=5.0, key=key)

        @jax.jit
        def release(state):
            grads = jaxdp.per_example_grad(loss)(PARAMS, batch, mask=mask, microbatch_size=size)
            return tx.update(grads, state, PARAMS)

        update, state = release(tx.init(PARAMS))
        assert int(state[1].count) == 1
        results.append(flat64(update))
    # The noise follows the sensitivity, in which microbatches of other sizes need other room for rounding.
    np.testing.assert_allclose(results[1], results[0], rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(results[2], results[0], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_gradients_get_float32_noise(key, dtype):
    params = jnp.zeros(1000, dtype)
    tx = optax.chain(transforms.clip(1.0), transforms.add_gaussian_noise(1.0, key))
    stacked, _ = tx.update(jnp.zeros((2, 1000), dtype), tx.init(params), params)
    grads = jaxdp.per_example_grad(lambda p, x: jnp.sum(p).astype(jnp.float32) * x)(params, jnp.zeros(2))
    lazy, _ = tx.update(grads, tx.init(params), params)
    handmade, _ = noise_of(transforms.add_gaussian_noise(1.0, key), tree=params)
    for update in (stacked, lazy, handmade):
        assert update.dtype == jnp.float32
        # Rounded to half precision, most values would change.
        assert np.mean(np.asarray(update.astype(dtype).astype(jnp.float32)) == np.asarray(update)) < 0.01


def test_no_noise_leaves_the_sum_as_it_is(key):
    tree = {"a": jnp.arange(3.0), "b": jnp.ones((2, 2))}
    same, state = noise_of(transforms.add_gaussian_noise(0, key), tree=tree)
    np.testing.assert_array_equal(flat64(same), flat64(tree))
    assert int(state.count) == 1


def test_a_donated_state_leaves_the_callers_key(key):
    tx = transforms.add_gaussian_noise(1.0, key)
    step = jax.jit(lambda state: noise_of(tx, state, jnp.zeros(3)), donate_argnums=0)
    first, state = step(tx.init(jnp.zeros(3)))
    again, _ = step(tx.init(jnp.zeros(3)))
    np.testing.assert_array_equal(first, again)
    assert int(state.count) == 1


@pytest.mark.parametrize("noise_multiplier", [-0.1, float("nan"), float("inf")])
def test_an_impossible_noise_multiplier_is_refused(key, noise_multiplier):
    with pytest.raises(ValueError, match=r"noise_multiplier is .*finite and not negative"):
        transforms.add_gaussian_noise(noise_multiplier, key)


@pytest.mark.parametrize("noise_multiplier", [True, "1", None])
@pytest.mark.usefixtures("without_type_checks")
def test_a_noise_multiplier_of_another_kind_is_refused(key, noise_multiplier):
    with pytest.raises(TypeError, match=r"noise_multiplier is .*Python number"):
        transforms.add_gaussian_noise(noise_multiplier, key)


@pytest.mark.parametrize(
    "bad", [0, jax.random.PRNGKey(0), jax.random.split(jax.random.key(0)), np.zeros(2, np.uint32), None]
)
@pytest.mark.usefixtures("without_type_checks")
def test_a_seed_or_an_old_style_key_is_refused(bad):
    """Also inside `jit`, where everything is a tracer."""
    with pytest.raises(TypeError, match=r"not a typed PRNG key.*key_from_entropy"):
        transforms.add_gaussian_noise(1.0, bad)
    if isinstance(bad, jax.Array):
        with pytest.raises(TypeError, match="not a typed PRNG key"):
            jax.jit(lambda k: noise_of(transforms.add_gaussian_noise(1.0, k))[0])(bad)


@pytest.mark.parametrize("size", [0, -3.0, float("inf"), float("nan")])
def test_dpsgd_refuses_an_impossible_expected_batch_size(key, size):
    with pytest.raises(ValueError, match=r"expected_batch_size is .*positive and finite"):
        transforms.dpsgd(max_norm=1.0, noise_multiplier=1.0, expected_batch_size=size, key=key)


@pytest.mark.usefixtures("without_type_checks")
def test_dpsgd_refuses_a_batch_size_that_was_drawn(key):
    """The number of examples drawn is private, and known only inside the step."""
    make = lambda n: transforms.dpsgd(max_norm=1.0, noise_multiplier=1.0, expected_batch_size=n, key=key)
    with pytest.raises(TypeError, match=r"expected_batch_size is .*public Python number"):
        jax.jit(lambda mask: make(jnp.sum(mask)).init(jnp.zeros(2)))(jnp.ones(3, bool))
