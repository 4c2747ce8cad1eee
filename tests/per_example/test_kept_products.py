"""Gradients of single uses that are held instead of their factors, where sequences are longer than layers are wide."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp.norms import Hutchinson, NormChoice
from jaxdp.per_example import resolve_groups
from jaxdp.per_example._plan import assign, assign_norms, trace
from jaxdp.per_example._taps import Mode

BATCH, LENGTH, WIDTH = 4, 9, 3


def loss(params: Any, x: jax.Array) -> jax.Array:
    def layer(hidden: jax.Array, p: Any) -> tuple[jax.Array, None]:
        return hidden + jnp.tanh(hidden @ p["up"] + p["bias"][None]) @ p["down"], None

    hidden, _ = jax.lax.scan(jax.checkpoint(layer), x, params["layers"])
    return jnp.sum(jnp.square(hidden @ params["head"]))


def make_params() -> Any:
    draw = lambda i, *shape: 0.4 * jax.random.normal(jax.random.key(i), shape)
    layers = {"up": draw(0, 2, WIDTH, 4), "bias": draw(1, 2, 4), "down": draw(2, 2, 4, WIDTH)}
    return {"layers": layers, "head": draw(3, WIDTH, 5)}


def by_layer(path: str) -> str:
    """Both kernels and the bias of a layer together."""
    return path.rpartition("[")[2] if "layers" in path else "head"


HEAD, DOWN, BIAS, UP = 0, 2, 1, 3


@pytest.mark.quick
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
    batch = jax.random.normal(jax.random.key(4), (BATCH, LENGTH, WIDTH)).at[2].set(jnp.inf)
    traced = trace(lambda p, x: (loss(p, x), ()), params, batch)
    resolved = resolve_groups(groups, params, traced.stacks)
    modes = assign(traced, resolved, method, 1).modes
    assert {leaf for leaf, mode in modes.items() if mode is Mode.PRODUCT} == kept
    assert Mode.PRODUCT not in assign_norms(traced, resolved).modes.values()

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
    batch = jax.random.normal(jax.random.key(4), (BATCH, LENGTH, WIDTH))
    traced = trace(lambda p, x: (loss(p, x), ()), params, batch, None, norm)

    def kept(groups: Any, method: str) -> set[int]:
        modes = assign(traced, resolve_groups(groups, params, traced.stacks), method, 1).modes
        return {leaf for leaf, mode in modes.items() if mode is Mode.PRODUCT}

    assert kept("all", "bookkeeping") == {HEAD, DOWN, UP}
    # For groups that are complete earlier, and between two passes, no gradient of an example shall be made.
    assert kept(by_layer, "fused") == set() == kept("all", "ghost") == kept(by_layer, "bookkeeping")
    grads = jaxdp.per_example_grad(loss, method="bookkeeping")(params, batch)
    run = lambda key: grads.clipped_sum_and_norms(lambda sq: jnp.minimum(1.0, 0.7 / sq), "all", None, norm, key)[1]
    np.testing.assert_allclose(jax.jit(run)(jax.random.key(1))[:, 0], grads.squared_norms(), rtol=1e-5)
