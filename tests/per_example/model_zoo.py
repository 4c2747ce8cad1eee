"""The one table of models: each is `(loss of one example, params, batch)`, small and of another make.

`DROPOUT` has the same models with dropout in them: `drop` leaves values as they are until a variant says where keys
come from.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from tests import drawn

BATCH, SEQ, DIM, VOCAB = 5, 6, 8, 11


class Case(NamedTuple):
    loss: Callable
    params: Any
    batch: Any


def normal(i: int, *shape: int, scale: float = 1.0) -> jax.Array:
    return scale * drawn.normal(i, *shape)


def tokens(length: int = SEQ) -> jax.Array:
    return drawn.integers(3, VOCAB, BATCH, length)


def weights(i: int, *shape: int) -> jax.Array:
    return normal(i, *shape, scale=shape[-2] ** -0.5)


_keys: list[Callable[[], jax.Array]] = []  # where the variant with dropout that is being traced takes its keys from


def next_key() -> jax.Array | None:
    """A key for one mask; None where there is no dropout."""
    return _keys[-1]() if _keys else None


def several(key: jax.Array | None, count: int) -> Any:
    """A key for each step of a loop, or for each mask of a layer."""
    return (None,) * count if key is None else jax.random.split(key, count)


def drop(x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Dropout, in a variant that has it."""
    key = next_key() if key is None else key
    return x if key is None else jnp.where(jax.random.bernoulli(key, 0.75, x.shape), x / 0.75, jnp.zeros_like(x))


def _split(key: jax.Array) -> Callable[[], jax.Array]:
    rest = iter(jax.random.split(key, 16))
    return lambda: next(rest)


def _chain(key: jax.Array) -> Iterator[jax.Array]:
    while True:
        key, now = jax.random.split(key)
        yield now


def _folded(key: jax.Array) -> Callable[[], jax.Array]:
    numbers = itertools.count()
    return lambda: jax.random.fold_in(key, next(numbers))


def _wrapped(key: jax.Array) -> Callable[[], jax.Array]:
    return _folded(jax.random.wrap_key_data(key))


def _rngs(key: jax.Array) -> Callable[[], jax.Array]:
    return nnx.Rngs(dropout=key).dropout


# How a loss makes keys of the example's, and whether that is a typed one.
WAYS: dict[str, tuple[Callable[[jax.Array], Callable[[], jax.Array]], bool]] = {
    "split": (_split, True),
    "raw split": (_split, False),
    "split again and again": (lambda key: functools.partial(next, _chain(key)), True),
    "raw split again and again": (lambda key: functools.partial(next, _chain(key)), False),
    "fold_in": (_folded, True),
    "raw fold_in": (_folded, False),
    "raw wrapped": (_wrapped, False),
    "nnx.Rngs": (_rngs, True),
    "raw nnx.Rngs": (_rngs, False),
}


@contextlib.contextmanager
def _taking_keys(source: Callable[[], jax.Array]) -> Iterator[None]:
    _keys.append(source)
    yield
    _keys.pop()


def with_dropout(make: Callable[[], "Case"], way: str) -> "Case":
    """A model with dropout, whose masks' keys are made of the example's."""
    case = make()
    source, typed = WAYS[way]
    keys = (jax.random.key if typed else jax.random.PRNGKey)(5)

    def loss(params: Any, example: tuple) -> jax.Array:
        x, key = example
        with _taking_keys(source(key)):
            return case.loss(params, x)

    return Case(loss, case.params, (case.batch, jax.random.split(keys, BATCH)))


def next_token_loss(logits: jax.Array, ids: jax.Array) -> jax.Array:
    log_p = jax.nn.log_softmax(logits[:-1].astype(jnp.float32))
    return -jnp.mean(jnp.take_along_axis(log_p, ids[1:, None], axis=1))


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    mean = jnp.mean(x, axis=-1, keepdims=True)
    var = jnp.var(x, axis=-1, keepdims=True)
    return (x - mean) * lax.rsqrt(var + 1e-5) * scale[None] + bias[None]


