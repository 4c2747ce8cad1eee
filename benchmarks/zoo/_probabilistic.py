"""Densities: flows, Bayesian models, Gaussian processes, state space models."""

import jax
import jax.numpy as jnp

from benchmarks.zoo._model import BATCH, Parts, integers, normal, of


def _flow(build) -> Parts:
    import equinox as eqx
    import flowjax.distributions
    import paramax

    flow = build(jax.random.key(0), flowjax.distributions.Normal(jnp.zeros(3)))
    params, static = eqx.partition(flow, eqx.is_inexact_array, is_leaf=lambda x: isinstance(x, paramax.NonTrainable))
    loss = lambda p, x: -paramax.unwrap(eqx.combine(p, static)).log_prob(x)
    return Parts(loss, params, normal(1, BATCH, 3))


@of("flowjax", "masked autoregressive flow of rational quadratic splines")
def flowjax_autoregressive() -> Parts:
    import flowjax.bijections
    import flowjax.flows

    spline = lambda: flowjax.bijections.RationalQuadraticSpline(knots=4, interval=3)
    return _flow(
        lambda key, base: flowjax.flows.masked_autoregressive_flow(
            key, base_dist=base, transformer=spline(), flow_layers=2, nn_width=6
        )
    )


@of("flowjax", "block neural autoregressive flow, inverted")
def flowjax_block() -> Parts:
    import flowjax.flows

    return _flow(
        lambda key, base: flowjax.flows.block_neural_autoregressive_flow(
            key, base_dist=base, flow_layers=1, nn_block_dim=2
        )
    )


@of("flowjax", "coupling flow; triangular spline flow")
def flowjax_coupling() -> Parts:
    import flowjax.flows

    def build(key, base):
        inner = flowjax.flows.coupling_flow(key, base_dist=base, flow_layers=2, nn_width=6)
        return flowjax.flows.triangular_spline_flow(key, base_dist=inner, flow_layers=1, knots=4)

    return _flow(build)


@of("distrax", "RealNVP: Chain of MaskedCoupling, ScalarAffine")
def distrax_flow() -> Parts:
    import distrax
    import haiku as hk

    def log_prob(x):
        def layer(flip):
            net = hk.Sequential([hk.nets.MLP([6], activate_final=True), hk.Linear(8), hk.Reshape((4, 2))])
            affine = lambda p: distrax.ScalarAffine(shift=p[..., 0], log_scale=0.1 * p[..., 1])
            return distrax.MaskedCoupling(jnp.arange(4) % 2 == flip, net, affine)

        bijector = distrax.Inverse(distrax.Chain([layer(0), layer(1)]))
        base = distrax.MultivariateNormalDiag(jnp.zeros(4), jnp.ones(4))
        return distrax.Transformed(base, bijector).log_prob(x)

    net, x = hk.without_apply_rng(hk.transform(log_prob)), normal(1, BATCH, 4)
    params = net.init(jax.random.key(0), jnp.asarray(x[0]))
    return Parts(lambda p, e: -net.apply(p, e), params, x)


@of("distrax", "HMM.forward of a mixture of normals")
def distrax_hmm() -> Parts:
    import distrax

    def loss(p, xs):
        hmm = distrax.HMM(
            trans_dist=distrax.Categorical(logits=p["transition"]),
            init_dist=distrax.Categorical(logits=p["start"]),
            obs_dist=distrax.Normal(p["mean"], jnp.exp(p["log_scale"])),
        )
        return -hmm.forward(xs)[0]

    params = {"transition": normal(1, 3, 3), "start": normal(2, 3), "mean": normal(3, 3), "log_scale": normal(4, 3)}
    return Parts(loss, params, normal(5, BATCH, 7))


@of("numpyro", "log_density of a hierarchical regression")
def numpyro_density() -> Parts:
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer.util import log_density

    def model(x, y):
        mean = numpyro.sample("mean", dist.Normal(0, 1).expand([3]).to_event(1))
        scale = numpyro.sample("scale", dist.LogNormal(0, 1).expand([3]).to_event(1))
        with numpyro.plate("group", 4):
            slope = numpyro.sample("slope", dist.Normal(mean, scale).to_event(1))
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        numpyro.sample("y", dist.StudentT(4.0, (slope @ x).sum(), noise), obs=y)

    params = {
        "mean": normal(1, 3),
        "scale": jnp.exp(normal(2, 3)),
        "slope": normal(3, 4, 3),
        "noise": jnp.asarray(0.7),
    }
    loss = lambda p, e: -log_density(model, e, {}, p)[0]
    return Parts(loss, params, (normal(4, BATCH, 3), normal(5, BATCH)))


@of("numpyro", "Trace_ELBO of an AutoMultivariateNormal guide, each example's key")
def numpyro_elbo() -> Parts:
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import SVI, Trace_ELBO, autoguide

    def model(x, y):
        w = numpyro.sample("w", dist.Normal(0, 1).expand([3]).to_event(1))
        bias = numpyro.sample("bias", dist.Laplace(0, 1))
        numpyro.sample("y", dist.Bernoulli(logits=x @ w + bias), obs=y)

    guide = autoguide.AutoMultivariateNormal(model)
    x, y = normal(1, BATCH, 3), integers(2, 2, BATCH)
    elbo = Trace_ELBO(num_particles=2)
    svi = SVI(model, guide, numpyro.optim.Adam(0.1), elbo)
    state = svi.init(jax.random.key(0), jnp.asarray(x[0]), jnp.asarray(y[0]))
    params = svi.optim.get_params(state.optim_state)

    def loss(p, e):
        return elbo.loss(jax.random.key(e[2]), svi.constrain_fn(p), model, guide, e[0], e[1])

    return Parts(loss, params, (x, y, jnp.arange(BATCH)))


