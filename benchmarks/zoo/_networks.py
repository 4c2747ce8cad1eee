"""Networks of layers: Equinox, Haiku, Flax, Keras, Penzai, Equimo, kfac-jax."""

import os

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.zoo._model import BATCH, Parts, integers, normal, of


@of("equinox", "MultiheadAttention, LayerNorm, MLP")
def equinox_attention() -> Parts:
    import equinox as eqx

    keys = jax.random.split(jax.random.key(0), 3)
    layers = (eqx.nn.MultiheadAttention(2, 8, key=keys[0]), eqx.nn.LayerNorm(8), eqx.nn.MLP(8, 1, 8, 2, key=keys[1]))
    params, static = eqx.partition(layers, eqx.is_inexact_array)

    def loss(p, example):
        attention, norm, head = eqx.combine(p, static)
        x = jax.vmap(norm)(example[0] + attention(example[0], example[0], example[0]))
        return jnp.square(jnp.mean(jax.vmap(head)(x)) - example[1])

    return Parts(loss, params, (normal(1, BATCH, 5, 8), normal(2, BATCH)))


@of("equinox", "Conv2d, GroupNorm, ConvTranspose2d, PReLU, MaxPool2d, WeightNorm")
def equinox_convolutions() -> Parts:
    import equinox as eqx

    keys = jax.random.split(jax.random.key(0), 4)
    net = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(2, 4, 3, padding=1, key=keys[0]),
            eqx.nn.GroupNorm(2, 4),
            eqx.nn.Lambda(eqx.nn.PReLU()),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Conv2d(4, 4, 3, groups=2, dilation=2, padding=2, key=keys[1]),
            eqx.nn.ConvTranspose2d(4, 3, 2, stride=2, key=keys[2]),
            eqx.nn.Lambda(lambda x: x.reshape(-1)),
            eqx.nn.WeightNorm(eqx.nn.Linear(3 * 8 * 8, 2, key=keys[3])),
        ]
    )
    params, static = eqx.partition(net, eqx.is_inexact_array)
    loss = lambda p, example: jnp.sum(jnp.square(eqx.combine(p, static)(example[0]) - example[1]))
    return Parts(loss, params, (normal(1, BATCH, 2, 8, 8), normal(2, BATCH, 2)))


@of("equinox", "GRUCell in internal.while_loop with checkpoints")
def equinox_checkpointed_loop() -> Parts:
    import equinox as eqx
    import equinox.internal as eqxi

    cell = eqx.nn.GRUCell(3, 4, key=jax.random.key(0))
    params, static = eqx.partition(cell, eqx.is_inexact_array)

    def loss(p, example):
        xs, target = example
        step = lambda carry: (carry[0] + 1, eqx.combine(p, static)(xs[carry[0]], carry[1]))
        start = (0, jnp.zeros(4))
        _, h = eqxi.while_loop(lambda carry: carry[0] < 6, step, start, max_steps=6, kind="checkpointed")
        return jnp.sum(jnp.square(h - target))

    return Parts(loss, params, (normal(1, BATCH, 6, 3), normal(2, BATCH, 4)))


@of("dm-haiku", "LSTM by dynamic_unroll, layer_stack")
def haiku_lstm() -> Parts:
    import haiku as hk

    def forward(x):
        x = hk.experimental.layer_stack(2)(lambda y: jax.nn.tanh(hk.Linear(4)(y)))(x)
        core = hk.LSTM(5)
        out, _ = hk.dynamic_unroll(core, x, core.initial_state(None))
        return hk.Linear(1)(out[-1])[0]

    net = hk.without_apply_rng(hk.transform(forward))
    x = normal(1, BATCH, 6, 4)
    params = net.init(jax.random.key(0), jnp.asarray(x[0]))
    return Parts(lambda p, e: jnp.square(net.apply(p, e[0]) - e[1]), params, (x, normal(2, BATCH)))


@of("dm-haiku", "Conv2D, DepthwiseConv2D, RMSNorm, MultiHeadAttention")
def haiku_convolutions() -> Parts:
    import haiku as hk

    def forward(x):
        x = jax.nn.relu(hk.Conv2D(4, 3, stride=2)(x))
        x = hk.RMSNorm(-1)(hk.DepthwiseConv2D(1, 3)(x[None])[0]).reshape(-1, 4)
        attention = hk.MultiHeadAttention(2, 4, w_init=hk.initializers.VarianceScaling(1.0), model_size=4)
        return hk.nets.MLP([6, 1])(attention(x, x, x)).mean()

    net = hk.without_apply_rng(hk.transform(forward))
    x = normal(1, BATCH, 6, 6, 2)
    params = net.init(jax.random.key(0), jnp.asarray(x[0]))
    return Parts(lambda p, e: jnp.square(net.apply(p, e[0]) - e[1]), params, (x, normal(2, BATCH)))


