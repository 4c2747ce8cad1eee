"""Reinforcement learning: Brax's networks, RLax's losses, Mctx's search."""

import jax
import jax.numpy as jnp

from benchmarks.zoo._model import BATCH, Parts, integers, normal, of


@of("brax", "PPO networks: policy and value, tanh-normal actions")
def brax_ppo() -> Parts:
    from brax.training.agents.ppo import networks

    nets = networks.make_ppo_networks(5, 2, policy_hidden_layer_sizes=(6, 6), value_hidden_layer_sizes=(6, 6))
    keys = jax.random.split(jax.random.key(0), 2)
    params = {"policy": nets.policy_network.init(keys[0]), "value": nets.value_network.init(keys[1])}

    def loss(p, e):
        logits = nets.policy_network.apply(None, p["policy"], e["observation"])
        dist = nets.parametric_action_distribution
        ratio = jnp.exp(dist.log_prob(logits, e["action"]) - e["log_prob"])
        clipped = jnp.clip(ratio, 0.8, 1.2)
        baseline = nets.value_network.apply(None, p["value"], e["observation"])
        entropy = dist.entropy(logits, jax.random.key(1))
        policy = -jnp.minimum(ratio * e["advantage"], clipped * e["advantage"])
        return policy + jnp.square(baseline - e["return"]) - 0.01 * entropy

    batch = {
        "observation": normal(1, BATCH, 5),
        "action": normal(2, BATCH, 2, scale=0.3),
        "log_prob": normal(3, BATCH) - 1.0,
        "advantage": normal(4, BATCH),
        "return": normal(5, BATCH),
    }
    return Parts(loss, params, batch)


@of("brax", "twin Q-networks of SAC with layer norm")
def brax_sac() -> Parts:
    from brax.training import networks

    q = networks.make_q_network(5, 2, hidden_layer_sizes=(6, 6), n_critics=2, layer_norm=True)
    params = q.init(jax.random.key(0))

    def loss(p, e):
        both = q.apply(None, p, e[0], e[1])
        return jnp.mean(jnp.square(both - e[2]))

    return Parts(loss, params, (normal(1, BATCH, 5), normal(2, BATCH, 2), normal(3, BATCH)))


def _agent(outputs: int):
    import haiku as hk

    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([6, outputs])(x)))
    return net, net.init(jax.random.key(0), jnp.zeros(4))


@of("rlax", "V-trace and policy gradient over a trajectory")
def rlax_vtrace() -> Parts:
    import rlax

    net, params = _agent(4)

    def loss(p, e):
        out = net.apply(p, e["observations"])
        logits, values = out[:-1, :3], out[:, 3]
        rhos = rlax.categorical_importance_sampling_ratios(logits, e["behaviour"], e["actions"])
        found = rlax.vtrace_td_error_and_advantage(
            jax.lax.stop_gradient(values[:-1]), values[1:], e["rewards"], 0.9 * jnp.ones(5), rhos
        )
        policy = rlax.policy_gradient_loss(logits, e["actions"], jax.lax.stop_gradient(found.pg_advantage), jnp.ones(5))
        target = jax.lax.stop_gradient(found.errors + values[:-1])
        entropy = rlax.entropy_loss(logits, jnp.ones(5))
        return policy + jnp.mean(jnp.square(target - values[:-1])) + 0.01 * entropy

    batch = {
        "observations": normal(1, BATCH, 6, 4),
        "behaviour": normal(2, BATCH, 5, 3),
        "actions": integers(3, 3, BATCH, 5),
        "rewards": normal(4, BATCH, 5),
    }
    return Parts(loss, params, batch)


@of("rlax", "quantile Q-learning with a target network")
def rlax_quantile() -> Parts:
    import rlax

    net, params = _agent(12)
    taus = (jnp.arange(4) + 0.5) / 4

    def loss(p, e):
        now, then = (net.apply(q, x).reshape(4, 3) for q, x in ((p, e[0]), (jax.lax.stop_gradient(p), e[1])))
        return rlax.quantile_q_learning(now, taus, e[2], e[3], jnp.asarray(0.9), then, then, huber_param=1.0)

    batch = (normal(1, BATCH, 4), normal(2, BATCH, 4), integers(3, 3, BATCH), normal(4, BATCH))
    return Parts(loss, params, batch)


@of("mctx", "Gumbel MuZero's search as a target for policy, value and dynamics")
def mctx_muzero() -> Parts:
    import mctx

    params = {"encode": normal(1, 4, 5), "step": normal(2, 3, 5, 5, scale=0.4), "head": normal(3, 5, 4)}

    def loss(p, e):
        state = jnp.tanh(e["observation"] @ p["encode"])[None]
        out = state @ p["head"]
        fixed = jax.lax.stop_gradient(p)
        root = mctx.RootFnOutput(prior_logits=out[:, :3], value=out[:, 3], embedding=state)

        def recurrent(q, key, action, embedding):
            after = jnp.tanh(jnp.einsum("bi,bij->bj", embedding, q["step"][action]))
            both = after @ q["head"]
            reward = jnp.sum(after, axis=-1)
            discount = 0.9 * jnp.ones_like(reward)
            out = mctx.RecurrentFnOutput(reward=reward, discount=discount, prior_logits=both[:, :3], value=both[:, 3])
            return out, after

        root = jax.lax.stop_gradient(root)
        found = mctx.gumbel_muzero_policy(
            fixed, jax.random.key(e["seed"]), root, recurrent, num_simulations=4, max_depth=3
        )
        after = jnp.tanh(state[0] @ p["step"][found.action[0]])
        policy = -jnp.sum(jax.lax.stop_gradient(found.action_weights[0]) * jax.nn.log_softmax(out[0, :3]))
        return policy + jnp.square(after @ p["head"][:, 3] - e["value"])

    batch = {"observation": normal(4, BATCH, 4), "seed": jnp.arange(BATCH), "value": normal(5, BATCH)}
    return Parts(loss, params, batch)
