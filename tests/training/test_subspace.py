"""`[subspace]`: the chain of a run, its statement, and what its rank is predicted to cost."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp import training, transforms
from jaxdp.training.chain._subspace import predictions
from jaxdp.training.running._loop import phase_transformation
from jaxdp.training.running._statement import make_statement

PARAMS = {"a/kernel": jnp.linspace(-1.0, 1.0, 30).reshape(6, 5), "a/bias": jnp.ones(5)}


def plan_of(config_file: Path, *overrides: tuple[str, str]) -> training.Plan:
    return training.make_plan(training.load_config(config_file, overrides), 900)


def loss(params: Any, x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(x @ params["a/kernel"] + params["a/bias"]))


@pytest.mark.parametrize(("method", "moments"), [("grape", [(5,), (6, 2)]), ("zeroth_order", [(5,), (6, 5)])])
def test_moments_live_in_the_subspace_and_weight_decay_outside(config_file: Path, method: str, moments: list) -> None:
    adamw = ("phase.2.optimizer", "adamw"), ("phase.2.weight_decay", "0.5"), ("phase.2.learning_rate", "0.1")
    plan = plan_of(config_file, ("subspace.method", method), ("subspace.rank", "2"), *adamw)
    tx = phase_transformation(plan, 1, jax.random.key(0))
    nobody = jaxdp.per_example_grad(loss)(PARAMS, jnp.ones((3, 6)), mask=jnp.zeros(3, bool))
    state = jax.jit(tx.init)(PARAMS)
    shapes = [x.shape for x in jax.tree.leaves(state) if x.ndim]
    assert shapes == moments * 2

    def decayed(weight: float) -> Any:
        other = plan_of(config_file, ("subspace.method", method), ("subspace.rank", "2"), *adamw[:1], *adamw[2:])
        chosen = plan if weight else other
        step = phase_transformation(chosen, 1, jax.random.key(0))
        return jax.jit(lambda: step.update(nobody, step.init(PARAMS), PARAMS)[0])()

    # The same noise in both: what is left is the decay, of every parameter in full.
    with_decay, without = decayed(0.5), decayed(0.0)
    rates = [(with_decay[name] - without[name]) / (-0.5 * PARAMS[name]) for name in PARAMS]
    for rate in rates:
        np.testing.assert_allclose(rate, rates[0].ravel()[0], rtol=1e-4)


@pytest.mark.quick
def test_the_budget_is_that_of_the_full_space_and_the_statement_says_where_it_is_spent(config_file: Path) -> None:
    plain, grape = plan_of(config_file), plan_of(config_file, ("subspace.method", "grape"))
    assert plain.event == grape.event and plain.epsilon == grape.epsilon
    mechanisms = [phase.mechanism for phase in make_statement(grape, seeded=False).phases]
    assert all("projected onto random subspaces of dimension 16" in text for text in mechanisms)


@pytest.mark.quick
def test_a_rank_is_priced_where_something_is_projected(config_file: Path) -> None:
    plan = plan_of(config_file, ("subspace.method", "grape"), ("subspace.rank", "4"), ("phase.2.train", "last:1"))
    head, top = plan.phases
    assert predictions(plan.config, 1.0, head.config, 900.0) == []
    found = predictions(plan.config, 1.0, top.config, 60.0)
    assert [mean for mean, _ in found] == [1.0, 0.3, 0.1]
    losses = [prediction.loss for _, prediction in found]
    assert 1 > losses[0] > losses[1] > losses[2] > 0


@pytest.mark.quick
def test_a_subspace_may_be_for_some_phases_only(config_file: Path) -> None:
    chosen = ("subspace.method", "zeroth_order"), ("subspace.phases", '["top"]')
    plan = plan_of(config_file, *chosen)
    first, second = (jax.eval_shape(phase_transformation(plan, i, jax.random.key(0)).init, PARAMS) for i in range(2))
    is_zeroth = lambda state: isinstance(state, transforms.ZerothOrderState)
    assert not any(map(is_zeroth, jax.tree.leaves(first, is_leaf=is_zeroth)))
    assert any(map(is_zeroth, jax.tree.leaves(second, is_leaf=is_zeroth)))
    mechanisms = [phase.mechanism for phase in make_statement(plan, seeded=False).phases]
    assert ["random direction" in text for text in mechanisms] == [False, True]
    priced = plan_of(config_file, ("subspace.method", "grape"), ("subspace.rank", "4"), ("subspace.phases", "[]"))
    assert predictions(priced.config, 1.0, priced.phases[1].config, 60.0) == []
    with pytest.raises(training.UserError, match=r'subspace\.phases has "tail", which is no phase'):
        plan_of(config_file, chosen[0], ("subspace.phases", '["tail"]'))
    with pytest.raises(training.UserError, match='method = "zeroth_order", which has no matrices'):
        plan_of(config_file, *chosen, ("denoise.enabled", "true"))


def test_a_projected_matrix_is_denoised_in_its_subspace(config_file: Path) -> None:
    """A gradient of rank one comes out of the subspace as one of rank one, with the noise of its coordinates known."""
    options = ("subspace.method", "grape"), ("subspace.rank", "12"), ("phase.2.optimizer", "sgd")
    denoised = ("denoise.enabled", "true"), ("denoise.mode", "shrink"), ("denoise.gate", "1.0")
    params = {"a/kernel": jnp.zeros((40, 30)), "a/bias": jnp.zeros(30)}
    left, right = np.random.default_rng(0).normal(size=(2, 40))
    gradient = {"a/kernel": jnp.asarray(np.outer(left, right[:30]), jnp.float32), "a/bias": jnp.ones(30)}
    stacked = jax.tree.map(lambda g: jnp.broadcast_to(g, (200, *g.shape)), gradient)

    def update(*more: tuple[str, str]) -> tuple[Any, Any]:
        tx = phase_transformation(plan_of(config_file, *options, *more), 1, jax.random.key(0))
        return jax.jit(lambda: tx.update(stacked, tx.init(params), params))()

    (raw, _), (found, state) = update(), update(*denoised)
    values = np.linalg.svd(np.asarray(found["a/kernel"]), compute_uv=False)
    assert values[0] > 0 and values[1] < 1e-5 * values[0]
    assert np.linalg.svd(np.asarray(raw["a/kernel"]), compute_uv=False)[1] > 1e-3 * values[0]
    np.testing.assert_array_equal(found["a/bias"], raw["a/bias"])
    is_denoiser = lambda node: isinstance(node, transforms.RmtDenoiseState)
    (denoiser,) = filter(is_denoiser, jax.tree.leaves(state, is_leaf=is_denoiser))
    assert {name: rank.tolist() for name, rank in denoiser.rank.items()} == {"['a/kernel']": [1]}