@of("flax", "linen: scanned and rematted MultiHeadDotProductAttention, GLU, Embed.attend")
def linen_transformer() -> Parts:
    import flax.linen as nn
    import optax

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(2)(y, mask=nn.make_causal_mask(jnp.ones(x.shape[:1])))
            return x + nn.Dense(8)(nn.glu(nn.Dense(16)(nn.RMSNorm()(x)))), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, ids):
            embed = nn.Embed(11, 8)
            layers = nn.scan(nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
            return embed.attend(layers()(embed(ids), None)[0])

    net, ids = Net(), integers(1, 11, BATCH, 7)
    params = net.init(jax.random.key(0), jnp.asarray(ids[0, :-1]))["params"]

    def loss(p, e):
        return optax.softmax_cross_entropy_with_integer_labels(net.apply({"params": p}, e[:-1]), e[1:]).mean()

    return Parts(loss, params, ids)


@of("flax", "linen: RNN of ConvLSTMCell, bidirectional GRU, WeightNorm")
def linen_recurrent() -> Parts:
    import flax.linen as nn

    double = {"param_dtype": jnp.float64}

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.RNN(nn.ConvLSTMCell(3, (3,), **double))(x).reshape(x.shape[0], -1)
            both = nn.Bidirectional(nn.RNN(nn.GRUCell(4, **double)), nn.RNN(nn.OptimizedLSTMCell(4, **double)))(x)
            return nn.WeightNorm(nn.Dense(1))(both).mean()

    net, x = Net(), normal(1, BATCH, 5, 4, 2)
    params = net.init(jax.random.key(0), jnp.asarray(x[0]))["params"]
    return Parts(lambda p, e: jnp.square(net.apply({"params": p}, e[0]) - e[1]), params, (x, normal(2, BATCH)))


@of("flax", "nnx: Conv, GroupNorm, MultiHeadAttention, LoRALinear, Einsum")
def nnx_network() -> Parts:
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(2, 4, (3, 3), feature_group_count=2, rngs=rngs)
            self.norm = nnx.GroupNorm(4, num_groups=2, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
            self.lora = nnx.LoRALinear(4, 6, lora_rank=2, rngs=rngs)
            self.einsum = nnx.Einsum("tc,cd->td", (6, 3), (3,), rngs=rngs)

        def __call__(self, x):
            x = self.norm(nnx.gelu(self.conv(x))).reshape(-1, 4)
            return self.einsum(nnx.relu(self.lora(x + self.attention(x)))).mean()

    graphdef, params = nnx.split(Net(nnx.Rngs(0)), nnx.Any(nnx.Param, nnx.LoRAParam), ...)[:2]
    rest = nnx.split(Net(nnx.Rngs(0)), nnx.Any(nnx.Param, nnx.LoRAParam), ...)[2]
    # Half of an adapter begins at zero, and with it the gradient of the other half.
    params = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    loss = lambda p, e: jnp.square(nnx.merge(graphdef, p, rest)(e[0]) - e[1])
    return Parts(loss, params, (normal(1, BATCH, 4, 4, 2), normal(2, BATCH)))


def _keras_loss(net):
    trained = [jnp.asarray(v.value) for v in net.trainable_variables]
    frozen = [jnp.asarray(v.value) for v in net.non_trainable_variables]

    def loss(p, e):
        out, _ = net.stateless_call(p, frozen, e[0][None], training=False)
        return jnp.mean(jnp.square(out[0] - e[1]))

    return loss, trained


def _keras():
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    keras.config.set_floatx("float64")
    return keras


@of("keras", "SeparableConv2D, DepthwiseConv2D, GroupNormalization, Conv2DTranspose")
def keras_convolutions() -> Parts:
    keras = _keras()
    layers = keras.layers
    net = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.SeparableConv2D(4, 3, padding="same", activation="relu"),
            layers.GroupNormalization(2),
            layers.DepthwiseConv2D(3, strides=2),
            layers.Conv2DTranspose(3, 3, activation="gelu"),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2),
        ]
    )
    loss, params = _keras_loss(net)
    return Parts(loss, params, (normal(1, BATCH, 8, 8, 2), normal(2, BATCH, 2)))


