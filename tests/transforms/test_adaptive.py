"""Thresholds that follow a quantile: what moves them, what their noise is, and what a step costs in privacy."""

import math

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdp
from jaxdp import accounting, sampling, transforms
from jaxdp.per_example import Blocks, Groups
from jaxdp.transforms import _adaptive, _noise
from tests.drawn import normal
from tests.transforms.small import PARAMS, batch_of, flat64, loss, normal_batch, stacked_grads
from tests.transforms.styles import STYLES

EXPECTED, RATE, SLOW, QUANTILE = 9.0, 0.3, 0.01, 0.6
MANY = 20_000


def adaptive(key, initial_norm=1.0, stddev=0.0, **options):
    settled = {"target_quantile": QUANTILE, "learning_rate": RATE, "expected_batch_size": EXPECTED} | options
    return transforms.adaptive_clip(initial_norm, key=key, indicator_noise_stddev=stddev, **settled)


def chained(key, noise_multiplier, **options):
    return optax.chain(adaptive(key, **options), transforms.add_gaussian_noise(noise_multiplier, key))


def many_groups(key, stddev, **options):
    """As many groups as entries, so that one step draws many times."""
    groups = Groups(tuple(range(MANY)), ((MANY,),), (tuple(range(MANY)),))
    # No gradient at all is below every threshold; at a slow rate none of them comes near the floor.
    return (
        adaptive(key, stddev=stddev, groups=groups, learning_rate=SLOW, **options),
        jnp.zeros(MANY),
        jnp.zeros((1, MANY)),
    )


def sum_of_indicators(before, after, rate=RATE):
    """What a step released, read off the thresholds that it left."""
    share = QUANTILE - np.log(np.asarray(after, np.float64) / np.asarray(before, np.float64)) / rate
    return (share - 0.5) * EXPECTED


@pytest.mark.quick("all-auto")
@pytest.mark.parametrize("source", ["stacked", "auto"])
@pytest.mark.parametrize("style", ["all", "param", "prefix"])
def test_one_step_equals_numpy(key, style, source):
    """Five examples where nine are expected: it is the expected number that the indicators are divided by."""
    chosen, size = STYLES[style], 5
    batch = normal_batch(size + 2)
    mask = np.arange(size + 2) < size
    tx = adaptive(key, chosen.max_norm, groups=chosen.groups)
    grads = stacked_grads(PARAMS, jax.tree.map(lambda x: x[:size], batch))
    if source == "stacked":
        given = grads
    else:
        given = jaxdp.per_example_grad(loss, method=source)(PARAMS, batch, mask=jnp.asarray(mask), microbatch_size=3)
    state = tx.init(PARAMS)
    total, after = tx.update(given, state, PARAMS)
    np.testing.assert_allclose(state.thresholds, chosen.bounds, rtol=1e-6)
    leaves = [np.asarray(leaf, np.float64).reshape(size, -1) for leaf in jax.tree.leaves(grads)]
    for group, bound in enumerate(chosen.bounds):
        mine = [leaf for leaf, own in zip(leaves, chosen.group_of_leaf, strict=True) if own == group]
        below = np.linalg.norm(np.concatenate(mine, axis=1), axis=1) <= bound
        share = 0.5 + np.sum(below - 0.5) / EXPECTED
        assert float(after.thresholds[group]) == pytest.approx(bound * math.exp(-RATE * (share - QUANTILE)), rel=1e-5)
    fixed, _ = transforms.clip(chosen.max_norm, groups=chosen.groups).update(given, None, PARAMS)
    np.testing.assert_allclose(flat64(total.tree), flat64(fixed.tree), rtol=1e-5, atol=1e-6)
    assert float(total.sensitivity) == pytest.approx(fixed.sensitivity, rel=1e-6)


@pytest.mark.parametrize("rule", ["flat", "auto_s", "auto_v"])
def test_the_sum_is_that_of_clip_at_the_thresholds_in_force(key, rule):
    """Not at those that this very batch leads to; under every rule, divided by the sensitivity or not."""
    grads = stacked_grads(PARAMS, normal_batch(5))
    for normalize, shape in ((False, "isotropic"), (True, "equal_budget"), (True, {"dense": 1.0, "head": 4.0})):
        bounds = {"dense": 0.3, "head": 1.1}
        options = {"rule": rule, "normalize": normalize, "noise_shape": shape}
        tx = adaptive(key, {"dense": 1.0, "head": 1.0}, **options)
        state = tx.init(PARAMS)._replace(thresholds=jnp.array(list(bounds.values())))
        total, after = tx.update(grads, state, PARAMS)
        fixed, _ = transforms.clip(bounds, **options).update(grads, None, PARAMS)
        np.testing.assert_allclose(flat64(total.tree), flat64(fixed.tree), rtol=1e-5, atol=1e-6)
        assert float(total.sensitivity) == pytest.approx(fixed.sensitivity, rel=1e-6)
        if shape == "isotropic":
            assert total.noise_scales is None and fixed.noise_scales is None
        else:
            np.testing.assert_allclose(flat64(total.noise_scales), flat64(fixed.noise_scales), rtol=1e-5)
        assert np.all(after.thresholds != state.thresholds)


