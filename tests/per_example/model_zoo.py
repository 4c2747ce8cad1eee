"""The one table of models: each is `(loss of one example, params, batch)`, small and of another make."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

BATCH, SEQ, DIM, VOCAB = 5, 6, 8, 11


class Case(NamedTuple):
    loss: Callable
    params: Any
    batch: Any


def normal(i: int, *shape: int, scale: float = 1.0) -> jax.Array:
    return scale * jax.random.normal(jax.random.fold_in(jax.random.key(7), i), shape)


def tokens(length: int = SEQ) -> jax.Array:
    return jax.random.randint(jax.random.key(3), (BATCH, length), 0, VOCAB)


def weights(i: int, *shape: int) -> jax.Array:
    return normal(i, *shape, scale=shape[-2] ** -0.5)


def next_token_loss(logits: jax.Array, ids: jax.Array) -> jax.Array:
    log_p = jax.nn.log_softmax(logits[:-1].astype(jnp.float32))
    return -jnp.mean(jnp.take_along_axis(log_p, ids[1:, None], axis=1))


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    mean = jnp.mean(x, axis=-1, keepdims=True)
    var = jnp.var(x, axis=-1, keepdims=True)
    return (x - mean) * lax.rsqrt(var + 1e-5) * scale[None] + bias[None]


def attention_block(h: jax.Array, p: dict) -> jax.Array:
    y = layer_norm(h, p["norm"], p["shift"])
    q, k, v = (jnp.einsum("td,dhe->the", y, p[name]) for name in ("q", "k", "v"))
    probs = jax.nn.softmax(jnp.einsum("the,she->hts", q, k))
    h = h + jnp.einsum("hts,she,hed->td", probs, v, p["o"])
    return h + jax.nn.gelu(h @ p["up"] + p["up_bias"][None]) @ p["down"]


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
    loss = lambda p, x: jnp.square(jnp.tanh(x["x"] @ p["w"] + p["b"]) @ p["v"] - x["y"])
    return Case(loss, params, {"x": normal(4, BATCH, DIM), "y": normal(5, BATCH)})


def wide_dense_sequence() -> Case:
    """Short sequences through wide layers: the Gram side of the norm."""
    params = {"w": weights(1, 64, 48), "b": normal(2, 48), "v": normal(3, 48)}
    loss = lambda p, x: jnp.sum(jnp.square(jnp.tanh(x @ p["w"] + p["b"][None]) @ p["v"]))
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
            h = attention_block(h, layer)
        return next_token_loss(h @ p["head"], ids)

    return Case(loss, params, tokens())


def scanned_checkpointed_transformer() -> Case:
    params = {"embed": normal(0, VOCAB, DIM), "layers": block_params(3), "head": weights(9, DIM, VOCAB)}

    def loss(p: dict, ids: jax.Array) -> jax.Array:
        block = jax.checkpoint(attention_block, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
        h, _ = lax.scan(lambda h, w: (block(h, w), None), jnp.take(p["embed"], ids, axis=0), p["layers"])
        return next_token_loss(h @ p["head"], ids)

    return Case(loss, params, tokens())


def stacked_but_unrolled() -> Case:
    """Static slices of one stacked leaf are disjoint."""
    params = {"w": weights(1, 3, DIM, DIM), "b": normal(2, 3, DIM)}

    def loss(p: dict, x: jax.Array) -> jax.Array:
        for i in range(3):
            x = jnp.tanh(x @ p["w"][i] + p["b"][i][None])
        return jnp.sum(jnp.square(x))

    return Case(loss, params, normal(4, BATCH, SEQ, DIM))


def loop_indexed_stack() -> Case:
    """A stacked leaf read by the counter of a `fori_loop`."""
    params = weights(1, 3, DIM, DIM)
    step = lambda p: lambda i, x: jnp.tanh(x @ p[i])
    return Case(lambda p, x: jnp.sum(jnp.square(lax.fori_loop(0, 3, step(p), x))), params, normal(4, BATCH, SEQ, DIM))


def recurrent() -> Case:
    """One weight at every time step, and a learned initial state."""
    params = {"wx": weights(1, DIM, DIM), "wh": weights(2, DIM, DIM), "b": normal(3, DIM), "h0": normal(4, DIM)}

    def loss(p: dict, xs: jax.Array) -> jax.Array:
        cell = lambda h, x: (jnp.tanh(x @ p["wx"] + h @ p["wh"] + p["b"]), h)
        h, hs = lax.scan(cell, p["h0"], xs)
        return jnp.sum(jnp.square(h)) + jnp.mean(hs)

    return Case(loss, params, normal(5, BATCH, SEQ, DIM))


def carried_weight() -> Case:
    """A scan that hands its weight through the carry."""
    params = weights(1, DIM, DIM)

    def loss(p: jax.Array, xs: jax.Array) -> jax.Array:
        cell = lambda carry, x: ((jnp.tanh(carry[0] @ carry[1] + x), carry[1]), None)
        (h, w), _ = lax.scan(cell, (jnp.zeros(DIM), p), xs)
        return jnp.sum(jnp.square(h)) + jnp.sum(h @ w)

    return Case(loss, params, normal(5, BATCH, SEQ, DIM))


def tied_embedding_and_head() -> Case:
    params = {"embed": normal(0, VOCAB, DIM), "w": weights(1, DIM, DIM)}
    loss = lambda p, ids: next_token_loss(jnp.tanh(p["embed"][ids] @ p["w"]) @ p["embed"].T, ids)
    return Case(loss, params, tokens())


def lora() -> Case:
    """Low-rank factors beside a frozen kernel, and merged into one."""
    frozen, params = weights(1, DIM, DIM), {"a": normal(2, DIM, 2), "b": normal(3, 2, DIM), "c": normal(4, DIM, 2)}

    def loss(p: dict, x: jax.Array) -> jax.Array:
        h = jnp.tanh(x @ frozen + (x @ p["a"]) @ p["b"])
        return jnp.sum(jnp.square(h @ (frozen + p["c"] @ p["b"])))

    return Case(loss, params, normal(5, BATCH, SEQ, DIM))


def weight_normalised() -> Case:
    params = {"g": normal(1, DIM), "v": weights(2, DIM, DIM)}

    def loss(p: dict, x: jax.Array) -> jax.Array:
        norm = jnp.sqrt(jnp.sum(jnp.square(p["v"]), axis=0, keepdims=True))
        return jnp.sum(jnp.square(jnp.tanh(x @ (p["g"][None] * p["v"] / norm))))

    return Case(loss, params, normal(5, BATCH, SEQ, DIM))


def conditional() -> Case:
    """A parameter used in one branch only, chosen by the example, and one used in both."""
    params = {"w": weights(1, DIM, DIM), "v": normal(2, DIM)}

    def loss(p: dict, x: jax.Array) -> jax.Array:
        high = lambda: jnp.sum(jnp.tanh(x @ p["w"]))
        low = lambda: jnp.sum((x @ p["w"]) @ p["v"])
        public = lax.cond(jnp.float32(1) > 0, lambda: jnp.sum(p["v"] * x[0]), lambda: jnp.sum(x @ p["w"]))
        return lax.cond(jnp.sum(x) > 0, high, low) + public

    return Case(loss, params, normal(5, BATCH, SEQ, DIM))


def experts() -> Case:
    """A kernel with a batch dimension, and one whose contraction spans two axes."""
    params = {"w": normal(1, 3, DIM, 4), "o": normal(2, 3, 4, DIM), "left": normal(3, 5, SEQ)}

    def loss(p: dict, x: jax.Array) -> jax.Array:
        h = jnp.tanh(jnp.einsum("td,edf->etf", x, p["w"]))
        y = jnp.einsum("etf,efd->td", h, p["o"])
        return jnp.sum(jnp.square(p["left"] @ y))

    return Case(loss, params, normal(5, BATCH, SEQ, DIM))


def class_token() -> Case:
    """A token of the model's own, a slice of a table, and a vector repeated before it is used."""
    params = {"cls": normal(1, 1, DIM), "w": weights(2, DIM, DIM), "pos": normal(3, 20, DIM), "shift": normal(4, DIM)}

    def loss(p: dict, x: jax.Array) -> jax.Array:
        h = jnp.concatenate([p["cls"], x]) + p["pos"][: SEQ + 1]
        h = h + jnp.broadcast_to(p["shift"], (SEQ + 1, DIM))
        return jnp.sum(jnp.square(jnp.tanh(h @ p["w"]))[: SEQ - 1])

    return Case(loss, params, normal(5, BATCH, SEQ, DIM))