@of("tinygp", "marginal likelihood: ExpSquared of a learned projection, Matern32")
def tinygp_dense() -> Parts:
    import tinygp

    def loss(p, e):
        xs, ys = e
        far = tinygp.kernels.ExpSquared() + jnp.exp(p["amplitude"]) * tinygp.kernels.Matern32()
        kernel = tinygp.transforms.Linear(p["projection"], far)
        mean = lambda x: p["slope"] @ x
        gp = tinygp.GaussianProcess(kernel, xs, diag=jnp.exp(p["noise"]), mean=mean)
        return -gp.log_probability(ys)

    params = {
        "projection": normal(1, 2, 2),
        "amplitude": jnp.asarray(0.1),
        "slope": normal(2, 2),
        "noise": jnp.asarray(-1.0),
    }
    return Parts(loss, params, (normal(3, BATCH, 6, 2), normal(4, BATCH, 6)))


@of("tinygp", "quasiseparable kernels over time")
def tinygp_quasiseparable() -> Parts:
    import tinygp

    def loss(p, e):
        scale = jnp.exp(p["log_scale"])
        kernel = tinygp.kernels.quasisep.Matern32(scale[0], sigma=scale[1])
        kernel += tinygp.kernels.quasisep.Celerite(*jnp.exp(p["celerite"]))
        gp = tinygp.GaussianProcess(kernel, jnp.cumsum(jnp.exp(e[0])), diag=0.1, mean=p["mean"])
        return -gp.log_probability(e[1])

    params = {"log_scale": normal(1, 2), "celerite": jnp.asarray([0.5, -1.0, 0.1, -2.0]), "mean": jnp.asarray(0.1)}
    return Parts(loss, params, (normal(2, BATCH, 8), normal(3, BATCH, 8)))


@of("gpjax", "conjugate marginal likelihood with a deep kernel's RBF")
def gpjax_marginal() -> Parts:
    import gpjax as gpx

    def loss(p, e):
        hidden = jnp.tanh(e[0] @ p["w"])
        kernel = gpx.kernels.RBF(lengthscale=jnp.exp(p["length"]), variance=jnp.exp(p["variance"]))
        prior = gpx.gps.Prior(mean_function=gpx.mean_functions.Zero(), kernel=kernel)
        posterior = prior * gpx.likelihoods.Gaussian(obs_stddev=jnp.asarray(0.3))
        return -gpx.objectives.conjugate_mll(posterior, gpx.Dataset(X=hidden, y=e[1][:, None]))

    params = {"w": normal(1, 3, 4), "length": normal(2, 4, scale=0.1), "variance": jnp.asarray(0.2)}
    return Parts(loss, params, (normal(3, BATCH, 6, 3), normal(4, BATCH, 6)))


@of("dynamax", "linear Gaussian state space model: Kalman filter")
def dynamax_kalman() -> Parts:
    from dynamax.linear_gaussian_ssm import LinearGaussianSSM

    model = LinearGaussianSSM(state_dim=3, emission_dim=2)
    params, _ = model.initialize(jax.random.key(0))
    return Parts(lambda p, ys: -model.marginal_log_prob(p, ys), params, normal(1, BATCH, 6, 2))


@of("dynamax", "Gaussian HMM in unconstrained parameters")
def dynamax_hmm() -> Parts:
    from dynamax.hidden_markov_model import GaussianHMM
    from dynamax.parameters import from_unconstrained, to_unconstrained

    model = GaussianHMM(3, 2)
    constrained, props = model.initialize(jax.random.key(0))
    params = to_unconstrained(constrained, props)
    loss = lambda p, ys: -model.marginal_log_prob(from_unconstrained(p, props), ys)
    return Parts(loss, params, normal(1, BATCH, 6, 2))


@of("blackjax", "a trajectory of two HMC steps, differentiated through")
def blackjax_hmc() -> Parts:
    import blackjax

    def loss(p, e):
        x, seed = e

        def log_density(z):
            return -0.5 * jnp.sum(jnp.square(x - jnp.tanh(z @ p["decoder"]))) - 0.5 * jnp.sum(jnp.square(z))

        kernel = blackjax.mcmc.integrators.velocity_verlet(log_density, lambda m, position=None: 0.5 * jnp.sum(m**2))
        state = blackjax.mcmc.integrators.new_integrator_state(
            log_density, p["start"], jax.random.normal(jax.random.key(seed), (3,))
        )
        for _ in range(2):
            state = kernel(state, 0.1)
        return -state.logdensity

    params = {"decoder": normal(1, 3, 4), "start": normal(2, 3)}
    return Parts(loss, params, (normal(3, BATCH, 4), jnp.arange(BATCH)))