@pytest.mark.parametrize("stddev, tolerance", [(0.0, 0.02), (5.0, 0.05)])
@pytest.mark.parametrize("quantile", [0.3, 0.8])
def test_the_threshold_converges_to_the_quantile(key, quantile, stddev, tolerance):
    """Norms of 400 examples, drawn by Poisson sampling with 100 expected; from a hundredth and a hundredfold of it."""
    norms = jnp.exp(normal(8, 400))
    for start in (0.01, 100.0):
        tx = adaptive(key, start, stddev, target_quantile=quantile, expected_batch_size=100.0)

        def step(carry, step_key):
            state, total = carry
            drawn = jax.random.bernoulli(step_key, 0.25, (400,))
            grads = jaxdp.per_example_grad(lambda w, x: w * x)(jnp.float32(1.0), norms, mask=drawn)
            _, state = tx.update(grads, state)
            return (state, total), jnp.log(state.thresholds[0])

        start_state = (tx.init(jnp.float32(1.0)), 0.0)
        _, logs = jax.jit(lambda: jax.lax.scan(step, start_state, jax.random.split(key, 400)))()
        found = float(jnp.mean(norms <= jnp.exp(jnp.mean(logs[-200:]))))
        assert found == pytest.approx(quantile, abs=tolerance)


def test_the_stated_multiplier_is_that_of_both_releases_together(key):
    """Epsilon of the event equals that of composing what the sum and the indicators really are released with."""
    for count, stddev, joint in ((1, 2.0, 1.1), (3, 6.4, 0.7), (MANY, 200.0, 0.9)):
        groups = {1: "all", 3: "param", MANY: Groups(tuple(range(MANY)), ((MANY,),), (tuple(range(MANY)),))}[count]
        params = jnp.zeros(MANY) if count == MANY else PARAMS
        tx = adaptive(key, stddev=stddev, groups=groups)
        total, _ = tx.update(jax.tree.map(lambda p: jnp.zeros((1, *p.shape)), params), tx.init(params), params)
        own = total.noise_multiplier(joint)
        assert own > joint
        both = [dp_accounting.GaussianDpEvent(own), dp_accounting.GaussianDpEvent(2 * stddev / math.sqrt(count))]
        accountant = PLDAccountant()
        accountant.compose(dp_accounting.ComposedDpEvent(both), 10)
        stated = accounting.epsilon_of(dp_accounting.SelfComposedDpEvent(tx.dp_event(joint), 10), 1e-5)
        assert accountant.get_epsilon(1e-5) == pytest.approx(stated, rel=1e-3)
        # On one Poisson sample, too.
        sampled = lambda event: dp_accounting.PoissonSampledDpEvent(0.1, event)
        whole = accounting.epsilon_of(sampled(tx.dp_event(joint)), 1e-5, "rdp")
        parts = accounting.epsilon_of(sampled(dp_accounting.ComposedDpEvent(both)), 1e-5, "rdp")
        assert whole == pytest.approx(parts, rel=1e-6)


def test_the_noise_drawn_is_what_the_accounting_says(key):
    """On the indicators their std, on the sum the larger multiplier times the sensitivity of the step's thresholds."""
    joint, stddev = 0.9, 100.0
    clipping, params, grads = many_groups(key, stddev)
    tx = optax.chain(clipping, transforms.add_gaussian_noise(joint, key))
    noise, state = tx.update(grads, tx.init(params), params)
    drawn = sum_of_indicators(jnp.full(MANY, 1 / math.sqrt(MANY)), state[0].thresholds, SLOW) - 0.5
    own = (joint**-2 - MANY / (4 * stddev**2)) ** -0.5
    for sample in (drawn / stddev, np.asarray(noise, np.float64) / own):
        assert abs(sample.mean()) < 5 / np.sqrt(MANY)
        assert abs(sample.std() - 1) < 5 / np.sqrt(2 * MANY)
    assert own == pytest.approx(1.18, abs=0.02)
    # The next step's sensitivity is that of the thresholds that this step left.
    state = (state[0]._replace(thresholds=3.0 * state[0].thresholds), state[1])
    later, _ = tx.update(grads, state, params)
    expected = own * np.linalg.norm(np.asarray(state[0].thresholds, np.float64))
    assert float(jnp.std(later)) == pytest.approx(expected, rel=5 / np.sqrt(2 * MANY))


