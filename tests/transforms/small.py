"""A small model whose examples can have gradients of any size, and clipping written once more in float64 numpy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.drawn import normal

DIM, WIDTH = 3, 4
PARAMS = {
    "dense": {
        "kernel": 0.5 * normal(1, DIM, WIDTH),
        "bias": 0.1 * normal(2, WIDTH),
    },
    "head": normal(3, WIDTH),
}
GROUPS = {"all": "all", "param": "param", "layers": lambda path: "dense" in path}


def loss(params: Any, example: Any) -> jax.Array:
    """Linear in `factor`, so that an example's gradient can be zero, huge or not finite at will."""
    hidden = jnp.tanh(example["x"] @ params["dense"]["kernel"] + params["dense"]["bias"])
    return example["factor"] * (hidden @ params["head"])


def batch_of(x: Any, factor: Any) -> dict[str, jax.Array]:
    return {"x": jnp.asarray(x, jnp.float32), "factor": jnp.asarray(factor, jnp.float32)}


def normal_batch(size: int) -> dict[str, jax.Array]:
    x = normal(4, size, DIM)
    return batch_of(x, jnp.linspace(-2.0, 3.0, size))


def stacked_grads(params: Any, batch: Any) -> Any:
    return jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, batch)


def flat64(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def group_of_leaves(groups: str) -> list[int]:
    """For kernel, bias and head (in flattening order: bias, kernel, head) the group that the name stands for."""
    return {"all": [0, 0, 0], "param": [0, 1, 2], "layers": [0, 0, 1]}[groups]


def reference_clip(grads: Any, max_norm: float, *, groups: str, rule: str, normalize: bool) -> np.ndarray:
    """The sum of clipped gradients as one float64 vector, straight from the papers' formulas."""
    leaves = [np.asarray(g, np.float64).reshape(g.shape[0], -1) for g in jax.tree.leaves(grads)]
    names = group_of_leaves(groups)
    count = len(set(names))
    bound = max_norm / np.sqrt(count)
    total = [np.zeros(leaf.shape[1]) for leaf in leaves]
    for i in range(leaves[0].shape[0]):
        for name in range(count):
            mine = [k for k, own in enumerate(names) if own == name]
            norm = np.linalg.norm(np.concatenate([leaves[k][i] for k in mine]))
            if not np.isfinite(norm):
                continue
            if rule == "flat":
                weight = min(1.0, bound / norm) if norm > 0 else 1.0
            elif rule == "auto_s":
                weight = bound / (norm + 0.01)
            else:
                weight = bound / norm if norm > 0 else 0.0
            for k in mine:
                total[k] += weight * leaves[k][i]
    return np.concatenate(total) / (max_norm if normalize else 1.0)
