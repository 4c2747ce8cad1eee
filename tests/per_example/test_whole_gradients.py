"""Small parameters that are used several times: whole gradients, whose norm holds however their uses cancel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from tests.certified import assert_certified
from tests.drawn import normal

METHODS = ("auto", "ghost", "bookkeeping", "fused")


def twice(length: int, rows: int = 5, columns: int = 8):
    """One matrix used on nearly the same inputs with opposite signs, as in a temporal difference."""
    draw = lambda i, *shape: normal(i, 6, length, *shape)
    batch = draw(0, rows), draw(1, columns), 1e-3 * draw(2, rows)

    def loss(w, example):
        x, g, step = example
        return jnp.sum(jnp.tanh(x @ w) * g) - jnp.sum(jnp.tanh((x + step) @ w) * g)

    return loss, jnp.ones((rows, columns)), batch


@pytest.mark.parametrize("length", [1, 4, 64])
@pytest.mark.parametrize("method", METHODS)
def test_uses_that_nearly_cancel_cost_the_norm_nothing(method: str, length: int) -> None:
    """From the factors of the uses it would be some hundred times the gradient's."""
    loss, params, batch = twice(length)
    each = np.asarray(jax.vmap(jax.grad(loss), (None, 0))(params, batch), np.float64)
    grads = jaxdp.per_example_grad(loss, method=method)(params, batch)
    # The uses round by 1e-7 of themselves, a thousand times the gradient.
    assert_certified(grads.squared_norms(), np.square(each).sum((1, 2)), rtol=2e-3, above=5e-3)


def test_a_recurrent_weight_has_a_whole_gradient_where_that_is_small() -> None:
    def loss(w, xs):
        return jnp.sum(jax.lax.scan(lambda h, x: (jnp.tanh(h @ w + x), None), jnp.zeros(len(w)), xs)[0])

    rule = lambda width, length, **rules: {
        row.rule for row in jaxdp.explain(loss, jnp.ones((width, width)), jnp.ones((4, length, width)), **rules).rows
    }
    assert rule(8, 40) == {"whole gradient"}
    assert all("joint" in x for x in rule(64, 4)) and all("joint" in x for x in rule(8, 40, rules={"*": "gram"}))


def test_what_is_said_of_it_is_no_advice_against_it() -> None:
    loss, params, batch = twice(64)
    assert "would avoid it" not in str(jaxdp.explain(loss, params, batch))
