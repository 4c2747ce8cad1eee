"""The same results as jax_privacy's own `clipped_grad`, and inside its execution plan."""

import contextlib
import dataclasses
from types import SimpleNamespace

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp.interop.jax_privacy import clipped_grad, execution_plan
from tests.drawn import normal
from tests.interop.models import BATCH, PADDING, PARAMS, X, Y, assert_equal_but_for_slack, flat, loss, loss_with_all

jax_privacy = pytest.importorskip("jax_privacy")
plans = pytest.importorskip("jax_privacy.experimental.execution_plan")

# Theirs, from optax.
pytestmark = pytest.mark.filterwarnings("ignore:optax.global_norm is deprecated:DeprecationWarning")

Neighbors = dp_accounting.NeighboringRelation
REAL = ~np.asarray(PADDING)

# (function, keywords, positional arguments, keyword arguments of the call)
CASES = {
    "sum": (loss, {"batch_argnums": (1, 2)}, (PARAMS, X, Y), {}),
    "normalised, rescaled, example without a batch axis": (
        loss,
        {"batch_argnums": (1, 2), "keep_batch_dim": False, "normalize_by": 7.0, "rescale_to_unit_norm": True},
        (PARAMS, X, Y),
        {"is_padding_example": PADDING},
    ),
    "users": (
        loss,
        {"batch_argnums": (1, 2), "keep_batch_dim": False, "dtype": np.float32},
        (PARAMS, X.reshape(3, 2, 3), Y.reshape(3, 2)),
        {},
    ),
    "everything else": (
        loss_with_all,
        {
            "argnums": (0,),
            "has_aux": True,
            "batch_argnums": (3, 4),
            "prng_argnum": 1,
            "return_values": True,
            "return_grad_norms": True,
            "microbatch_size": 2,
        },
        (PARAMS, jax.random.key(5), 0.5, X, Y),
        {"weight": jnp.linspace(0.5, 1.5, BATCH), "is_padding_example": PADDING},
    ),
}