def test_the_indicators_noise_is_a_stream_of_its_own(key):
    """Independent of the sum's from the same key, from step to step, and gone on with after a restart."""
    # A key that is both split and drawn from would give draws that no correlation shows.
    assert _adaptive._INDICATOR_TAG != _noise._NOISE_TAG
    clipping, params, grads = many_groups(key, 100.0)
    tx = optax.chain(clipping, transforms.add_gaussian_noise(0.5, key))
    state, draws = tx.init(params), []
    for _ in range(3):
        before = state[0].thresholds
        noise, state = tx.update(grads, state, params)
        draws += [sum_of_indicators(before, state[0].thresholds, SLOW), np.asarray(noise)]
        data, count = np.asarray(jax.random.key_data(state[0].key)), np.asarray(state[0].count)
        restored = transforms.AdaptiveClipState(
            jnp.asarray(np.asarray(state[0].thresholds)),
            jax.random.wrap_key_data(data, impl=jax.random.key_impl(key)),
            jnp.asarray(count),
        )
        again, _ = tx.update(grads, (restored, state[1]), params)
        straight, _ = tx.update(grads, state, params)
        np.testing.assert_array_equal(again, straight)
    assert int(state[0].count) == 3
    for i in range(len(draws)):
        for j in range(i):
            assert abs(np.corrcoef(draws[i], draws[j])[0, 1]) < 5 / np.sqrt(MANY)


@pytest.mark.parametrize("style", ["all", "param"])
def test_one_example_moves_both_releases_by_at_most_what_is_accounted(key, style):
    """The sum over its noise and the indicators over theirs, together at most 1/sigma."""
    chosen, stddev, joint = STYLES[style], 3.0, 1.2
    tx = adaptive(key, chosen.max_norm, groups=chosen.groups)
    noisy = adaptive(key, chosen.max_norm, stddev, groups=chosen.groups)
    assert noisy.spec == tx.spec

    @jax.jit
    def release(batch, mask, thresholds):
        grads = jaxdp.per_example_grad(loss)(PARAMS, batch, mask=mask)
        total, state = tx.update(grads, tx.init(PARAMS)._replace(thresholds=thresholds), PARAMS)
        return total.tree, total.sensitivity, state.thresholds

    # Where the chain spends what, without drawing: the shares of precision are public numbers.
    nothing = jax.tree.map(lambda p: jnp.zeros((1, *p.shape)), PARAMS)
    own = noisy.update(nothing, noisy.init(PARAMS), PARAMS)[0].noise_multiplier(joint)
    factors = st.one_of(st.floats(-50, 50, width=32), st.sampled_from([math.nan, math.inf, 1e30, 0.0]))

    @settings(max_examples=30, deadline=None, derandomize=True, database=None)
    @given(factor=factors, position=st.integers(0, 2), scale=st.floats(2**-6, 50.0, width=32))
    def check(factor, position, scale):
        batch = batch_of(np.random.default_rng(0).normal(size=(3, 3)), np.insert([1.0, -40.0], position, factor))
        thresholds = jnp.asarray(scale * np.array(chosen.bounds), jnp.float32)
        with_it, sensitivity, after = release(batch, jnp.ones(3, bool), thresholds)
        without_it, _, before = release(batch, jnp.arange(3) != position, thresholds)
        in_sum = np.linalg.norm(flat64(with_it) - flat64(without_it)) / (own * float(sensitivity))
        in_indicators = np.linalg.norm(sum_of_indicators(thresholds, after) - sum_of_indicators(thresholds, before))
        assert in_indicators == pytest.approx(math.sqrt(len(chosen.bounds)) / 2, rel=1e-3)
        assert math.hypot(in_sum, in_indicators / stddev) <= 1 / joint * (1 + 1e-4)

    check()


