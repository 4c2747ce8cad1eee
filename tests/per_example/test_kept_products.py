"""Gradients of single uses that are held instead of their factors, where sequences are longer than layers are wide."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp.norms import Hutchinson, NormChoice
from jaxdp.per_example import resolve_groups
from jaxdp.per_example.planning._plan import make_plan, plan_norms
from jaxdp.per_example.rewriting._taps import Mode
from jaxdp.per_example.rewriting._traced import trace
from tests.drawn import normal

BATCH, LENGTH, WIDTH = 4, 9, 3


def loss(params: Any, x: jax.Array) -> jax.Array:
    def layer(hidden: jax.Array, p: Any) -> tuple[jax.Array, None]:
        return hidden + jnp.tanh(hidden @ p["up"] + p["bias"][None]) @ p["down"], None

    hidden, _ = jax.lax.scan(jax.checkpoint(layer), x, params["layers"])
    return jnp.sum(jnp.square(hidden @ params["head"]))


def make_params() -> Any:
    draw = lambda i, *shape: 0.4 * normal(i, *shape)
    layers = {"up": draw(0, 2, WIDTH, 4), "bias": draw(1, 2, 4), "down": draw(2, 2, 4, WIDTH)}
    return {"layers": layers, "head": draw(3, WIDTH, 5)}


def by_layer(path: str) -> str:
    """Both kernels and the bias of a layer together."""
    return path.rpartition("[")[2] if "layers" in path else "head"


HEAD, DOWN, BIAS, UP = 0, 2, 1, 3


@pytest.mark.parametrize(
    ("method", "groups", "kept"),
    [
        ("ghost", "all", {HEAD}),
        ("bookkeeping", "all", {HEAD, DOWN, UP}),
        ("fused", by_layer, {DOWN}),
        ("auto", "all", {HEAD, DOWN, UP}),
    ],
)
def test_sums_from_held_gradients_equal_materialize(method: str, groups: Any, kept: set[int]) -> None:
    params = make_params()
    batch = normal(4, BATCH, LENGTH, WIDTH).at[2].set(jnp.inf)
    traced = trace(lambda p, x: (loss(p, x), ()), params, batch)
    resolved = resolve_groups(groups, params, traced.stacks)
    modes = make_plan(traced, resolved, method, 1).modes
    assert {leaf for leaf, mode in modes.items() if mode is Mode.GRADIENT} == kept
    assert Mode.GRADIENT not in plan_norms(traced, resolved).modes.values()

    def found(method: Any) -> Any:
        grads = jaxdp.per_example_grad(loss, method=method)(params, batch)
        return grads.clipped_sum_and_norms(lambda sq: jnp.minimum(1.0, 0.7 * jax.lax.rsqrt(sq)), groups)

    for ours, reference in zip(
        *map(jax.tree.leaves, (jax.jit(found, static_argnums=0)(m) for m in (method, "materialize"))), strict=True
    ):
        np.testing.assert_allclose(ours, reference, rtol=1e-5, atol=1e-6)


def test_gradients_that_are_held_to_the_end_anyway_have_exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    estimator = lambda self, k, t, c, p: self.randomized if self.rule is None else None
    monkeypatch.setattr(NormChoice, "estimator", estimator)
    params, norm = make_params(), Hutchinson(8)
    batch = normal(4, BATCH, LENGTH, WIDTH)
    traced = trace(lambda p, x: (loss(p, x), ()), params, batch, None, norm)

    def kept(groups: Any, method: str) -> set[int]:
        modes = make_plan(traced, resolve_groups(groups, params, traced.stacks), method, 1).modes
        return {leaf for leaf, mode in modes.items() if mode is Mode.GRADIENT}

    assert kept("all", "bookkeeping") == {HEAD, DOWN, UP}
    # For groups that are complete earlier, and between two passes, no gradient of an example shall be made.
    assert kept(by_layer, "fused") == set() == kept("all", "ghost") == kept(by_layer, "bookkeeping")
    grads = jaxdp.per_example_grad(loss, method="bookkeeping")(params, batch)
    run = lambda key: grads.clipped_sum_and_norms(lambda sq: jnp.minimum(1.0, 0.7 / sq), "all", None, norm, key)[1]
    np.testing.assert_allclose(jax.jit(run)(jax.random.key(1))[:, 0], grads.squared_norms(), rtol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "rules", "checkpointed", "kept"),
    [
        ((192, 192), None, False, True),  # half as large again as its factors, and less work than Gram matrices
        ((192, 256), None, False, False),  # larger
        ((192, 192), {"*kernel*": "gram"}, False, False),
        ((192, 192), None, True, False),  # nothing of a checkpoint would be alive at the end
    ],
)
@pytest.mark.parametrize("method", ["ghost", "bookkeeping"])
def test_somewhat_larger_gradients_are_held_where_that_saves_work(
    kernel: tuple[int, int], rules: Any, checkpointed: bool, kept: bool, method: str
) -> None:
    def loss(params: Any, x: jax.Array) -> jax.Array:
        layer = lambda x: jnp.tanh(x @ params["kernel"])
        return jnp.sum((jax.checkpoint(layer) if checkpointed else layer)(x) @ params["head"])

    draw = lambda i, *shape: 0.1 * normal(i, *shape)
    params, batch = {"head": draw(0, kernel[1], 2), "kernel": draw(1, *kernel)}, draw(2, 3, 64, 192)
    traced = trace(lambda p, x: (loss(p, x), ()), params, batch, rules)
    modes = make_plan(traced, resolve_groups("all", params, traced.stacks), method, 3).modes
    assert (modes[1] is Mode.GRADIENT) == kept
    assert make_plan(traced, resolve_groups("param", params, traced.stacks), method, 3).modes[1] is not Mode.GRADIENT

    def found(method: Any, rules: Any = None) -> Any:
        grads = jaxdp.per_example_grad(loss, method=method, rules=rules)(params, batch)
        return grads.clipped_sum_and_norms(lambda sq: jnp.minimum(1.0, 0.7 * jax.lax.rsqrt(sq)))

    (ours, norms), (reference, expected) = (
        jax.jit(lambda: found(method, rules))(),
        jax.jit(lambda: found("materialize"))(),
    )
    np.testing.assert_allclose(norms, expected, rtol=1e-5)
    # Weights allow for what rounding may do, which differs from one way to a norm to the other.
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(x, y, rtol=5e-4, atol=2e-5)
