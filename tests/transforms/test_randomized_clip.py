"""Clipping by estimated norms: what it carries, what it refuses, and its privacy loss in a whole step."""

import math

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp import accounting, transforms
from jaxdp.accounting import RandomizedGaussianDpEvent
from jaxdp.norms import Hutchinson, HutchPP, NormChoice
from tests.drawn import normal

KEY = jax.random.key(3)
NORM = Hutchinson(32)
PARAMS = {"b": jnp.zeros(4), "w": jnp.ones((6, 4))}
BATCH = {"x": normal(1, 3, 5, 6), "factor": jnp.array([1.0, 0.5, 2.0])}


def loss(params, example):
    hidden = jnp.tanh(example["x"] @ params["w"] + params["b"][None])
    return example["factor"] * jnp.sum(jnp.square(hidden))


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimate every norm that can be estimated, however small."""
    monkeypatch.setattr(NormChoice, "estimator", lambda self, k, t, c, p: self.randomized)


def lazy():
    return jaxdp.per_example_grad(loss, method="ghost")(PARAMS, BATCH)


@pytest.mark.quick
def test_the_event_is_that_of_the_groups_and_probes_in_force():
    event = lambda **options: transforms.clip(norm=NORM, key=KEY, **options).dp_event(0.7)
    assert event(max_norm=2.0) == RandomizedGaussianDpEvent(0.7, 32)
    shared = transforms.clip(2.0, norm=HutchPP(64, 8, sharing="example"), key=KEY).dp_event(1.0)
    assert shared == RandomizedGaussianDpEvent(1.0, 64, sharing="example")
    by_layer = event(max_norm=2.0, groups=lazy().groups("param"))
    assert by_layer == RandomizedGaussianDpEvent(0.7, 32, (0.5, 0.5))
    unequal = event(max_norm={"['b']": 3.0, "['w']": 4.0}, groups="param")
    np.testing.assert_allclose(unequal.shares, (16 / 25, 9 / 25))
    assert event(max_norm={"b": 3.0, "w": 4.0}) == unequal
    balanced = event(max_norm={"b": 3.0, "w": 4.0}, noise_shape="equal_budget")
    np.testing.assert_allclose(balanced.shares, (0.5, 0.5))
    shaped = event(max_norm={"b": 3.0, "w": 4.0}, noise_shape={"b": 1.0, "w": 2.0})
    np.testing.assert_allclose(shaped.shares, (9 / 13, 4 / 13))
    assert isinstance(transforms.clip(1.0, norm=NORM, key=KEY).dp_event(0.0), dp_accounting.NonPrivateDpEvent)


@pytest.mark.quick
def test_what_has_no_known_law_is_refused(without_type_checks: None):
    with pytest.raises(TypeError, match="key is None"):
        transforms.clip(1.0, norm=NORM)
    with pytest.raises(TypeError, match="typed PRNG key"):
        transforms.clip(1.0, norm=NORM, key=0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"jaxdp\.norms"):
        transforms.clip(1.0, norm="hutchinson")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="privacy loss of estimated norms depends on"):
        transforms.clip(1.0, norm=NORM, groups="layer", key=KEY).dp_event(0.7)
    with pytest.raises(ValueError, match="no constant bounds"):
        _ = transforms.clip(1.0, norm=NORM, key=KEY).sensitivity
    with pytest.raises(ValueError, match="infinite at every order"):
        accounting.epsilon(
            clip=transforms.clip(1.0, norm=NORM, key=KEY),
            noise_multiplier=1.0,
            delta=1e-5,
            sampling_probability=0.01,
            num_steps=10,
            accountant="rdp",
        )


def test_every_step_draws_new_probes_that_a_restored_state_continues(always: None):
    tx = transforms.clip(0.1, norm=NORM, key=KEY)
    state = tx.init(PARAMS)
    carried = []

    @jax.jit
    def update(state):
        clipped, after = tx.update(lazy(), state)
        carried.append((clipped.norm, round(clipped.sensitivity / (1 + clipped.slack), 12)))
        return clipped.tree["w"][0, 0], after

    steps = []
    for _ in range(3):
        value, state = update(state)
        steps.append(float(value))
    assert carried == [(NORM, 0.1)] and int(state.count) == 3 and len(set(steps)) == 3
    assert float(update(tx.init(PARAMS))[0]) == steps[0]
    assert float(update(state._replace(count=jnp.int32(1)))[0]) == steps[1]
    assert float(update(tx.init(PARAMS)._replace(key=jax.random.fold_in(KEY, 1)))[0]) not in steps


def test_a_stored_gradient_is_clipped_by_its_exact_norm(always: None):
    stacked = jax.vmap(jax.grad(loss), in_axes=(None, 0))(PARAMS, BATCH)
    exact, random = transforms.clip(0.3), transforms.clip(0.3, norm=NORM, key=KEY)
    expected = exact.update(stacked, exact.init(PARAMS), PARAMS)[0]
    for grads in (stacked, jaxdp.per_example_grad(loss, method="materialize")(PARAMS, BATCH)):
        found = random.update(grads, random.init(PARAMS), PARAMS)[0]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found.tree, expected.tree)


def test_a_whole_step_loses_no_more_privacy_than_accounted(always: None):
    """The worst gradient (of rank one, longer than the clipping norm) through clip and noise, with real probes."""
    probes, sigma, count, q = 8, 2.0, 20_000, 0.5
    with pytest.warns(UserWarning, match="probes"):
        event = transforms.clip(1.0, norm=Hutchinson(probes), key=KEY).dp_event(sigma)
    linear = lambda w, x: jnp.sum(x @ w)
    # Two terms: of a single one the norm is known without an estimate, from what it may round.
    w, x = jnp.ones((3, 2)), jnp.ones((1, 2, 3))
    grads = lambda: jaxdp.per_example_grad(linear, method="ghost")(w, x)

    def step(key):
        clip = transforms.clip(1.0, norm=Hutchinson(probes), key=key)
        tx = optax.chain(clip, transforms.add_gaussian_noise(sigma, key))
        total = clip.update(grads(), clip.init(w))[0].tree
        return total, tx.update(grads(), tx.init(w))[0]

    totals, noisy = jax.jit(jax.vmap(step))(jax.random.split(jax.random.key(9), count))
    direction = np.ones(6) / math.sqrt(6)
    shift = np.asarray(totals, np.float64).reshape(count, 6) @ direction
    seen = np.asarray(noisy, np.float64).reshape(count, 6) @ direction
    assert np.mean(shift > 1.05) > 0.1  # contributions do exceed the clipping norm
    # What the observer sees with and without the record, and the likelihood ratio of both, given the probes.
    drawn = np.random.default_rng(0).random(count) < q
    present = np.where(drawn, seen, seen - shift)
    ratio = lambda y: np.log1p(q * np.expm1((y * shift - shift**2 / 2) / sigma**2))
    sampled = dp_accounting.PoissonSampledDpEvent(q, event)
    for epsilon in (0.1, 0.3, 0.6):
        removed = np.maximum(0.0, -np.expm1(epsilon - ratio(present)))
        added = np.maximum(0.0, -np.expm1(epsilon + ratio(seen - shift)))
        allowed = accounting.delta_of(sampled, epsilon)
        for losses in (removed, added):
            assert losses.mean() - 4 * losses.std() / math.sqrt(count) <= allowed, epsilon
        # It is the worst case: the analysis is not far above it.
        assert allowed <= removed.mean() * 1.15 + 4 * removed.std() / math.sqrt(count), epsilon