@pytest.mark.parametrize("source", ["stacked", "auto"])
def test_an_example_that_is_not_finite_counts_as_above(key, source):
    after = []
    for factor in (1e6, math.nan, math.inf, 1e30):
        batch = batch_of(normal_batch(4)["x"], [factor, 1.0, 0.1, 0.1])
        grads = stacked_grads(PARAMS, batch) if source == "stacked" else jaxdp.per_example_grad(loss)(PARAMS, batch)
        tx = adaptive(key, 1.0, groups="param")
        _, state = tx.update(grads, tx.init(PARAMS), PARAMS)
        after.append(np.asarray(state.thresholds))
    for thresholds in after[1:]:
        np.testing.assert_array_equal(thresholds, after[0])


def test_the_threshold_stays_between_floor_and_ceiling(key):
    zeros, huge = jnp.zeros((9, 2)), jnp.full((9, 2), 1e10)
    low = adaptive(key, 1.0, learning_rate=30.0, floor=0.25)
    state = low.init(jnp.zeros(2))
    for expected in (0.25, 0.25):
        _, state = low.update(zeros, state, jnp.zeros(2))
        assert float(state.thresholds[0]) == pytest.approx(expected)
    high = adaptive(key, 1.0, learning_rate=300.0)
    _, state = high.update(huge, high.init(jnp.zeros(2)), jnp.zeros(2))
    assert float(state.thresholds[0]) == pytest.approx(1e15)
    with pytest.raises(ValueError, match=r"floor is 2.0, above the first threshold, 1: lower it"):
        adaptive(key, 1.0, floor=2.0).init(jnp.zeros(2))


def test_an_empty_batch_moves_the_threshold_by_noise_alone(key):
    grads = jaxdp.per_example_grad(loss)(PARAMS, normal_batch(3), mask=jnp.zeros(3, bool))
    tx = adaptive(key, 1.0)
    total, state = tx.update(grads, tx.init(PARAMS))
    assert float(state.thresholds[0]) == pytest.approx(math.exp(-RATE * (0.5 - QUANTILE)), rel=1e-6)
    np.testing.assert_array_equal(flat64(total.tree), 0.0)


def test_indicators_that_spend_the_whole_budget_are_refused(key):
    """With the least std that would do, as soon as the number of groups is known; at update in a chain of one's own."""
    options = {"initial_norm": 1.0, "noise_multiplier": 2.0, "expected_batch_size": 8.0, "key": key, "groups": "param"}
    for stddev in (math.sqrt(3) * 0.999, 0.0):
        with pytest.raises(ValueError, match=r"indicator_noise_stddev is .*3 groups: give more than 1.73205 \("):
            transforms.adaptive_dpsgd(indicator_noise_stddev=stddev, **options).init(PARAMS)
        tx = chained(key, 2.0, stddev=stddev, groups="param")
        grads = stacked_grads(PARAMS, normal_batch(3))
        with pytest.raises(ValueError, match=r"noise_multiplier is 2.0, that of everything .*leaves nothing"):
            tx.update(grads, tx.init(PARAMS), PARAMS)
    transforms.adaptive_dpsgd(indicator_noise_stddev=math.sqrt(3) * 1.001, **options).init(PARAMS)
    # The default's noise multiplier is a tenth of the expected batch size, for every number of groups.
    with pytest.raises(ValueError, match="leaves nothing"):
        transforms.adaptive_dpsgd(**options).init(PARAMS)
    transforms.adaptive_dpsgd(**(options | {"expected_batch_size": 21.0})).init(PARAMS)


def test_without_noise_on_the_indicators_there_is_no_privacy(key):
    assert adaptive(key).dp_event(1.0) == dp_accounting.NonPrivateDpEvent()
    assert adaptive(key, stddev=3.0).dp_event(0) == dp_accounting.NonPrivateDpEvent()
    assert adaptive(key, stddev=3.0).dp_event(1.5) == dp_accounting.GaussianDpEvent(1.5)
    tx = chained(key, 0.0)
    tx.update(stacked_grads(PARAMS, normal_batch(3)), tx.init(PARAMS), PARAMS)


def test_calibration_and_the_statement_take_it_like_any_clipping(key):
    sampler = sampling.PoissonSampling.from_expected_batch_size(1000, 64.0)
    clip = transforms.adaptive_clip(1.0, expected_batch_size=sampler.expected_batch_size, key=key)
    plan = {"target_epsilon": 3.0, "delta": 1e-5, "sampling_probability": 0.05, "num_steps": 50, "accountant": "rdp"}
    sigma = accounting.calibrate_noise_multiplier(clip=clip, **plan)
    assert sigma == accounting.calibrate_noise_multiplier(clip=transforms.clip(1.0), **plan)
    private = transforms.adaptive_dpsgd(
        initial_norm=1.0, noise_multiplier=sigma, expected_batch_size=sampler.expected_batch_size, key=key
    )
    assert private.dp_event() == dp_accounting.GaussianDpEvent(sigma)
    phase = accounting.Phase.of(
        name="all", mechanism="adaptive", clip=private.clip, sampling=sampler, noise_multiplier=sigma, num_steps=50
    )
    assert phase.event == sampler.event(private.dp_event(), 50)


