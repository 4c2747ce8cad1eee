"""Structured losses and outputs: signatures, poses, transport, images, splines, alignments."""

import jax
import jax.numpy as jnp

from benchmarks.zoo._model import BATCH, Parts, integers, normal, of


@of("signax", "signature of a learned path, depth 3")
def signax_signature() -> Parts:
    import signax

    params = {"lift": normal(1, 2, 3), "head": normal(2, 3 + 9 + 27, scale=0.2)}

    def loss(p, e):
        features = signax.signature(jnp.tanh(e[0] @ p["lift"]), 3)
        return jnp.square(features @ p["head"] - e[1])

    return Parts(loss, params, (normal(3, BATCH, 6, 2), normal(4, BATCH)))


@of("jaxlie", "chain of learned SE3 poses")
def jaxlie_poses() -> Parts:
    import jaxlie

    def loss(p, e):
        pose = jaxlie.SE3.exp(p["first"]) @ jaxlie.SE3.exp(p["second"] * e["angle"])
        return jnp.sum(jnp.square(pose.apply(e["point"]) - e["seen"])) + jnp.sum(jnp.square(pose.log()))

    params = {"first": normal(1, 6), "second": normal(2, 6)}
    batch = {"angle": normal(3, BATCH), "point": normal(4, BATCH, 3), "seen": normal(5, BATCH, 3)}
    return Parts(loss, params, batch)


@of("ott-jax", "Sinkhorn cost to a moved point cloud, implicit differentiation")
def ott_sinkhorn() -> Parts:
    from ott.geometry import pointcloud
    from ott.solvers import linear
    from ott.solvers.linear import implicit_differentiation

    params = {"w": normal(1, 2, 2), "b": normal(2, 2)}

    def loss(p, e):
        geometry = pointcloud.PointCloud(jnp.tanh(e[0] @ p["w"] + p["b"]), e[1], epsilon=0.5)
        implicit = implicit_differentiation.ImplicitDiff()
        found = linear.solve(geometry, max_iterations=100, implicit_diff=implicit)
        return jnp.sum(jnp.square(found.matrix)) + found.reg_ot_cost

    return Parts(loss, params, (normal(3, BATCH, 5, 2), normal(4, BATCH, 6, 2)))


@of("ott-jax", "soft_sort by Sinkhorn")
def ott_soft_sort() -> Parts:
    from ott.tools import soft_sort

    params = {"w": normal(1, 3, 4), "v": normal(2, 4)}

    def loss(p, e):
        scores = jnp.tanh(e[0] @ p["w"]) @ p["v"]
        ordered = soft_sort.sort(scores, axis=0, epsilon=0.1, min_iterations=50, max_iterations=50)
        return jnp.mean(jnp.square(ordered - jnp.sort(e[1])))

    return Parts(loss, params, (normal(3, BATCH, 6, 3), normal(4, BATCH, 6)))


@of("dm-pix", "learned colours, blur, rotation; SSIM")
def pix_images() -> Parts:
    import dm_pix as pix

    params = {
        "filter": normal(1, 3, 3, scale=0.1),
        "brightness": jnp.asarray(0.05),
        "contrast": jnp.asarray(1.1),
        "angle": jnp.asarray(0.2),
    }

    def loss(p, e):
        x = jax.nn.sigmoid(e[0] @ (jnp.eye(3) + p["filter"]))
        x = pix.adjust_contrast(pix.adjust_brightness(x, p["brightness"]), p["contrast"])
        x = pix.gaussian_blur(x.astype(jnp.float32), 1.0, kernel_size=3).astype(jnp.float64)
        x = pix.rotate(x, p["angle"])
        return 1.0 - pix.ssim(x, jax.nn.sigmoid(e[1]), filter_size=5) + pix.mse(x, jax.nn.sigmoid(e[1]))

    return Parts(loss, params, (normal(2, BATCH, 8, 8, 3), normal(3, BATCH, 8, 8, 3)))


@of("interpax", "learned cubic spline at places of the example's own")
def interpax_spline() -> Parts:
    import interpax

    knots = jnp.linspace(-3.0, 3.0, 7)
    params = {"values": normal(1, 7), "table": normal(2, 7, 7)}

    def loss(p, e):
        one = interpax.interp1d(e[0], knots, p["values"], method="cubic2", extrap=True)
        two = interpax.interp2d(e[0], e[1], knots, knots, p["table"], method="linear", extrap=True)
        return jnp.mean(jnp.square(one + two - e[2]))

    return Parts(loss, params, (normal(3, BATCH, 4), normal(4, BATCH, 4), normal(5, BATCH, 4)))


@of("optax", "CTC loss of a recurrent network")
def optax_ctc() -> Parts:
    import flax.linen as nn
    import optax

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(5)(nn.RNN(nn.GRUCell(6, param_dtype=jnp.float64))(x))

    net, x = Net(), normal(1, BATCH, 8, 3)
    params = net.init(jax.random.key(0), jnp.asarray(x[0]))["params"]

    def loss(p, e):
        logits, labels = net.apply({"params": p}, e[0]), 1 + e[1]
        return optax.ctc_loss(logits[None], jnp.zeros((1, 8)), labels[None], jnp.zeros((1, 3)))[0]

    return Parts(loss, params, (x, integers(2, 4, BATCH, 3)))


@of("optax", "an unrolled inner loop of adam (model-agnostic meta-learning)")
def optax_inner_loop() -> Parts:
    import optax

    params = {"w": normal(1, 3, 4), "v": normal(2, 4)}
    optimizer = optax.adam(0.05)

    def fit(q, x, y):
        return jnp.mean(optax.huber_loss(jnp.tanh(x @ q["w"]) @ q["v"], y))

    def loss(p, e):
        def step(carry, _):
            q, state = carry
            updates, state = optimizer.update(jax.grad(fit)(q, e["x"], e["y"]), state, q)
            return (optax.apply_updates(q, updates), state), None

        (adapted, _), _ = jax.lax.scan(step, (p, optimizer.init(p)), length=2)
        return fit(adapted, e["x2"], e["y2"])

    shapes = {"x": (5, 3), "y": (5,), "x2": (4, 3), "y2": (4,)}
    return Parts(loss, params, {k: normal(i + 3, BATCH, *s) for i, (k, s) in enumerate(shapes.items())})