def attention_block(h: jax.Array, p: dict, key: jax.Array | None = None) -> jax.Array:
    first, second = several(key, 2)
    y = layer_norm(h, p["norm"], p["shift"])
    q, k, v = (jnp.einsum("td,dhe->the", y, p[name]) for name in ("q", "k", "v"))
    probs = jax.nn.softmax(jnp.einsum("the,she->hts", q, k))
    h = h + drop(jnp.einsum("hts,she,hed->td", probs, v, p["o"]), first)
    return h + drop(jax.nn.gelu(h @ p["up"] + p["up_bias"][None]), second) @ p["down"]


def block_params(*lead: int) -> dict:
    return {
        "norm": 1 + normal(1, *lead, DIM, scale=0.1),
        "shift": normal(2, *lead, DIM, scale=0.1),
        "q": weights(3, *lead, DIM, 2, 4),
        "k": weights(4, *lead, DIM, 2, 4),
        "v": weights(5, *lead, DIM, 2, 4),
        "o": weights(6, *lead, 2, 4, DIM),
        "up": weights(7, *lead, DIM, 16),
        "up_bias": normal(8, *lead, 16, scale=0.1),
        "down": weights(9, *lead, 16, DIM),
    }


def dense_net() -> Case:
    params = {"w": normal(1, DIM, 16), "b": normal(2, 16), "v": normal(3, 16)}
    loss = lambda p, x: jnp.square(drop(jnp.tanh(x["x"] @ p["w"] + p["b"])) @ p["v"] - x["y"])
    return Case(loss, params, {"x": normal(4, BATCH, DIM), "y": normal(5, BATCH)})


def wide_dense_sequence() -> Case:
    """Short sequences through wide layers: the Gram side of the norm."""
    params = {"w": weights(1, 64, 48), "b": normal(2, 48), "v": normal(3, 48)}
    loss = lambda p, x: jnp.sum(jnp.square(drop(jnp.tanh(x @ p["w"] + p["b"][None])) @ p["v"]))
    return Case(loss, params, normal(4, BATCH, 4, 64))


def transformer() -> Case:
    """Layers as a Python list."""
    params = {
        "embed": normal(0, VOCAB, DIM),
        "layers": [block_params(), block_params()],
        "head": weights(9, DIM, VOCAB),
    }

    def loss(p: dict, ids: jax.Array) -> jax.Array:
        h = p["embed"][ids]
        for layer in p["layers"]:
            h = attention_block(h, layer, next_key())
        return next_token_loss(h @ p["head"], ids)

    return Case(loss, params, tokens())


