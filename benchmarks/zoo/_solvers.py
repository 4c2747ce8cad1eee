"""Differential equations, linear and nonlinear solvers: Diffrax, Optimistix, Lineax, JAXopt."""

import jax
import jax.numpy as jnp

from benchmarks.zoo._model import BATCH, Parts, normal, of


def _field():
    """A small vector field, split into its arrays and the rest."""
    import equinox as eqx

    net = eqx.nn.MLP(3, 3, 6, 1, activation=jnp.tanh, key=jax.random.key(0))
    params, static = eqx.partition(net, eqx.is_inexact_array)
    return params, lambda p: eqx.combine(p, static)


def _ode(adaptive: bool, adjoint: str) -> Parts:
    import diffrax

    params, net = _field()
    steps = diffrax.PIDController(rtol=1e-3, atol=1e-5) if adaptive else diffrax.ConstantStepSize()

    def loss(p, e):
        term = diffrax.ODETerm(lambda t, y, args: net(args)(y))
        found = diffrax.diffeqsolve(
            term,
            diffrax.Tsit5(),
            0.0,
            1.0,
            0.1,
            e[0],
            args=p,
            stepsize_controller=steps,
            adjoint=getattr(diffrax, adjoint)(),
            max_steps=64,
        )
        return jnp.sum(jnp.square(found.ys[-1] - e[1]))

    return Parts(loss, params, (normal(1, BATCH, 3), normal(2, BATCH, 3)))


@of("diffrax", "neural ODE, Tsit5 in adaptive steps, RecursiveCheckpointAdjoint")
def diffrax_adaptive() -> Parts:
    return _ode(True, "RecursiveCheckpointAdjoint")


@of("diffrax", "neural ODE, Tsit5 in fixed steps, DirectAdjoint")
def diffrax_direct() -> Parts:
    return _ode(False, "DirectAdjoint")


@of("diffrax", "neural ODE, BacksolveAdjoint")
def diffrax_backsolve() -> Parts:
    return _ode(True, "BacksolveAdjoint")


@of("diffrax", "neural CDE on cubic interpolation")
def diffrax_cde() -> Parts:
    import diffrax
    import equinox as eqx

    keys = jax.random.split(jax.random.key(0), 2)
    nets = (eqx.nn.MLP(4, 12, 6, 1, final_activation=jnp.tanh, key=keys[0]), eqx.nn.Linear(4, 1, key=keys[1]))
    params, static = eqx.partition(nets, eqx.is_inexact_array)
    ts = jnp.linspace(0.0, 1.0, 6)

    def loss(p, e):
        field, head = eqx.combine(p, static)
        coefficients = diffrax.backward_hermite_coefficients(ts, e[0])
        control = diffrax.CubicInterpolation(ts, coefficients)
        term = diffrax.ControlTerm(lambda t, y, args: field(y).reshape(4, 3), control).to_ode()
        found = diffrax.diffeqsolve(term, diffrax.Heun(), 0.0, 1.0, 0.2, jnp.full(4, 0.1), max_steps=16)
        return jnp.square(head(found.ys[-1])[0] - e[1])

    return Parts(loss, params, (normal(1, BATCH, 6, 3), normal(2, BATCH)))


@of("diffrax", "neural SDE, VirtualBrownianTree with each example's key")
def diffrax_sde() -> Parts:
    import diffrax

    params, net = _field()

    def loss(p, e):
        y0, seed, target = e
        path = diffrax.VirtualBrownianTree(0.0, 1.0, 0.05, (3,), jax.random.key(seed))
        drift = diffrax.ODETerm(lambda t, y, args: net(args["drift"])(y))
        noise = lambda t, y, args: 0.1 * net(args["noise"])(y)
        diffusion = diffrax.ControlTerm(lambda t, y, args: jnp.diag(noise(t, y, args)), path)
        terms = diffrax.MultiTerm(drift, diffusion)
        found = diffrax.diffeqsolve(terms, diffrax.EulerHeun(), 0.0, 1.0, 0.2, y0, args=p, max_steps=16)
        return jnp.sum(jnp.square(found.ys[-1] - target))

    params = {"drift": params, "noise": jax.tree.map(lambda x: -x, params)}
    return Parts(loss, params, (normal(1, BATCH, 3), jnp.arange(BATCH), normal(2, BATCH, 3)))


