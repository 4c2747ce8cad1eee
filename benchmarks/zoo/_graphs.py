"""Graphs and particles: Jraph, e3nn-jax, JAX MD, NetKet."""

import jax
import jax.numpy as jnp

from benchmarks.zoo._model import BATCH, Parts, integers, normal, of

NODES, EDGES = 5, 9


def _graph_data():
    senders, receivers = integers(1, NODES, BATCH, EDGES), integers(2, NODES, BATCH, EDGES)
    return {
        "nodes": normal(3, BATCH, NODES, 4),
        "edges": normal(4, BATCH, EDGES, 3),
        "senders": senders,
        "receivers": receivers,
        "target": normal(5, BATCH),
    }


def _graphs_tuple(jraph, e):
    return jraph.GraphsTuple(
        nodes=e["nodes"],
        edges=e["edges"],
        senders=e["senders"],
        receivers=e["receivers"],
        globals=jnp.ones((1, 2)),
        n_node=jnp.array([NODES]),
        n_edge=jnp.array([EDGES]),
    )


def _jraph(layer) -> Parts:
    import haiku as hk
    import jraph

    def forward(e):
        graph = layer(hk, jraph)(_graphs_tuple(jraph, e))
        return hk.Linear(1)(jnp.mean(graph.nodes, axis=0))[0]

    net = hk.without_apply_rng(hk.transform(forward))
    batch = jax.tree.map(jnp.asarray, _graph_data())
    params = net.init(jax.random.key(0), jax.tree.map(lambda x: x[0], batch))
    return Parts(lambda p, e: jnp.square(net.apply(p, e) - e["target"]), params, batch)


@of("jraph", "GraphNetwork of edges, nodes and globals")
def jraph_network() -> Parts:
    def layer(hk, jraph):
        mlp = lambda: jraph.concatenated_args(hk.nets.MLP([6, 4]))
        return jraph.GraphNetwork(update_edge_fn=mlp(), update_node_fn=mlp(), update_global_fn=mlp())

    return _jraph(layer)


@of("jraph", "graph attention, segment softmax")
def jraph_attention() -> Parts:
    def layer(hk, jraph):
        def logits(sent, received, edges):
            return jax.nn.leaky_relu(hk.Linear(1)(jnp.concatenate([sent, received], axis=-1)))

        return jraph.GAT(attention_query_fn=hk.Linear(4), attention_logit_fn=logits)

    def without_edges(hk, jraph):
        return lambda graph: layer(hk, jraph)(graph._replace(edges=None))

    return _jraph(without_edges)


@of("jraph", "graph convolution with symmetric normalisation, shared by two rounds")
def jraph_convolution() -> Parts:
    def layer(hk, jraph):
        convolution = jraph.GraphConvolution(hk.Linear(4), add_self_edges=True)
        return lambda graph: convolution(convolution(graph))

    return _jraph(layer)


@of("e3nn-jax", "flax Linear, tensor products with spherical harmonics, gate")
def e3nn_network() -> Parts:
    import e3nn_jax as e3nn
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, e):
            x = e3nn.IrrepsArray("4x0e", e["nodes"])
            vectors = e3nn.IrrepsArray("1o", e["edges"])
            harmonics = e3nn.spherical_harmonics("0e + 1o + 2e", vectors, normalize=False)
            for _ in range(2):
                x = e3nn.flax.Linear("4x0e + 2x1o")(x)
                messages = e3nn.tensor_product(x[e["senders"]], harmonics, filter_ir_out="0e + 1o")
                x = e3nn.scatter_sum(messages, dst=e["receivers"], output_size=NODES)
                x = e3nn.gate(e3nn.flax.Linear("4x0e + 2x0e + 2x1o")(x))
            return e3nn.flax.Linear("0e")(x).array.mean()

    net, batch = Net(), jax.tree.map(jnp.asarray, _graph_data())
    params = net.init(jax.random.key(0), jax.tree.map(lambda x: x[0], batch))["params"]
    return Parts(lambda p, e: jnp.square(net.apply({"params": p}, e) - e["target"]), params, batch)