@contextlib.contextmanager
def usual_promotion():
    """Their arithmetic is not written for strict promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def run(make, fun, keywords, args, kwargs):
    """Compiled; argument 2 may be a Python number that must stay one."""
    fn = make(fun, **keywords)
    return jax.jit(lambda params, kwargs: fn(params, *args[1:], **kwargs))(args[0], kwargs)


def assert_close(ours, expected):
    """Equal structures (named tuples by their fields) and equal numbers."""
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    sums, rest = (ours[0], ours[1:]) if type(ours) is tuple else (ours, ())
    their_sums, their_rest = (expected[0], expected[1:]) if type(expected) is tuple else (expected, ())
    assert_equal_but_for_slack(sums, their_sums)
    for got, want in zip(jax.tree.leaves((sums, rest)), jax.tree.leaves((their_sums, their_rest)), strict=True):
        assert got.dtype == want.dtype
    for got, want in zip(jax.tree.leaves(rest), jax.tree.leaves(their_rest), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_jax_privacy(name):
    fun, keywords, args, kwargs = CASES[name]
    keywords = {"l2_clip_norm": 1.5} | keywords
    ours = run(clipped_grad, fun, keywords, args, kwargs)
    with usual_promotion():
        expected = run(jax_privacy.clipped_grad, fun, keywords, args, kwargs)
    if isinstance(expected, tuple) and len(expected) == 2:
        (ours, own), (expected, aux) = ours, expected
        assert own._fields == aux._fields
        real = lambda tree: jax.tree.map(lambda x: x[REAL], tuple(tree))
        assert_close(real(own), real(aux))
    assert_close(ours, expected)


@pytest.mark.parametrize("rescale", [False, True])
def test_edge_cases_of_the_clipping_norm(rescale):
    """Zero, below zero and infinity, as traced values of one compiled function."""
    x, y = X.at[0].set(0.0), Y.at[1].set(jnp.nan)
    linear = lambda w, x, y: jnp.mean(y * (x @ w))

    def compiled(make):
        keywords = {"rescale_to_unit_norm": rescale, "batch_argnums": (1, 2)}
        return jax.jit(lambda clip: make(linear, l2_clip_norm=clip, **keywords)(jnp.ones(3), x, y))

    ours, own = compiled(clipped_grad), compiled(jax_privacy.clipped_grad)
    for clip in map(jnp.float32, (0.0, -1.0, 0.7, np.inf)):
        with usual_promotion():
            expected = own(clip)
        assert_close(ours(clip), expected)


@pytest.mark.quick
def test_sensitivities_are_those_of_jax_privacy():
    for clip, rescale, normalize_by in [(1.5, False, 1.0), (1.5, True, 1.0), (0.25, False, 8), (0.25, True, 8.0)]:
        keywords = {"l2_clip_norm": clip, "rescale_to_unit_norm": rescale, "normalize_by": normalize_by}
        ours, own = clipped_grad(loss, **keywords), jax_privacy.clipped_grad(loss, **keywords)
        assert ours.l2_norm_bound == own.l2_norm_bound
        assert ours.sensitivity() == own.sensitivity()
        for relation in Neighbors:
            assert ours.sensitivity(relation) == own.sensitivity(relation)
    assert clipped_grad(loss, l2_clip_norm=1.0, return_values=True).has_aux


EXAMPLES, STEPS = 24, 5
DATA = normal(6, EXAMPLES, 3), jnp.linspace(-2.0, 2.0, EXAMPLES)


def config(**fields):
    """Two bands: correlated noise, and batches drawn from each half of the data in turn."""
    fields = {
        "iterations": STEPS,
        "sampling_prob": 0.5,
        "epsilon": None,
        "delta": None,
        "noise_multiplier": 0.3,
    } | fields
    return plans.BandMFExecutionPlanConfig(strategy=np.array([1.0, 0.5]), noise_seed=3, **fields)


def train(plan, **keywords):
    """Five steps; returns the parameters and what was added to the last sum as noise."""
    fn = plan.clipped_grad(loss, batch_argnums=(1, 2), **keywords)

    @jax.jit
    def step(params, state, x, y, padding):
        clean = fn(params, x, y, is_padding_example=padding)
        noisy, state = plan.noise_addition_transform.update(clean, state)
        return jax.tree.map(lambda p, g: p - 0.2 * g, params, noisy), state, clean

    with usual_promotion():
        params, state = PARAMS, plan.noise_addition_transform.init(PARAMS)
        sums = []
        for drawn in plan.batch_selection_strategy.batch_iterator(EXAMPLES, rng=0):
            rows = jax_privacy.batch_selection.pad_to_multiple_of(drawn, EXAMPLES // 2)
            x, y = (column[rows] for column in DATA)
            params, state, clean = step(params, state, x, y, rows == -1)
            sums.append(flat(clean))
    assert step._cache_size() == 1
    return flat(params), np.array(sums)


def test_training_in_their_execution_plan_gives_their_parameters():
    """Their batches, their matrix-factorisation noise and their accounting, with jaxdp's gradients."""
    settings = config(l2_clip_norm=0.8, normalize_by=6.0)
    plan = execution_plan(settings)
    ours, our_sums = train(plan, microbatch_size=4)
    expected, their_sums = train(settings.plan)
    assert_equal_but_for_slack(our_sums, their_sums)
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert np.linalg.norm(our_sums, axis=1).min() > 0
    assert plan.dp_event == settings.plan.dp_event
    with pytest.raises(TypeError, match="l2_clip_norm"):  # the noise was made for the configuration's own
        plan.clipped_grad(loss, l2_clip_norm=8.0)


def test_a_plan_keeps_the_sensitivity_that_its_noise_was_made_for():
    accountant = dp_accounting.pld.PLDAccountant(Neighbors.REPLACE_ONE)
    settings = config(l2_clip_norm=0.8, rescale_to_unit_norm=False, accountant=accountant)
    plan = execution_plan(settings, groups="param", method="ghost")
    assert plan.clipped_grad(loss).sensitivity(Neighbors.REPLACE_ONE) == 1.6


def test_a_configuration_of_another_sensitivity_is_refused():
    settings = config(l2_clip_norm=0.8)
    other = SimpleNamespace(sensitivity=lambda relation: 3.0)
    fields = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    strange = SimpleNamespace(**fields, plan=dataclasses.replace(settings.plan, clipped_grad=lambda fun: other))
    with pytest.raises(ValueError, match=r"config has a sensitivity of 3\.0 under REPLACE_SPECIAL"):
        execution_plan(strange)
    with pytest.raises(ValueError, match="dtype is float16"):
        execution_plan(config(dtype=np.float16))