@of("keras", "Embedding, GroupQueryAttention, LayerNormalization, Bidirectional LSTM, EinsumDense")
def keras_sequence() -> Parts:
    keras = _keras()
    layers = keras.layers
    ids = keras.Input((6,), dtype="int32")
    x = layers.Embedding(11, 8)(ids)
    x = layers.LayerNormalization()(x + layers.GroupQueryAttention(4, 4, 2)(x, x, use_causal_mask=True))
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(x)
    x = layers.EinsumDense("btc,cd->btd", (None, 4), bias_axes="d")(x)
    net = keras.Model(ids, layers.GRU(2)(x))
    loss, params = _keras_loss(net)
    return Parts(loss, params, (integers(1, 11, BATCH, 6), normal(2, BATCH, 2)))


@of("penzai", "simple_mlp.MLP with named axes")
def penzai_mlp() -> Parts:
    from penzai import pz
    from penzai.models import simple_mlp

    net = simple_mlp.MLP.from_config(
        name="mlp", init_base_rng=jax.random.key(0), feature_sizes=[4, 6, 6, 2], activation_fn=jax.nn.gelu
    )
    return _penzai(pz, net, lambda call, e: call(pz.nx.wrap(e[0]).tag("features")).untag("features").unwrap() - e[1])


def _penzai(pz, net, residual):
    net, variables = pz.unbind_params(net)
    frozen = {v.label: v.freeze() for v in variables}
    params = {str(label): v.value.untag(*v.value.named_axes).unwrap() for label, v in frozen.items()}

    def loss(p, e):
        values = []
        for label, v in frozen.items():
            names = tuple(v.value.named_axes)
            values.append(v.__class__(label=label, value=pz.nx.wrap(p[str(label)]).tag(*names), metadata=v.metadata))
        return jnp.mean(jnp.square(residual(pz.bind_variables(net, values), e)))

    return Parts(loss, params, (normal(1, BATCH, 4), normal(2, BATCH, 2)))


@of("equimo", "VisionTransformer with class token and registers")
def equimo_vit() -> Parts:
    import equimo.models as models
    import equinox as eqx

    net = models.VisionTransformer(
        img_size=8,
        in_channels=3,
        dim=8,
        patch_size=4,
        num_heads=[2],
        depths=[2],
        num_classes=3,
        reg_tokens=1,
        key=jax.random.key(0),
    )
    return _equimo(eqx, net, (normal(1, BATCH, 3, 8, 8), integers(2, 3, BATCH)))


@of("equimo", "Mamba2Mixer (state space)")
def equimo_mamba() -> Parts:
    import equinox as eqx
    from equimo.layers.mamba import Mamba2Mixer

    mixer = Mamba2Mixer(8, key=jax.random.key(0), expand=2, n_groups=1, d_state=4, head_dim=4)
    params, static = eqx.partition(mixer, eqx.is_inexact_array)
    key = jax.random.key(1)

    def loss(p, e):
        return jnp.mean(jnp.square(eqx.combine(p, static)(e[0], key=key, inference=True) - e[1]))

    return Parts(loss, params, (normal(1, BATCH, 4, 8), normal(2, BATCH, 4, 8)))


def _equimo(eqx, net, batch):
    import optax

    params, static = eqx.partition(net, eqx.is_inexact_array)
    key = jax.random.key(1)

    def loss(p, e):
        logits = eqx.combine(p, static)(e[0], key=key, inference=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, e[1])

    return Parts(loss, params, batch)


@of("kfac-jax", "layer tags of a dense network, a loss tag")
def kfac_tags() -> Parts:
    import kfac_jax

    params = [(normal(i, m, n, scale=m**-0.5), np.zeros(n)) for i, (m, n) in enumerate(((4, 6), (6, 3)))]

    def loss(p, e):
        x = e[0][None]
        for w, b in p:
            h = jnp.tanh(x)
            x = kfac_jax.register_dense(h @ w + b[None], h, w, b)
        kfac_jax.register_squared_error_loss(x, e[1][None])
        return jnp.sum(jnp.square(x - e[1][None]))

    return Parts(loss, params, (normal(5, BATCH, 4), normal(6, BATCH, 3)))