@of("e3nn-jax", "equinox Linear of fully connected tensor products, norm activation")
def e3nn_equinox() -> Parts:
    import e3nn_jax as e3nn
    import equinox as eqx

    keys = jax.random.split(jax.random.key(0), 2)
    inner = e3nn.Irreps("3x0e + 2x1o")
    first = e3nn.equinox.Linear(irreps_in=e3nn.Irreps("2x0e + 1x1o"), irreps_out=inner, key=keys[0])
    product = e3nn.tensor_product(inner, inner)
    second = e3nn.equinox.Linear(irreps_in=product, irreps_out=e3nn.Irreps("0e + 1o"), key=keys[1])
    params, static = eqx.partition((first, second), eqx.is_inexact_array)

    def loss(p, e):
        one, two = eqx.combine(p, static)
        x = one(e3nn.IrrepsArray("2x0e + 1x1o", e[0]))
        y = e3nn.norm_activation(two(e3nn.tensor_product(x, x)), [jnp.tanh, jnp.tanh])
        return jnp.sum(jnp.square(y.array - e[1]))

    return Parts(loss, params, (normal(1, BATCH, 5), normal(2, BATCH, 4)))


@of("jax-md", "forces of learned Lennard-Jones and Morse energies, in a periodic box")
def jax_md_forces() -> Parts:
    import jax_md

    displacement, _ = jax_md.space.periodic(4.0)

    def loss(p, e):
        positions, target = e
        pair = jax_md.energy.soft_sphere_pair(displacement, sigma=jnp.exp(p["sigma"]), epsilon=jnp.exp(p["epsilon"]))
        morse = jax_md.energy.morse_pair(displacement, sigma=1.0, epsilon=p["depth"], alpha=jnp.exp(p["alpha"]))
        forces = jax_md.quantity.force(lambda r: pair(r) + morse(r))(positions)
        return jnp.mean(jnp.square(forces - target))

    params = {k: jnp.asarray(v) for k, v in {"sigma": 0.3, "epsilon": 0.1, "depth": 0.5, "alpha": 0.6}.items()}
    positions = 2.0 + normal(1, BATCH, 5, 2)
    return Parts(loss, params, (positions % 4.0, normal(2, BATCH, 5, 2)))


@of("jax-md", "Behler-Parrinello network: energy and forces")
def jax_md_behler() -> Parts:
    import jax_md
    from flax import nnx

    displacement, _ = jax_md.space.free()
    energy = jax_md.energy.behler_parrinello(displacement, key=jax.random.key(0), mlp_sizes=(6, 6))
    graphdef, params, rest = nnx.split(energy.model, nnx.Param, ...)
    positions = 2.0 * normal(1, BATCH, 4, 3)

    def loss(p, e):
        value, slope = jax.value_and_grad(nnx.merge(graphdef, p, rest))(e[0])
        return jnp.square(value - e[1]) + jnp.mean(jnp.square(slope))

    return Parts(loss, params, (positions, normal(2, BATCH)))


@of("netket", "log-amplitude of a complex RBM")
def netket_rbm() -> Parts:
    import netket as nk

    net = nk.models.RBM(alpha=2, param_dtype=complex)
    spins = 2.0 * integers(1, 2, BATCH, 6) - 1.0
    params = net.init(jax.random.key(0), jnp.asarray(spins[:1]))["params"]
    params = jax.tree.map(lambda x: 10 * x, params)

    def loss(p, e):
        out = net.apply({"params": p}, e[0][None])[0]
        return jnp.real(out * jnp.exp(1j * e[1]))

    return Parts(loss, params, (spins, normal(2, BATCH)))


@of("netket", "autoregressive wave function of masked layers")
def netket_autoregressive() -> Parts:
    import netket as nk

    hilbert = nk.hilbert.Spin(0.5, 4)
    net = nk.models.ARNNDense(hilbert=hilbert, layers=2, features=3, param_dtype=float)
    spins = 2.0 * integers(1, 2, BATCH, 4) - 1.0
    params = net.init(jax.random.key(0), jnp.asarray(spins[:1]))["params"]
    loss = lambda p, e: -2 * jnp.real(net.apply({"params": p}, e[None])[0])
    return Parts(loss, params, spins)
