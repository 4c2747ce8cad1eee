"""Adding or removing any one example moves the clipped sum by at most its sensitivity."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import jaxdp
from jaxdp import transforms
from jaxdp.transforms._spec import clipping_weights
from tests.transforms.small import DIM, PARAMS, batch_of, flat64, loss, stacked_grads
from tests.transforms.styles import MAX_NORM, STYLES

BATCH, SLACK = 3, 1e-5
RULES = tuple(itertools.product(("flat", "auto_s", "auto_v"), (False, True)))
SHAPES = ("isotropic", "equal_budget", "numbers")

# Features reach from where float32 loses the squares to where it overflows.
FEATURES = st.one_of(
    st.floats(-3, 3, width=32),
    st.sampled_from([0.0, 1e-20, -3e-19, 1e-12, 1e18, 3e38, float("inf"), float("nan")]),
)
FACTORS = st.one_of(
    st.floats(-100, 100, width=32),
    st.sampled_from([0.0, 1e-30, 1e-19, 1e15, 1e19, -1e30, 3e38, float("inf"), float("-inf"), float("nan")]),
)


def chain(style: str, rule: str, normalize: bool, noise_shape: Any = "isotropic") -> transforms.Clip:
    chosen = STYLES[style]
    shape = chosen.noise_shape if noise_shape == "numbers" else noise_shape
    return transforms.clip(chosen.max_norm, groups=chosen.groups, rule=rule, normalize=normalize, noise_shape=shape)


@functools.cache
def clipped_sums(style: str, source: str, rules: tuple) -> Callable:
    """One compilation per way in: the sums under these rules, with and without the last example."""
    chains = [chain(style, *rule) for rule in rules]

    def sums(batch: dict, mask: jax.Array) -> list:
        if source == "stacked":
            given = stacked_grads(PARAMS, batch)
            # Rows that a mask leaves out are rows that are not there.
            given = jax.tree.map(lambda g: jnp.where(mask.reshape((-1,) + (1,) * (g.ndim - 1)), g, 0), given)
        else:
            given = jaxdp.per_example_grad(loss, method=source)(PARAMS, batch, mask=mask)
        return [tx.update(given, tx.init(PARAMS), PARAMS)[0].tree for tx in chains]

    return jax.jit(sums)


@functools.cache
def bounds_of(style: str, rules: tuple) -> tuple[list, list]:
    """Under these rules, the stated sensitivity and the scales of every noise shape, one number for each entry."""
    nothing = jax.tree.map(lambda p: jnp.zeros((1, *p.shape)), PARAMS)
    sensitivities, scales = [], []
    for rule in rules:
        released = [chain(style, *rule, shape).update(nothing, None, PARAMS)[0] for shape in SHAPES]
        assert len({total.sensitivity for total in released}) == 1 and released[0].noise_scales is None
        sensitivities.append(released[0].sensitivity)
        spread = lambda scale, p: np.broadcast_to(scale, p.shape)
        scales.append([flat64(jax.tree.map(spread, total.noise_scales, PARAMS)) for total in released[1:]])
    return sensitivities, scales


METHODS = ("ghost", "bookkeeping", "fused", "materialize", "auto")
# Rules differ in the weight alone, which no method knows: every style has all of them in one way, the others have two.
WAYS = [(style, "stacked", RULES) for style in STYLES]
WAYS += [(style, method, (("flat", False), ("auto_s", True))) for style in STYLES for method in METHODS]


@pytest.mark.parametrize("style, source, rules", [pytest.param(*way, id="-".join(way[:2])) for way in WAYS])
def test_one_example_moves_the_sum_by_at_most_the_sensitivity(style, source, rules):
    """In L2 norm by the sensitivity, and divided by the scales of shaped noise by one."""
    run = clipped_sums(style, source, rules)
    sensitivities, scales = bounds_of(style, rules)
    others = np.random.default_rng(0).normal(size=(BATCH - 1, DIM))

    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(x=st.tuples(*[FEATURES] * DIM), factor=FACTORS, position=st.integers(0, BATCH - 1))
    @example(x=(1.0, 1.0, 1.0), factor=1e30, position=0)
    @example(x=(1.0, 1.0, 1.0), factor=1e4, position=0)
    @example(x=(1.0, 1.0, 1.0), factor=float("nan"), position=1)
    @example(x=(float("inf"), 1.0, 1.0), factor=1.0, position=2)
    @example(x=(1e-20, 1e-20, 1e-20), factor=1e19, position=0)
    @example(x=(1.0, 1.0, 1.0), factor=0.0, position=1)
    def check(x, factor, position):
        rows = np.insert(others, position, x, axis=0)
        factors = np.insert(np.array([1.0, -40.0]), position, factor)
        everyone = np.ones(BATCH, bool)
        batch = batch_of(rows, factors)
        before = run(batch, np.arange(BATCH) != position)
        after = run(batch, everyone)
        for rule, with_it, without_it, sensitivity, shapes in zip(
            rules, after, before, sensitivities, scales, strict=True
        ):
            change = flat64(with_it) - flat64(without_it)
            assert np.all(np.isfinite(flat64(with_it)))
            assert np.linalg.norm(change) <= sensitivity * (1 + SLACK), (rule, np.linalg.norm(change))
            for shape in shapes:
                assert np.linalg.norm(change / shape) <= 1 + SLACK, (rule, shape)

    check()
    assert run._cache_size() == 1


@pytest.mark.parametrize("style", list(STYLES))
def test_the_sensitivity_is_the_root_of_the_sum_of_squared_thresholds(style):
    """And reached in every noise shape, by a gradient that is huge everywhere: less noise would be too little."""
    chosen = STYLES[style]
    huge = jax.tree.map(lambda p: jnp.full((1, *p.shape), 1e4), PARAMS)
    owners = np.repeat(chosen.group_of_leaf, [leaf.size for leaf in jax.tree.leaves(PARAMS)])
    for normalize, shape in itertools.product((False, True), SHAPES):
        tx = chain(style, "flat", normalize, shape)
        total, _ = tx.update(huge, tx.init(PARAMS), PARAMS)
        unit = math.hypot(*chosen.bounds) if normalize else 1.0
        assert tx.sensitivity == pytest.approx(math.hypot(*chosen.bounds) / unit)
        assert total.sensitivity == tx.sensitivity * (1 + total.slack) and 0 < total.slack < 1e-5
        change = flat64(total.tree)
        for group, bound in enumerate(chosen.bounds):
            assert np.linalg.norm(change[owners == group]) == pytest.approx(bound / unit, rel=1e-5)
        gammas = {"isotropic": [1.0] * len(chosen.bounds), "equal_budget": chosen.bounds, "numbers": chosen.gammas}
        share = math.hypot(*(bound / gamma for bound, gamma in zip(chosen.bounds, gammas[shape], strict=True))) / unit
        expected = share * np.array(gammas[shape])[owners]
        if shape == "isotropic":
            np.testing.assert_allclose(expected * (1 + total.slack), total.sensitivity, rtol=1e-6)
        else:
            spread = jax.tree.map(lambda scale, p: np.broadcast_to(scale, p.shape), total.noise_scales, PARAMS)
            np.testing.assert_allclose(flat64(spread), expected, rtol=1e-5)
        assert np.linalg.norm(change / expected) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("rule", ["flat", "auto_s", "auto_v"])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_bound_is_reached(rule, normalize):
    """A sensitivity that no example comes near would be noise wasted."""
    tx = transforms.clip(MAX_NORM, rule=rule, normalize=normalize)
    grads = {"a": jnp.full((1, 3), 40.0), "b": jnp.full((1, 2, 2), -30.0)}
    params = jax.tree.map(lambda g: g[0], grads)
    total, _ = tx.update(grads, tx.init(params), params)
    assert np.linalg.norm(flat64(total.tree)) == pytest.approx(tx.sensitivity, rel=1e-3)


@pytest.mark.quick
@pytest.mark.parametrize("groups", ["all", "param"])
@pytest.mark.parametrize("rule", ["flat", "auto_s", "auto_v"])
def test_norms_whose_squares_underflow_stay_bounded(groups, rule):
    """A million entries of 1e-19 have the norm 1e-16, but float32 sees the square of one entry only."""
    grad = jnp.full((1, 1_000_000), 1e-19).at[0, 0].set(2e-19)
    tx = transforms.clip(1e-8, groups=groups, rule=rule)
    params = jnp.zeros(1_000_000)
    total, _ = tx.update(grad, tx.init(params), params)
    assert np.linalg.norm(flat64(total.tree)) <= tx.sensitivity * (1 + SLACK)


@pytest.mark.parametrize("squared_norm", [1.2e-38, 1e-30, 1e-22])
def test_no_weight_is_for_a_norm_that_float32_cannot_square(squared_norm):
    """Whoever made the norm: below 1e-10 its square may have lost any part of it."""
    weight = clipping_weights("auto_v", jnp.float32(squared_norm), jnp.float32(2.0))
    assert float(weight) == pytest.approx(2e10)


def test_tiny_inputs_do_not_hide_huge_cotangents():
    """The factors' squares leave float32's range while the gradient, their product, is an ordinary one."""
    params = jnp.ones((1000, 4))
    linear = lambda p, e: jnp.sum(e["x"] @ p) * e["factor"]
    tx = transforms.clip(0.1)
    for shape in ((1, 1000), (1, 2, 1000)):
        batch = {"x": jnp.full(shape, 1e-20), "factor": jnp.full((1,), 1e18)}
        for method in ("ghost", "materialize"):
            grads = jaxdp.per_example_grad(linear, method=method)(params, batch)
            total, _ = tx.update(grads, tx.init(params))
            assert np.linalg.norm(flat64(total.tree)) <= 0.1 * (1 + SLACK), (shape, method)