def scanned_checkpointed_transformer() -> Case:
    params = {"embed": normal(0, VOCAB, DIM), "layers": block_params(3), "head": weights(9, DIM, VOCAB)}

    def loss(p: dict, ids: jax.Array) -> jax.Array:
        block = jax.checkpoint(attention_block, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
        keys = None if not _keys else several(next_key(), 3)
        h, _ = lax.scan(lambda h, w: (block(h, *w), None), jnp.take(p["embed"], ids, axis=0), (p["layers"], keys))
        return next_token_loss(h @ p["head"], ids)

    return Case(loss, params, tokens())


def stacked_but_unrolled() -> Case:
    """Static slices of one stacked leaf are disjoint."""
    params = {"w": weights(1, 3, DIM, DIM), "b": normal(2, 3, DIM)}

    def loss(p: dict, x: jax.Array) -> jax.Array:
        for i in range(3):
            x = drop(jnp.tanh(x @ p["w"][i] + p["b"][i][None]))
        return jnp.sum(jnp.square(x))

    return Case(loss, params, normal(4, BATCH, SEQ, DIM))


def loop_indexed_stack() -> Case:
    """A stacked leaf read by the counter of a `fori_loop`."""
    params = weights(1, 3, DIM, DIM)

    def loss(p: jax.Array, x: jax.Array) -> jax.Array:
        key = next_key()
        mask = lambda i, h: h if key is None else drop(h, jax.random.fold_in(key, i))
        return jnp.sum(jnp.square(lax.fori_loop(0, 3, lambda i, h: mask(i, jnp.tanh(h @ p[i])), x)))

    return Case(loss, params, normal(4, BATCH, SEQ, DIM))


def recurrent() -> Case:
    """One weight at every time step, and a learned initial state."""
    params = {"wx": weights(1, DIM, DIM), "wh": weights(2, DIM, DIM), "b": normal(3, DIM), "h0": normal(4, DIM)}

    def loss(p: dict, xs: jax.Array) -> jax.Array:
        def cell(carry: tuple, x: jax.Array) -> tuple:
            h, key = carry
            key, now = several(key, 2)
            new = jnp.tanh(x @ p["wx"] + h @ p["wh"] + p["b"])
            return (new if now is None else drop(new, now), key), h

        (h, _), hs = lax.scan(cell, (p["h0"], next_key()), xs)
        return jnp.sum(jnp.square(h)) + jnp.mean(hs)

    return Case(loss, params, normal(5, BATCH, SEQ, DIM))


def carried_weight() -> Case:
    """A scan that hands its weight through the carry."""
    params = weights(1, DIM, DIM)

    def loss(p: jax.Array, xs: jax.Array) -> jax.Array:
        cell = lambda carry, x: ((jnp.tanh(carry[0] @ carry[1] + x), carry[1]), None)
        (h, w), _ = lax.scan(cell, (jnp.zeros(DIM), p), drop(xs))
        return jnp.sum(jnp.square(h)) + jnp.sum(h @ w)

    return Case(loss, params, normal(5, BATCH, SEQ, DIM))


def tied_embedding_and_head() -> Case:
    params = {"embed": normal(0, VOCAB, DIM), "w": weights(1, DIM, DIM)}
    loss = lambda p, ids: next_token_loss(drop(jnp.tanh(p["embed"][ids] @ p["w"])) @ p["embed"].T, ids)
    return Case(loss, params, tokens())


def lora() -> Case:
    """Low-rank factors beside a frozen kernel, and merged into one."""
    frozen, params = weights(1, DIM, DIM), {"a": normal(2, DIM, 2), "b": normal(3, 2, DIM), "c": normal(4, DIM, 2)}

    def loss(p: dict, x: jax.Array) -> jax.Array:
        h = jnp.tanh(x @ frozen + (drop(x) @ p["a"]) @ p["b"])
        return jnp.sum(jnp.square(h @ (frozen + p["c"] @ p["b"])))

    return Case(loss, params, normal(5, BATCH, SEQ, DIM))


def weight_normalised() -> Case:
    params = {"g": normal(1, DIM), "v": weights(2, DIM, DIM)}

    def loss(p: dict, x: jax.Array) -> jax.Array:
        norm = jnp.sqrt(jnp.sum(jnp.square(p["v"]), axis=0, keepdims=True))
        return jnp.sum(jnp.square(jnp.tanh(drop(x) @ (p["g"][None] * p["v"] / norm))))

    return Case(loss, params, normal(5, BATCH, SEQ, DIM))


def conditional() -> Case:
    """A parameter used in one branch only, chosen by the example, and one used in both."""
    params = {"w": weights(1, DIM, DIM), "v": normal(2, DIM)}

    def loss(p: dict, x: jax.Array) -> jax.Array:
        x = drop(x)
        high = lambda: jnp.sum(jnp.tanh(x @ p["w"]))
        low = lambda: jnp.sum((x @ p["w"]) @ p["v"])
        public = lax.cond(jnp.float32(1) > 0, lambda: jnp.sum(p["v"] * x[0]), lambda: jnp.sum(x @ p["w"]))
        return lax.cond(jnp.sum(x) > 0, high, low) + public

    return Case(loss, params, normal(5, BATCH, SEQ, DIM))


def experts() -> Case:
    """A kernel with a batch dimension, and one whose contraction spans two axes."""
    params = {"w": normal(1, 3, DIM, 4), "o": normal(2, 3, 4, DIM), "left": normal(3, 5, SEQ)}

    def loss(p: dict, x: jax.Array) -> jax.Array:
        h = drop(jnp.tanh(jnp.einsum("td,edf->etf", x, p["w"])))
        y = jnp.einsum("etf,efd->td", h, p["o"])
        return jnp.sum(jnp.square(p["left"] @ y))

    return Case(loss, params, normal(5, BATCH, SEQ, DIM))


def class_token() -> Case:
    """A token of the model's own, a slice of a table, and a vector repeated before it is used."""
    params = {"cls": normal(1, 1, DIM), "w": weights(2, DIM, DIM), "pos": normal(3, 20, DIM), "shift": normal(4, DIM)}

    def loss(p: dict, x: jax.Array) -> jax.Array:
        h = jnp.concatenate([p["cls"], drop(x)]) + p["pos"][: SEQ + 1]
        h = h + jnp.broadcast_to(p["shift"], (SEQ + 1, DIM))
        return jnp.sum(jnp.square(jnp.tanh(h @ p["w"]))[: SEQ - 1])

    return Case(loss, params, normal(5, BATCH, SEQ, DIM))


def convolutions() -> Case:
    """Strided, dilated, grouped and one-dimensional kernels."""
    params = {"k": normal(1, 3, 3, 2, 4), "b": normal(2, 4), "depth": normal(3, 2, 2, 1, 8), "line": normal(4, 3, 8, 4)}

    def loss(p: dict, x: jax.Array) -> jax.Array:
        nhwc = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(x[None], p["k"], (2, 1), "SAME", rhs_dilation=(1, 2), dimension_numbers=nhwc)
        y = drop(jnp.tanh(y + p["b"][None, None, None]))
        y = lax.conv_general_dilated(y, p["depth"], (1, 1), "VALID", dimension_numbers=nhwc, feature_group_count=4)
        y = y.reshape(1, -1, 8)
        y = lax.conv_general_dilated(y, p["line"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
        return jnp.sum(jnp.square(jnp.tanh(y)))

    return Case(loss, params, normal(5, BATCH, 8, 7, 2))


@jax.custom_vjp
def _straight_through(x: jax.Array, w: jax.Array) -> jax.Array:
    return x @ jnp.round(4 * w) / 4


_straight_through.defvjp(lambda x, w: (_straight_through(x, w), (x, w)), lambda r, ct: (ct @ r[1].T, 2 * r[0].T @ ct))


def custom_rules() -> Case:
    """Custom derivatives are the model's own: the gradient is what they say."""
    params = {"w": weights(1, DIM, DIM), "s": normal(2, DIM)}
    loss = lambda p, x: jnp.sum(jnp.square(_straight_through(drop(x), p["w"]) * jax.nn.relu(p["s"])[None]))
    return Case(loss, params, normal(5, BATCH, SEQ, DIM))


def odd_primitives() -> Case:
    """Uses without a rule of their own (sort, cumulative sum), and elementwise ones: division, maximum, power."""
    params = {"a": normal(1, SEQ, DIM), "b": 1.5 + jnp.abs(normal(2, DIM)), "c": normal(3), "d": normal(4, DIM)}

    def loss(p: dict, x: jax.Array) -> jax.Array:
        y = drop(jnp.maximum(x, p["a"]) / p["b"][None])
        y = jnp.cumsum(y - p["d"][None], axis=0) + jnp.where(x > 0, p["a"], 0.0)
        return jnp.sum(jnp.sort(y, axis=0)[-1]) * p["c"] + jnp.sum(jnp.power(jnp.abs(x) + 1.0, p["c"]))

    return Case(loss, params, normal(5, BATCH, SEQ, DIM))


def windows() -> Case:
    """Positions from a place of the example's own, cut out of a table that is looked up, too."""
    params = {"table": normal(1, VOCAB, DIM), "out": weights(2, DIM, DIM)}

    def loss(p: dict, example: dict) -> jax.Array:
        h = jax.lax.dynamic_slice_in_dim(p["table"], example["start"], SEQ) + p["table"][example["ids"]]
        return jnp.mean(jnp.square(drop(h) @ p["out"]))

    start = jnp.array([0, 3, VOCAB, -2, 1][:BATCH], jnp.int8)
    return Case(loss, params, {"start": start, "ids": tokens()})


def scalar_parameter() -> Case:
    """The parameter is the whole pytree, and part of the loss without any example."""
    return Case(lambda p, x: drop(x) * p + jnp.square(p), normal(1), normal(2, BATCH))


def dropout() -> Case:
    """A key per example, carried in the batch."""
    params = weights(1, DIM, DIM)

    def loss(p: jax.Array, example: dict) -> jax.Array:
        keep = jax.random.bernoulli(example["key"], 0.5, (SEQ, DIM))
        return jnp.sum(jnp.square(drop(jnp.where(keep, example["x"], 0.0)) @ p))

    return Case(loss, params, {"x": normal(2, BATCH, SEQ, DIM), "key": jax.random.split(jax.random.key(1), BATCH)})


class _LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, h: jax.Array, _: None) -> tuple[jax.Array, None]:
        h = h + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(h))
        mask = nn.Dropout(0.25, deterministic=not self.has_rng("dropout"))
        return h + nn.Dense(DIM)(mask(nn.gelu(nn.Dense(16)(nn.LayerNorm()(h))))), None


class _LinenTransformer(nn.Module):
    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        embed = nn.Embed(VOCAB, DIM)
        split = {"params": True, "dropout": True}
        stack = nn.scan(nn.remat(_LinenBlock), variable_axes={"params": 0}, split_rngs=split, length=2)
        h, _ = stack()(embed(ids), None)
        return embed.attend(h)


def linen_transformer() -> Case:
    """Flax Linen with `nn.scan`, `nn.remat` and a tied head."""
    model = _LinenTransformer()
    params = model.init(jax.random.key(0), tokens()[0])
    rngs = lambda: {"dropout": next_key()} if _keys else None
    return Case(lambda p, ids: next_token_loss(model.apply(p, ids, rngs=rngs()), ids), params, tokens())


class _NNXConvNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.GroupNorm(4, num_groups=2, rngs=rngs)
        self.dense = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norm(self.conv(x)))
        if _keys:
            y = nnx.Dropout(0.25)(y, rngs=nnx.Rngs(next_key()))
        return self.dense(jnp.mean(y, axis=(0, 1)))