def test_the_convenience_is_the_chain(key):
    options = {"groups": "param", "rule": "auto_s", "noise_shape": "equal_budget", "normalize": True}
    private = transforms.adaptive_dpsgd(
        initial_norm=0.7,
        noise_multiplier=1.0,
        expected_batch_size=EXPECTED,
        key=key,
        target_quantile=QUANTILE,
        learning_rate=RATE,
        indicator_noise_stddev=4.0,
        **options,
    )
    chain = optax.chain(chained(key, 1.0, initial_norm=0.7, stddev=4.0, **options), optax.scale(1 / EXPECTED))
    batch = normal_batch(4)

    @jax.jit
    def run():
        ours, theirs, released = private.init(PARAMS), chain.init(PARAMS), []
        for _ in range(2):
            grads = jaxdp.per_example_grad(loss)(PARAMS, batch)
            update, ours = private.update(grads, ours, PARAMS)
            expected, theirs = chain.update(grads, theirs, PARAMS)
            released.append((update, expected))
        return released, ours[0]

    released, state = run()
    for update, expected in released:
        np.testing.assert_allclose(flat64(update), flat64(expected), rtol=1e-5, atol=1e-6)
    assert int(state.count) == 2 and state.thresholds.shape == (3,)


def test_groups_that_only_the_loss_tells_apart_are_refused(key):
    """A model that scans over its layers has more groups than its parameters show."""
    params = {"layers": {"w": jnp.ones((2, 3)), "b": jnp.ones((2, 3))}, "out": jnp.ones(3)}

    def scanned(p, x):
        h, _ = jax.lax.scan(lambda h, layer: (jnp.tanh(h * layer["w"] + layer["b"]), None), x, p["layers"])
        return h @ p["out"]

    batch = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)
    grads = jaxdp.per_example_grad(scanned)(params, batch)
    tx = adaptive(key, groups="layer")
    with pytest.raises(ValueError, match=r"2 thresholds where this loss has 3 groups.*groups\(spec\)"):
        tx.update(grads, tx.init(params), params)
    for groups, count in ((grads.groups("layer"), 3), (Blocks(3), 3), ("all", 1)):
        fine = adaptive(key, groups=groups)
        total, state = fine.update(grads, fine.init(params), params)
        assert state.thresholds.shape == (count,)
        assert float(total.sensitivity) == pytest.approx(1.0 + total.slack, rel=1e-6)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"expected_batch_size": 0.0}, ValueError, "expected_batch_size is 0.0"),
        ({"expected_batch_size": True}, TypeError, "expected_batch_size is True"),
        ({"target_quantile": 0.0}, ValueError, "target_quantile is 0.0: it must lie between 0 and 1"),
        ({"target_quantile": 1}, ValueError, "target_quantile is 1"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate is 0.0"),
        ({"learning_rate": math.nan}, ValueError, "learning_rate is nan"),
        ({"stddev": -1.0}, ValueError, "indicator_noise_stddev is -1.0"),
        ({"stddev": math.inf}, ValueError, "indicator_noise_stddev is inf"),
        ({"stddev": "1"}, TypeError, "indicator_noise_stddev is '1'"),
        ({"floor": 0.0}, ValueError, "floor is 0.0"),
        ({"initial_norm": 0.0}, ValueError, "initial_norm is 0.0"),
        ({"key": 3}, TypeError, "not a typed PRNG key"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_impossible_arguments_are_refused(key, options, error, message):
    with pytest.raises(error, match=message):
        adaptive(**({"key": key} | options))


def test_wrong_wiring_is_refused(key):
    tx, grads = adaptive(key), stacked_grads(PARAMS, normal_batch(3))
    averaged = jax.tree.map(lambda g: g[0], grads)
    with pytest.raises(TypeError, match="parameter's own shape"):
        tx.update(averaged, tx.init(PARAMS), PARAMS)
    with pytest.raises(TypeError, match="adaptive_clip was given a sum that is already clipped"):
        tx.update(tx.update(grads, tx.init(PARAMS), PARAMS)[0], tx.init(PARAMS), PARAMS)
    with pytest.raises(TypeError, match="adaptive_clip sees only a part"):
        optax.masked(tx, {"dense": True, "head": False}).init(PARAMS)
