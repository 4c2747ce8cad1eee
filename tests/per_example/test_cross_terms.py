"""What a norm must count: all uses of a parameter, all members of a group, and nothing twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from tests.certified import assert_certified
from tests.drawn import normal
from tests.per_example.model_zoo import BATCH
from tests.per_example.test_methods import TOLERANCE, clip_to, clipped_by_hand, relative_error


@pytest.fixture(autouse=True)
def from_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of several uses are not made as they are, however small."""
    monkeypatch.setattr("jaxdp.per_example.planning._plan.WHOLE_GRADIENTS", 0.0)


@pytest.mark.parametrize("method", ["ghost", "fused"])
def test_entries_of_a_stack_have_the_weights_of_their_own_groups(method: str) -> None:
    """First and last layer are one group, the one between them another with what stands beside the stack."""
    params = {"w": normal(1, 3, 4, 4), "b": jnp.ones(4)}

    def loss(p, x):
        return jnp.sum(jax.lax.scan(lambda h, w: (jnp.tanh(h @ w + p["b"]), None), x, p["w"])[0])

    batch = jnp.linspace(0.1, 2.0, BATCH)[:, None] * normal(2, BATCH, 4)
    of_path = lambda path: "outer" if path[-3:] in ("[0]", "[2]") else "inner"
    lazy = jaxdp.per_example_grad(loss, method=method)(params, batch)
    groups = lazy.groups(of_path)
    assert groups.names == ("inner", "outer") and groups.of_leaf == ((0,), (1, 0, 1))
    grads = [np.asarray(g, np.float64) for g in jax.tree.leaves(jax.vmap(jax.grad(loss), (None, 0))(params, batch))]
    by_hand, expected = clipped_by_hand(grads, groups, 0.5, np.ones(BATCH))
    found, norms = jax.jit(lambda: lazy.clipped_sum_and_norms(clip_to(0.5), of_path))()
    assert np.allclose(norms, by_hand, rtol=1e-5)
    assert relative_error(jax.tree.leaves(found), expected) < TOLERANCE


def test_a_parameter_behind_a_function_has_its_own_norm_and_not_the_functions() -> None:
    """Where a weight is scaled, bent or repeated before it is used, the norm is that of the parameter's gradient."""
    w = normal(1, 3, 4)
    batch = normal(2, BATCH, 5, 3)
    for view in (lambda w: 3.0 * w, jnp.tanh, lambda w: jnp.broadcast_to(w[:, :1], (3, 4)), jnp.transpose):
        loss = lambda w, x, view=view: jnp.sum(jnp.sin(x @ view(w).reshape(3, 4)))
        norms = jax.jit(lambda loss=loss: jaxdp.per_example_grad(loss, method="ghost")(w, batch).squared_norms())()
        grads = np.asarray(jax.vmap(jax.grad(loss), (None, 0))(w, batch), np.float64)
        assert_certified(norms, np.square(grads).sum(axis=(1, 2)))


@pytest.mark.parametrize("method", ["ghost", "fused"])
def test_slices_that_overlap_have_cross_terms(method: str) -> None:
    """Rows of a weight that two of its slices have in common are used twice; rows that none has in common are not."""
    w = normal(1, 6, 4)
    batch = normal(2, BATCH, 2, 3)
    for starts in ((0, 2), (2, 0), (1, 1), (0, 3), (3, 0)):
        parts = [slice(start, start + 3) for start in starts]
        loss = lambda w, x, parts=parts: sum(jnp.sum(jnp.tanh(x[i] @ w[part])) for i, part in enumerate(parts))
        norms = jax.jit(lambda loss=loss: jaxdp.per_example_grad(loss, method=method)(w, batch).squared_norms())()
        grads = np.asarray(jax.vmap(jax.grad(loss), (None, 0))(w, batch), np.float64)
        assert np.allclose(norms, np.square(grads).sum(axis=(1, 2)), rtol=1e-5), starts


def test_a_gradient_made_once_for_norm_and_sum_is_weighed_by_its_whole_group() -> None:
    """The kernel is clipped where its gradient is made; the bias, whose gradient is the longer one, counts there."""
    params = {"kernel": normal(1, 16, 16), "bias": jnp.zeros(16)}
    batch = 0.01 * normal(2, BATCH, 2, 16)
    loss = lambda p, x: jnp.sum((x @ p["kernel"] + p["bias"][None]) * jnp.linspace(0.5, 1.5, 16)[None])
    make = jaxdp.per_example_grad(loss, method="fused", rules={"params['kernel']": "materialize"})
    lazy = make(params, batch)
    grads = [np.asarray(g, np.float64) for g in jax.tree.leaves(jax.vmap(jax.grad(loss), (None, 0))(params, batch))]
    by_hand, expected = clipped_by_hand(grads, lazy.groups("all"), 1.0, np.ones(BATCH))
    found, norms = jax.jit(lambda: lazy.clipped_sum_and_norms(clip_to(1.0)))()
    assert np.all(by_hand > 1) and np.all(np.square(grads[1]).sum(axis=(1, 2)) < 1)
    assert np.allclose(norms, by_hand, rtol=1e-5)
    assert relative_error(jax.tree.leaves(found), expected) < TOLERANCE