@of("optimistix", "deep equilibrium: fixed_point, implicit adjoint")
def optimistix_fixed_point() -> Parts:
    import optimistix as optx

    params = {"w": normal(1, 4, 4, scale=0.1), "u": normal(2, 3, 4), "b": normal(3, 4)}
    solver = optx.FixedPointIteration(rtol=1e-12, atol=1e-12)

    def loss(p, e):
        step = lambda z, args: jnp.tanh(z @ args[0]["w"] + args[1] @ args[0]["u"] + args[0]["b"])
        found = optx.fixed_point(step, solver, jnp.zeros(4), (p, e[0]), max_steps=200)
        return jnp.sum(jnp.square(found.value - e[1]))

    return Parts(loss, params, (normal(4, BATCH, 3), normal(5, BATCH, 4)))


@of("optimistix", "inner least_squares by LevenbergMarquardt, implicit adjoint")
def optimistix_least_squares() -> Parts:
    import optimistix as optx

    params = {"scale": normal(1, 5), "shift": normal(2, 5)}
    solver = optx.LevenbergMarquardt(rtol=1e-10, atol=1e-10)

    def loss(p, e):
        def residual(y, args):
            q, x = args
            return jnp.concatenate([q["scale"] * jnp.sin(y[0] * x) + y[1] * q["shift"] - x, 0.1 * y])

        found = optx.least_squares(residual, solver, jnp.ones(2), (p, e), max_steps=100, throw=False)
        return jnp.sum(jnp.square(found.value))

    return Parts(loss, params, normal(3, BATCH, 5))


@of("lineax", "linear_solve: LU of a learned matrix, CG of a learned positive one")
def lineax_solves() -> Parts:
    import lineax as lx

    params = {"w": normal(1, 4, 4, scale=0.2), "k": normal(2, 4, 4, scale=0.3), "u": normal(3, 3, 4)}

    def loss(p, e):
        full = lx.MatrixLinearOperator(jnp.eye(4) + p["w"] * jnp.cos(e[0])[:1])
        x = lx.linear_solve(full, e[0] @ p["u"], lx.LU()).value
        positive = lx.MatrixLinearOperator(p["k"] @ p["k"].T + 2 * jnp.eye(4), lx.positive_semidefinite_tag)
        y = lx.linear_solve(positive, jnp.tanh(x), lx.CG(rtol=1e-12, atol=1e-12)).value
        return jnp.sum(jnp.square(y - e[1]))

    return Parts(loss, params, (normal(4, BATCH, 3), normal(5, BATCH, 4)))


@of("jaxopt", "inner ridge regression by implicit_diff.custom_root")
def jaxopt_inner() -> Parts:
    import jaxopt

    params = {"features": normal(1, 3, 4, scale=0.5), "log_ridge": jnp.zeros(())}

    def inner(w, q, x, y):
        fit = jnp.tanh(x @ q["features"]) @ w - y
        return jnp.sum(jnp.square(fit)) + jnp.exp(q["log_ridge"]) * jnp.sum(jnp.square(w))

    @jaxopt.implicit_diff.custom_root(jax.grad(inner))
    def ridge(start, q, x, y):
        del start
        hidden = jnp.tanh(x @ q["features"])
        return jnp.linalg.solve(hidden.T @ hidden + jnp.exp(q["log_ridge"]) * jnp.eye(4), hidden.T @ y)

    def loss(p, e):
        w = ridge(None, p, e["x"], e["y"])
        return jnp.mean(jnp.square(jnp.tanh(e["x2"] @ p["features"]) @ w - e["y2"]))

    shapes = {"x": (6, 3), "y": (6,), "x2": (5, 3), "y2": (5,)}
    return Parts(loss, params, {k: normal(i + 2, BATCH, *s) for i, (k, s) in enumerate(shapes.items())})