def convolutions() -> Case:
    """Strided, dilated, grouped and one-dimensional kernels."""
    params = {"k": normal(1, 3, 3, 2, 4), "b": normal(2, 4), "depth": normal(3, 2, 2, 1, 8), "line": normal(4, 3, 8, 4)}

    def loss(p: dict, x: jax.Array) -> jax.Array:
        nhwc = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(x[None], p["k"], (2, 1), "SAME", rhs_dilation=(1, 2), dimension_numbers=nhwc)
        y = jnp.tanh(y + p["b"][None, None, None])
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
    loss = lambda p, x: jnp.sum(jnp.square(_straight_through(x, p["w"]) * jax.nn.relu(p["s"])[None]))
    return Case(loss, params, normal(5, BATCH, SEQ, DIM))


def odd_primitives() -> Case:
    """Uses that have no rule of their own: sort, cumulative sum, division, maximum, power."""
    params = {"a": normal(1, SEQ, DIM), "b": 1.5 + jnp.abs(normal(2, DIM)), "c": normal(3), "d": normal(4, DIM)}

    def loss(p: dict, x: jax.Array) -> jax.Array:
        y = jnp.maximum(x, p["a"]) / p["b"][None]
        y = jnp.cumsum(y - p["d"][None], axis=0) + jnp.where(x > 0, p["a"], 0.0)
        return jnp.sum(jnp.sort(y, axis=0)[-1]) * p["c"] + jnp.sum(jnp.power(jnp.abs(x) + 1.0, p["c"]))

    return Case(loss, params, normal(5, BATCH, SEQ, DIM))