def nnx_conv_net() -> Case:
    graph, params = nnx.split(_NNXConvNet(nnx.Rngs(0)))
    loss = lambda p, x: jax.nn.logsumexp(nnx.merge(graph, p)(x))
    return Case(loss, params, normal(1, BATCH, 8, 8, 2))


def haiku_lstm() -> Case:
    def forward(x: jax.Array) -> jax.Array:
        core = hk.LSTM(4)
        out, _ = hk.dynamic_unroll(core, x, core.initial_state(None))
        key = hk.maybe_next_rng_key()
        return hk.Linear(1)(out[-1] if key is None else drop(out[-1], key))[0]

    model = hk.transform(forward)
    xs = normal(1, BATCH, SEQ, 3)
    return Case(lambda p, x: jnp.square(model.apply(p, next_key(), x)), model.init(jax.random.key(0), xs[0]), xs)


def equinox_mlp() -> Case:
    model = eqx.nn.MLP(DIM, 2, 16, 2, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(p: Any, x: jax.Array) -> jax.Array:
        key = next_key()
        hidden = eqx.nn.Dropout(0.25, inference=key is None)(x, key=key)
        return jnp.sum(jnp.square(eqx.combine(p, static)(hidden)))

    return Case(loss, params, normal(1, BATCH, DIM))


def complex_normal(i: int, *shape: int, scale: float = 1.0) -> jax.Array:
    return lax.complex(normal(i, *shape, scale=scale), normal(i + 100, *shape, scale=scale))


def promoting(loss: Callable) -> Callable:
    """A loss that leaves it to JAX to make real numbers complex, as users do."""

    def run(*args: Any) -> jax.Array:
        with jax.numpy_dtype_promotion("standard"):
            return loss(*args)

    return run


def fourier_layers() -> Case:
    """Layers of a Fourier neural operator: complex kernels of few modes, scanned over and in checkpoints."""
    modes = 3
    params = {
        "lift": weights(1, 2, 4),
        "layers": {
            "modes": complex_normal(2, 3, modes, 4, 4, scale=0.3),
            "w": weights(3, 3, 4, 4),
            "b": normal(4, 3, 4, scale=0.1),
        },
        "out": normal(5, 4),
    }

    @jax.checkpoint
    def layer(h: jax.Array, p: dict) -> jax.Array:
        low = jnp.fft.rfft(h, axis=0)[:modes]
        mixed = jnp.zeros((5, 4), jnp.complex64).at[:modes].set(jnp.einsum("mi,mio->mo", low, p["modes"]))
        return jnp.tanh(jnp.fft.irfft(mixed, n=8, axis=0) + h @ p["w"] + p["b"][None])

    def loss(p: dict, x: jax.Array) -> jax.Array:
        h, _ = lax.scan(lambda h, w: (layer(h, w), None), x @ p["lift"], p["layers"])
        return jnp.mean(jnp.square(h @ p["out"]))

    return Case(promoting(loss), params, normal(6, BATCH, 8, 2))


def state_space() -> Case:
    """A diagonal state space layer: a complex scan of real and of complex parameters, and a complex first state."""
    params = {
        "rate": normal(1, 4, scale=0.3),
        "angle": normal(2, 4),
        "b": normal(3, 2, 4, DIM, scale=0.3),
        "c": complex_normal(4, 3, 4),
        "skip": weights(5, DIM, 3),
        "start": complex_normal(6, 4),
    }

    def loss(p: dict, xs: jax.Array) -> jax.Array:
        decay = jnp.exp(lax.complex(-jnp.exp(p["rate"]), p["angle"]))
        into = lax.complex(p["b"][0], p["b"][1])

        def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            h = decay * h + into @ x.astype(jnp.complex64)
            return h, 2 * (p["c"] @ h).real + x @ p["skip"]

        h, ys = lax.scan(step, p["start"], xs)
        return jnp.mean(jnp.square(jnp.tanh(ys))) + 0.1 * jnp.sum(jnp.abs(h)) + jnp.sum(h * jnp.conj(h)).real

    return Case(promoting(loss), params, normal(7, BATCH, SEQ, DIM))


def complex_recurrent() -> Case:
    """A complex kernel at every step, a table that is looked up and multiplied with, and complex data."""
    params = {"w": complex_normal(1, 4, 4, scale=0.3), "table": complex_normal(2, VOCAB, 4), "real": normal(3, 4)}

    def loss(p: dict, example: dict) -> jax.Array:
        def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
            h = h @ p["w"] + x
            return h / (1 + jnp.abs(h)), None

        h, _ = lax.scan(step, example["x"], p["table"][example["ids"]])
        scores = jnp.abs(p["table"] @ h)
        return jax.nn.logsumexp(scores) - scores[0] + jnp.sum(jnp.angle(h * p["real"] + 1j * p["real"]))

    return Case(promoting(loss), params, {"x": complex_normal(4, BATCH, 4), "ids": tokens()})


@jax.custom_vjp
def _turned(z: jax.Array, w: jax.Array) -> jax.Array:
    return z @ w


_turned.defvjp(lambda z, w: (_turned(z, w), (z, w)), lambda r, ct: (ct @ r[1].T, 2j * jnp.outer(r[0], ct)))


def complex_views() -> Case:
    """Real weights that become complex, complex ones that become real, and one weight in both ways."""
    params = {
        "w": weights(1, DIM, DIM),
        "z": complex_normal(2, DIM, DIM, scale=0.3),
        "bias": complex_normal(3, DIM),
        "kernel": complex_normal(4, 3, 2, 4, scale=0.5),
        "phase": normal(5, DIM),
        "turned": complex_normal(6, DIM, 2),
    }

    def loss(p: dict, x: jax.Array) -> jax.Array:
        spectrum = jnp.fft.fft(x) @ p["w"] + p["bias"]
        spectrum = spectrum * jnp.exp(1j * p["phase"])
        half = jnp.abs(x @ jnp.real(p["z"])) + jnp.imag(spectrum) * jnp.imag(p["z"])[0]
        y = jnp.conj(p["z"]).T @ spectrum + half
        signal = y.reshape(1, 4, 2)
        folded = lax.conv_general_dilated(signal, p["kernel"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
        tied = jnp.sum(x @ p["w"]) + jnp.sum(jnp.abs(jnp.fft.fft(p["w"], axis=0).T @ x) ** 2)
        turned = jnp.abs(jnp.sum(_turned(y, p["turned"])))
        chosen = lax.cond(y[0].real > 0, lambda: jnp.abs(y @ p["z"])[0], lambda: jnp.sum((y * p["bias"]).imag))
        return jnp.sum(jnp.abs(folded)) + 0.1 * tied + turned + chosen

    return Case(promoting(loss), params, normal(7, BATCH, DIM))


def branches() -> Case:
    """Branches on an example's values, with infinite derivatives in those that it does not take."""
    params = {
        "w": normal(1, 3),
        "v": normal(2, DIM, DIM, scale=0.3),
        "g": jnp.array([0.0, -1.0, 2.0]),
        "table": normal(3, VOCAB, DIM),
        "stack": weights(4, 3, DIM, DIM),
        "scale": 1 + 0.1 * normal(5, 3, DIM),
    }

    def safe_log(w: jax.Array, t: jax.Array) -> jax.Array:
        return lax.cond(t > 0, lambda: w * jnp.log(t), lambda: w * t)

    def loss(p: dict, example: dict) -> jax.Array:
        x, which, ids = example["x"], example["which"], example["ids"]
        first = x[0, 0]
        root = jnp.sqrt(x[0])  # NaN in half of its entries, but for the last example
        # The logarithm of a parameter that has none, of which no example's gradient knows.
        never = lambda: jnp.sum(jnp.log(p["g"])) * first + p["g"][0] ** 0.5 * first
        taken = lax.cond(first > 100.0, never, lambda: jnp.sum(p["g"] * first))
        both = lax.switch(
            which,
            [
                lambda: jnp.sum(jnp.tanh(x @ p["v"])),
                lambda: safe_log(p["w"][0], first) + p["w"][1] / jnp.where(which == 1, 2.0, 0.0),
                lambda: jnp.sum(jax.checkpoint(lambda v: jnp.sqrt(jnp.abs(first) + 1.0) * jnp.tanh(x @ v))(p["v"])),
                lambda: jnp.sum(jnp.square(root @ p["v"])) + jnp.sum(jnp.tanh(p["table"][ids] / root[None])),
            ],
        )
        mapped = jnp.sum(lax.map(lambda t: safe_log(p["w"][2], t) + safe_log(first, t + 1.0), x[:, 1]))

        def layer(h: jax.Array, layer: tuple) -> tuple[jax.Array, None]:
            w, s = layer
            up = lambda: jnp.tanh(h @ w) * jnp.log(h[0, 0])
            h = lax.cond(
                h[0, 0] > 0, up, lambda: lax.cond(which < 2, lambda: jnp.tanh(h @ w) * s[None], lambda: h + s[None])
            )
            return h, None

        def deep(h: jax.Array) -> jax.Array:
            h, _ = lax.scan(jax.checkpoint(layer), h, (p["stack"], p["scale"]))
            return jnp.sum(jnp.square(h))

        loops = lax.cond(
            which < 2, lambda: deep(x), lambda: lax.cond(which > 5, lambda: deep(x / 0.0), lambda: deep(-x))
        )
        return taken + both + mapped + loops

    x = normal(6, BATCH, SEQ, DIM)
    batch = {"x": x.at[-1, 0].set(0.5 + jnp.abs(x[-1, 0])), "which": jnp.array([0, 1, 2, 1, 3]), "ids": tokens()}
    return Case(loss, params, batch)


ZOO: dict[str, Callable[[], Case]] = {
    f.__name__: f
    for f in (
        dense_net,
        wide_dense_sequence,
        transformer,
        scanned_checkpointed_transformer,
        stacked_but_unrolled,
        loop_indexed_stack,
        recurrent,
        carried_weight,
        tied_embedding_and_head,
        lora,
        weight_normalised,
        conditional,
        experts,
        class_token,
        convolutions,
        custom_rules,
        odd_primitives,
        scalar_parameter,
        dropout,
        linen_transformer,
        nnx_conv_net,
        haiku_lstm,
        equinox_mlp,
        fourier_layers,
        state_space,
        complex_recurrent,
        complex_views,
        branches,
        windows,
    )
}

# Each model with dropout once in one way after the other: the ways differ in what they do to keys, not to models.
DROPOUT: dict[str, Callable[[], Case]] = {
    f"{name}, {way}": functools.partial(with_dropout, make, way)
    for (name, make), way in zip(ZOO.items(), itertools.cycle(WAYS))
}
