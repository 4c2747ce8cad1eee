"""Inputs whose terms cancel, for every kind of use of a parameter: what one example can bring to a clipped sum."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxdp
from jaxdp import transforms

Loss = Callable[[Any, Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class Kind:
    """One way to use a parameter: a loss of `{"x": [T, c], "g": [T, p], "id": [T]}` and the parameter's shape.

    The gradient is made of terms `x_t g_t`, so whoever chooses x and g chooses how they cancel.
    """

    loss: Loss
    shape: tuple[int, ...]
    width: int = 8


def _linear(w: Any, ex: Any) -> jax.Array:
    return jnp.sum((ex["x"] @ w) * ex["g"])


def _scanned(body_of: Callable) -> Loss:
    def loss(w: Any, ex: Any) -> jax.Array:
        body = body_of(lambda carry, layer: (carry, _linear(layer, ex)))
        return jnp.sum(jax.lax.scan(body, 0.0, w)[1])

    return loss


def _convolved(w: Any, ex: Any) -> jax.Array:
    y = jax.lax.conv_general_dilated(ex["x"].T[None], w, (1,), "SAME")
    return jnp.sum(y[0].T * ex["g"])


def _recurrent(w: Any, ex: Any) -> jax.Array:
    def step(carry: jax.Array, row: Any) -> tuple[jax.Array, None]:
        x, g = row
        return carry + jnp.sum((x @ w) * g), None

    return jax.lax.scan(step, jnp.zeros((), w.dtype), (ex["x"], ex["g"]))[0]


def _heads(w: Any, ex: Any) -> jax.Array:
    x = ex["x"].reshape(ex["x"].shape[0], 2, -1)
    y = jnp.einsum("thc,hcp->thp", x, w)
    return jnp.sum(y.reshape(y.shape[0], -1) * ex["g"])


def _tied_table(w: Any, ex: Any) -> jax.Array:
    return jnp.sum(w[ex["id"]] * ex["g"]) + jnp.sum((ex["g"] @ w.T) * ex["x"])


def _branch(w: Any, ex: Any) -> jax.Array:
    return jax.lax.cond(ex["x"][0, 0] > -1, lambda: _linear(w, ex), lambda: 2 * _linear(w, ex))


def _windows(w: Any, ex: Any) -> jax.Array:
    rows = lambda i: jax.lax.dynamic_slice(w, (i, jnp.zeros_like(i)), (2, w.shape[1]))
    return jnp.sum(jax.lax.map(rows, ex["id"]) * ex["g"][:, None, :])


KINDS = {
    "embedding": Kind(lambda w, ex: jnp.sum(w[ex["id"]] * ex["g"]), (4, 8)),
    "windows": Kind(_windows, (4, 8)),
    "quotient": Kind(lambda w, ex: jnp.sum(ex["x"][:, :1] * ex["g"] / w[None, :]), (8,)),
    "larger": Kind(lambda w, ex: jnp.sum(jnp.maximum(ex["x"][:, :1] - 1, w[None, :]) * ex["g"]), (8,)),
    "matmul": Kind(_linear, (8, 8)),
    "matmul, transposed": Kind(lambda w, ex: _linear(w.T, ex), (8, 8)),
    "matmul, wide": Kind(_linear, (8, 40)),
    "scan": Kind(_scanned(lambda body: body), (2, 8, 8)),
    "scan, checkpoint": Kind(_scanned(jax.checkpoint), (2, 8, 8)),
    "convolution": Kind(_convolved, (8, 8, 1)),
    "convolution of 3": Kind(_convolved, (8, 8, 3)),
    "scale": Kind(lambda w, ex: jnp.sum(ex["x"][:, :1] * w[None, :] * ex["g"]), (8,)),
    "bias": Kind(lambda w, ex: jnp.sum((ex["x"][:, :1] + w[None, :]) * ex["g"]), (8,)),
    "used twice": Kind(lambda w, ex: _linear(w, ex) + jnp.sum((ex["x"] @ w) * ex["g"][::-1]), (8, 8)),
    "used against itself": Kind(lambda w, ex: _linear(w, ex) - jnp.sum((ex["x"][::-1] @ w) * ex["g"]), (8, 8)),
    "recurrent": Kind(_recurrent, (8, 8)),
    "heads": Kind(_heads, (2, 4, 4)),
    "table and head": Kind(_tied_table, (8, 8)),
    "branch": Kind(_branch, (8, 8)),
    "power": Kind(lambda w, ex: jnp.sum(jnp.square(w)[None, :] * ex["g"]), (8,)),
    "slices": Kind(lambda w, ex: _linear(w[:, :8], ex) + _linear(w[:, 8:], ex), (8, 16)),
    "two factors": Kind(lambda w, ex: jnp.sum((ex["x"] @ (w[0] @ w[1])) * ex["g"]), (2, 8, 8)),
}


def sequences(length: int, seeds: int, largest: int = 60) -> Iterator[np.ndarray]:
    """Numbers that cancel: two or three of any scale and a small one, geometric ones, duplicates, tiny ones."""
    for seed in range(seeds):
        r = np.random.default_rng(seed)
        scale = 2.0 ** int(r.integers(-largest, largest + 1))
        small = 2.0 ** int(r.integers(-4, 5)) * (1 + r.random())
        a, b = (float(x) for x in r.integers(2**21, 2**22, 2))
        s = np.zeros(length)
        place = r.permutation(length)
        if length < 5:
            s[:] = r.normal(size=length) * scale
            yield s
            continue
        kind = seed % 5
        if kind == 0:
            s[place[:3]] = np.array([a, b, -(a + b)]) * scale
        elif kind == 1:
            s[place[:2]] = np.array([a, -a]) * scale
        elif kind == 2:
            half = length // 2
            powers = 2.0 ** r.integers(-20, 20, half) * (1 + r.random(half))
            s[place[:half]], s[place[half : 2 * half]] = powers * scale, -powers * scale
        elif kind == 3:
            half = length // 2
            share = 10.0 ** r.uniform(-6, 0)
            s[:half], s[half : 2 * half] = scale, -(1 - share) * scale
        else:
            s[:] = r.normal(size=length) * 2.0**-140
        s[place[-1]] += small if kind != 3 else 0.0
        yield s


def example(kind: Kind, s: np.ndarray, batch: int, at: int = 0) -> dict[str, np.ndarray]:
    """A batch in which one example has these terms and the others none."""
    length, width = len(s), kind.shape[-1] if kind.shape[-1] >= kind.width and len(kind.shape) < 3 else kind.width
    if kind.loss is KINDS["slices"].loss:
        width = 8
    g = np.zeros((batch, length, width), np.float32)
    g[at, :, 0] = s.astype(np.float32)
    g[at, :, 1] = s[::-1].astype(np.float32)
    x = np.zeros((batch, length, kind.width), np.float32)
    x[:, :, 0] = 1
    return {"x": x, "g": g, "id": np.zeros((batch, length), np.int32)}


def contribution(
    kind: Kind, dtype: Any, clip: transforms.Clip, batch_size: int = 4, **options: Any
) -> Callable[[dict[str, np.ndarray]], float]:
    """What measures the clipped sum of a batch, as a multiple of the sensitivity that it is said to have at most."""
    params = {"w": jnp.full(kind.shape, 0.5, dtype)}
    micro = options.pop("microbatch_size", None)
    loss = lambda p, ex: kind.loss(p["w"], {k: x.astype(dtype) if k != "id" else x for k, x in ex.items()})
    grads = jaxdp.per_example_grad(loss, **options)

    @jax.jit
    def clipped(batch: dict[str, jax.Array]) -> Any:
        return clip.update(grads(params, batch, microbatch_size=micro), clip.init(params))[0].tree["w"]

    def measure(batch: dict[str, np.ndarray]) -> float:
        assert len(batch["x"]) == batch_size
        return float(np.linalg.norm(np.asarray(clipped(batch), np.float64)))

    return measure


def worst(
    measure: Callable[[dict[str, np.ndarray]], float], kind: Kind, length: int, seeds: int, largest: int
) -> float:
    """The largest of many examples."""
    return max(measure(example(kind, s, 4, i % 4)) for i, s in enumerate(sequences(length, seeds, largest)))
