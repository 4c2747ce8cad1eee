"""What denoising does, for the log: how far each layer's gradient stands out, and the singular values of one."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxdp import transforms
from jaxdp._shown import of_shapes

PyTree = Any

_DIGITS = 5


class WatchedState(NamedTuple):
    """A denoiser's state, and one matrix as it was before and after the last step.

    Both are computed from the privatised gradient, so that they are public.
    """

    __repr__ = of_shapes

    denoiser: transforms.RmtDenoiseState
    before: dict[str, Float[Array, "m n"]]
    after: dict[str, Float[Array, "m n"]]
    stddev: dict[str, Float[Array, ""]]


def watch(denoiser: optax.GradientTransformation, parameter: str | None) -> optax.GradientTransformation:
    """A denoiser of flat dictionaries that remembers a parameter's gradient; without a name, the largest one's."""

    def init(params: Any) -> WatchedState:
        state: Any = denoiser.init(params)
        found = [name for name in params if _key(name) in state.rank and parameter in (None, name)]
        largest = sorted(found, key=lambda name: -params[name].size)[:1]
        nothing = {name: jnp.zeros(params[name].shape, params[name].dtype) for name in largest}
        # Separate buffers: a step gives its state away.
        copies = jax.tree.map(jnp.copy, nothing)
        return WatchedState(state, nothing, copies, {name: jnp.zeros((), jnp.float32) for name in largest})  # pyright: ignore

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        assert isinstance(updates, transforms.NoisyGradient)
        result: Any = denoiser.update(updates, state.denoiser, params)  # pyright: ignore[reportArgumentType]
        denoised, inner = result
        before = {name: updates.tree[name].astype(old.dtype) for name, old in state.before.items()}
        after = {name: denoised[name].astype(old.dtype) for name, old in state.after.items()}
        # One std for all of a matrix, as it was denoised.
        stddev = {name: jnp.max(updates.noise_stddev[name]).astype(jnp.float32) for name in before}
        return denoised, WatchedState(inner, before, after, stddev)

    return optax.GradientTransformation(init, update)


def denoising_metrics(state: PyTree) -> dict[str, Any]:
    """For one line of the log; nothing where nothing is denoised.

    `denoise`: for each parameter the leading singular value over the edge of the noise, and how many were kept.
    `spectrum`: the singular values of the watched parameter's gradient before and after, and that edge.
    """
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, WatchedState))
    watched = next((node for node in nodes if isinstance(node, WatchedState)), None)
    if watched is None or not watched.denoiser.rank:
        return {}
    inner = watched.denoiser
    layers = {_name(key): [_rounded(inner.leading_ratio[key][0]), int(inner.rank[key][0])] for key in inner.rank}
    found: dict[str, Any] = {"denoise": layers}
    for name, matrix in watched.before.items():
        before, after = (np.linalg.svd(np.asarray(x), compute_uv=False) for x in (matrix, watched.after[name]))
        edge = float(watched.stddev[name]) * sum(math.sqrt(side) for side in matrix.shape)
        found["spectrum"] = {
            "parameter": name,
            "edge": _rounded(edge),
            "before": [_rounded(y) for y in before],
            "after": [_rounded(y) for y in after],
        }
    return found


def _key(name: str) -> str:
    return jax.tree_util.keystr((jax.tree_util.DictKey(name),))


def _name(key: str) -> str:
    return key[2:-2]


def _rounded(value: Any) -> float:
    return float(f"{float(value):.{_DIGITS}g}")
