"""Losses as users of jax_privacy write them, and the clipped sum written once more in float64 numpy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.drawn import normal

BATCH = 6
PARAMS = {
    "hidden": {
        "kernel": 0.5 * normal(1, 3, 4),
        "bias": 0.1 * normal(2, 4),
    },
    "head": normal(3, 4),
}
X = normal(4, BATCH, 3)
# A few examples with a gradient below the clipping norm, a few above.
Y = jnp.linspace(-3.0, 3.0, BATCH)
PADDING = jnp.array([False, False, True, False, True, True])


def predict(params: Any, x: jax.Array) -> jax.Array:
    """Of one row or of a batch of rows."""
    bias = jnp.broadcast_to(params["hidden"]["bias"], (*x.shape[:-1], 4))
    return jnp.tanh(x @ params["hidden"]["kernel"] + bias) @ params["head"]


def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The mean over a batch, or over a user's rows."""
    return 0.5 * jnp.mean(jnp.square(predict(params, x) - y))


def loss_with_all(params: Any, key: jax.Array, rate: float, x: jax.Array, y: jax.Array, *, weight: jax.Array) -> Any:
    """Dropout, an argument that is no array, a weight for each example by keyword, and aux of two shapes."""
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    predicted = predict(params, jnp.where(kept, x, 0.0))
    return weight * 0.5 * jnp.mean(jnp.square(predicted - y)), {"predicted": predicted, "weight": weight}


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def gradients(x: Any = X, y: Any = Y) -> np.ndarray:
    """`[batch, parameters]`, by plain `vmap(grad)`."""
    one = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(PARAMS, x[:, None], y[:, None])
    return np.concatenate([np.asarray(g, np.float64).reshape(len(x), -1) for g in jax.tree.leaves(one)], axis=1)


def reference(
    grads: np.ndarray, clip: float, padding: np.ndarray, parts: tuple[slice, ...] = (slice(None),)
) -> np.ndarray:
    """The clipped sum, part by part."""
    total = np.zeros(grads.shape[1])
    for g in grads[~padding]:
        for part in parts:
            total[part] += g[part] * min(1.0, clip / np.sqrt(len(parts)) / np.linalg.norm(g[part]))
    return total


# What the sum may give way to rounding.
SLACK = 2e-3


def assert_equal_but_for_slack(found, expected, atol=1e-5) -> None:
    """Equal up to one factor a little below one, which leaves room for rounding."""
    found, expected = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (found, expected))
    square = np.vdot(expected, expected).real
    factor = np.vdot(expected, found).real / square if square else 1.0
    assert 1 - SLACK <= factor <= 1 + 1e-6
    np.testing.assert_allclose(found / factor, expected, rtol=1e-5, atol=atol)
