"""Adding or removing any one example moves the clipped sum by at most its sensitivity."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import jaxdp
from jaxdp import transforms
from tests.transforms.small import DIM, GROUPS, PARAMS, batch_of, flat64, loss, stacked_grads

BATCH, MAX_NORM, SLACK = 3, 0.7, 1e-5
RULES = list(itertools.product(("flat", "auto_s", "auto_v"), (False, True)))

# Features reach from where float32 loses the squares to where it overflows.
FEATURES = st.one_of(
    st.floats(-3, 3, width=32),
    st.sampled_from([0.0, 1e-20, -3e-19, 1e-12, 1e18, 3e38, float("inf"), float("nan")]),
)
FACTORS = st.one_of(
    st.floats(-100, 100, width=32),
    st.sampled_from([0.0, 1e-30, 1e-19, 1e15, 1e19, -1e30, 3e38, float("inf"), float("-inf"), float("nan")]),
)


@functools.cache
def clipped_sums(groups: str, source: str) -> Callable:
    """One compilation per way in: the sums under every rule, with and without the last example."""
    chains = [transforms.clip(MAX_NORM, groups=GROUPS[groups], rule=rule, normalize=norm) for rule, norm in RULES]

    def sums(batch: dict, mask: jax.Array) -> list:
        if source == "stacked":
            given = stacked_grads(PARAMS, batch)
            # Rows that a mask leaves out are rows that are not there.
            given = jax.tree.map(lambda g: jnp.where(mask.reshape((-1,) + (1,) * (g.ndim - 1)), g, 0), given)
        else:
            given = jaxdp.per_example_grad(loss, method=source)(PARAMS, batch, mask=mask)
        return [tx.update(given, tx.init(PARAMS), PARAMS)[0].tree for tx in chains]

    return jax.jit(sums)


@pytest.mark.parametrize("source", ["ghost", "materialize", "stacked"])
@pytest.mark.parametrize("groups", list(GROUPS))
def test_one_example_moves_the_sum_by_at_most_the_sensitivity(groups, source):
    run = clipped_sums(groups, source)
    others = np.random.default_rng(0).normal(size=(BATCH - 1, DIM))

    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(x=st.tuples(*[FEATURES] * DIM), factor=FACTORS, position=st.integers(0, BATCH - 1))
    @example(x=(1.0, 1.0, 1.0), factor=1e30, position=0)
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
        for (rule, normalize), with_it, without_it in zip(RULES, after, before, strict=True):
            moved = np.linalg.norm(flat64(with_it) - flat64(without_it))
            sensitivity = transforms.clip(MAX_NORM, rule=rule, normalize=normalize).sensitivity
            assert np.all(np.isfinite(flat64(with_it)))
            assert moved <= sensitivity * (1 + SLACK), (rule, normalize, moved)

    check()
    assert run._cache_size() == 1


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