def scalar_parameter() -> Case:
    """The parameter is the whole pytree, and part of the loss without any example."""
    return Case(lambda p, x: x * p + jnp.square(p), normal(1), normal(2, BATCH))


def dropout() -> Case:
    """A key per example, carried in the batch."""
    params = weights(1, DIM, DIM)

    def loss(p: jax.Array, example: dict) -> jax.Array:
        keep = jax.random.bernoulli(example["key"], 0.5, (SEQ, DIM))
        return jnp.sum(jnp.square(jnp.where(keep, example["x"], 0.0) @ p))

    return Case(loss, params, {"x": normal(2, BATCH, SEQ, DIM), "key": jax.random.split(jax.random.key(1), BATCH)})


class _LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, h: jax.Array, _: None) -> tuple[jax.Array, None]:
        h = h + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(h))
        return h + nn.Dense(DIM)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(h)))), None


class _LinenTransformer(nn.Module):
    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        embed = nn.Embed(VOCAB, DIM)
        stack = nn.scan(nn.remat(_LinenBlock), variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        h, _ = stack()(embed(ids), None)
        return embed.attend(h)


def linen_transformer() -> Case:
    """Flax Linen with `nn.scan`, `nn.remat` and a tied head."""
    model = _LinenTransformer()
    params = model.init(jax.random.key(0), tokens()[0])
    return Case(lambda p, ids: next_token_loss(model.apply(p, ids), ids), params, tokens())


class _NNXConvNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.GroupNorm(4, num_groups=2, rngs=rngs)
        self.dense = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norm(self.conv(x)))
        return self.dense(jnp.mean(y, axis=(0, 1)))


def nnx_conv_net() -> Case:
    graph, params = nnx.split(_NNXConvNet(nnx.Rngs(0)))
    loss = lambda p, x: jax.nn.logsumexp(nnx.merge(graph, p)(x))
    return Case(loss, params, normal(1, BATCH, 8, 8, 2))


def haiku_lstm() -> Case:
    def forward(x: jax.Array) -> jax.Array:
        core = hk.LSTM(4)
        out, _ = hk.dynamic_unroll(core, x, core.initial_state(None))
        return hk.Linear(1)(out[-1])[0]

    model = hk.without_apply_rng(hk.transform(forward))
    xs = normal(1, BATCH, SEQ, 3)
    return Case(lambda p, x: jnp.square(model.apply(p, x)), model.init(jax.random.key(0), xs[0]), xs)


def equinox_mlp() -> Case:
    model = eqx.nn.MLP(DIM, 2, 16, 2, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return Case(lambda p, x: jnp.sum(jnp.square(eqx.combine(p, static)(x))), params, normal(1, BATCH, DIM))


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
    )
}
