"""NNX modules: streams that belong to the example, and an optimiser that takes per-example gradients."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import jaxdp
import jaxdp.nnx

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (4, 5, 3))


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, norm: bool = False):
        self.up = nnx.Linear(3, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs) if norm else None
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.again = nnx.Dropout(0.5, rngs=rngs)
        self.down = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = nnx.relu(self.up(x))
        h = h if self.norm is None else self.norm(h)
        return self.down(self.again(self.drop(h)))


def loss(model: nnx.Module, x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(model(x)))


def chain(noise: float = 0.0) -> optax.GradientTransformation:
    noisy = jaxdp.transforms.add_gaussian_noise(noise, jax.random.key(7))
    return optax.chain(jaxdp.transforms.clip(1.0), noisy, optax.scale(1 / 4), optax.sgd(1e-2, momentum=0.9))


def by_hand(model: nnx.Module, key: jax.Array, x: jax.Array) -> list[jax.Array]:
    """Each example's gradient, one by one, with the streams that it is promised."""
    graph, params, keys, rest = nnx.split(model, nnx.Param, nnx.RngKey, ...)
    grads = []
    for own, example in zip(jax.random.split(key, x.shape[0]), x, strict=True):
        leaves, treedef = jax.tree.flatten(nnx.as_pure(keys))
        mine = treedef.unflatten([jax.random.fold_in(own, i) for i in range(len(leaves))])
        of_one = lambda p, mine=mine, example=example: loss(nnx.merge(graph, p, mine, rest, copy=True), example)
        grads.append(jax.grad(of_one)(nnx.as_pure(params)))
    return jax.tree.leaves(jax.tree.map(lambda *g: jnp.stack(g), *grads))


@pytest.mark.quick
def test_each_example_has_streams_of_its_own() -> None:
    model = Net(nnx.Rngs(0))
    squares = sum(jnp.sum(jnp.square(g).reshape(4, -1), axis=1) for g in by_hand(model, KEY, X))
    for method in ("fused", "materialize"):
        found = jaxdp.nnx.per_example_grad(loss, method=method)(model, X, key=KEY).squared_norms()
        assert jnp.allclose(found, squares, rtol=1e-4)
    alike = jaxdp.nnx.per_example_grad(loss)(model, jnp.stack([X[0]] * 4), key=KEY).squared_norms()
    assert len(set(map(float, alike))) == 4
    other = jaxdp.nnx.per_example_grad(loss)(model, X, key=jax.random.key(5)).squared_norms()
    assert not jnp.any(jnp.isclose(other, squares, rtol=1e-4))


def test_a_loop_of_a_few_lines_trains_as_the_functional_one() -> None:
    model, functional = Net(nnx.Rngs(0)), Net(nnx.Rngs(0))
    optimizer = jaxdp.nnx.Optimizer(model, chain(), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, batch, key):
        grads = jaxdp.nnx.per_example_grad(loss)(model, batch, key=key, mask=jnp.arange(4) < 3, microbatch_size=2)
        optimizer.update(model, grads)

    graph, params, rest = nnx.split(functional, nnx.Param, ...)
    params, tx = nnx.as_pure(params), chain()
    state = tx.init(params)
    for number in range(3):
        key = jax.random.fold_in(KEY, number)
        step(model, optimizer, X, key)
        current = nnx.merge(graph, params, rest, copy=True)
        stacked = jax.tree.unflatten(jax.tree.structure(params), [g[:3] for g in by_hand(current, key, X)])
        updates, state = tx.update(stacked, state, params)
        params = optax.apply_updates(params, updates)
    trained = jax.tree.leaves(nnx.as_pure(nnx.state(model, nnx.Param)))
    assert all(jnp.allclose(a, b, atol=1e-4) for a, b in zip(trained, jax.tree.leaves(params), strict=True))
    assert int(optimizer.step[...]) == 3


def test_only_what_is_trained_moves_and_noise_is_new_in_every_step() -> None:
    model = Net(nnx.Rngs(0))
    head = nnx.PathContains("down")
    optimizer = jaxdp.nnx.Optimizer(model, chain(noise=1.0), wrt=head)
    before, seen = model.up.kernel[...], [model.down.kernel[...]]
    for number in range(2):
        grads = jaxdp.nnx.per_example_grad(loss, wrt=head)(model, X, key=jax.random.fold_in(KEY, number))
        optimizer.update(model, grads)
        seen.append(model.down.kernel[...])
    assert jnp.array_equal(model.up.kernel[...], before)
    assert not jnp.allclose(seen[1] - seen[0], seen[2] - seen[1])


def test_gradients_of_other_variables_are_refused() -> None:
    model = Net(nnx.Rngs(0))
    optimizer = jaxdp.nnx.Optimizer(model, chain(), wrt=nnx.PathContains("down"))
    with pytest.raises(ValueError, match="give the same wrt to"):
        optimizer.update(model, jaxdp.nnx.per_example_grad(loss)(model, X, key=KEY))
    assert optimizer.tx is not None


def test_a_summed_gradient_is_refused_by_the_chain() -> None:
    model = Net(nnx.Rngs(0))
    optimizer = jaxdp.nnx.Optimizer(model, chain(), wrt=nnx.Param)
    with pytest.raises((TypeError, ValueError), match=r"pass jaxdp\.per_example_grad"):
        optimizer.update(model, nnx.grad(lambda m: loss(m, X[0]))(model))


@pytest.mark.usefixtures("without_type_checks")
def test_random_numbers_need_a_key() -> None:
    model = Net(nnx.Rngs(0))
    with pytest.raises(
        ValueError,
        match=r"model\['again'\]\['rngs'\]\['count'\] counts .*give key=, a typed PRNG key that is new in every step",
    ):
        jaxdp.nnx.per_example_grad(loss)(model, X).squared_norms()
    for key in (jax.random.PRNGKey(0), jax.random.split(KEY, 4), 0):
        with pytest.raises(TypeError, match="give one typed PRNG key for each step"):
            jaxdp.nnx.per_example_grad(loss)(model, X, key=key)
    model.eval()
    assert jaxdp.nnx.per_example_grad(loss)(model, X).squared_norms().shape == (4,)


def test_what_is_written_inside_the_loss_is_named() -> None:
    class Counting(nnx.Module):
        def __init__(self) -> None:
            self.w, self.calls = nnx.Param(jnp.ones(3)), nnx.Variable(jnp.zeros(()))

        def __call__(self, x: jax.Array) -> jax.Array:
            self.calls[...] += 1
            return x @ self.w

    model = Counting()
    with pytest.warns(UserWarning, match=r"model\['calls'\] \(Variable\) is written inside the loss"):
        jaxdp.nnx.per_example_grad(loss)(model, X).squared_norms()
    assert model.calls[...] == 0
    normed = Net(nnx.Rngs(0), norm=True)
    with pytest.warns(UserWarning) as told:
        jaxdp.nnx.per_example_grad(loss)(normed, X, key=KEY).squared_norms()
    said = [str(warning.message) for warning in told]
    assert any("flax's BatchNorm is in training mode" in text for text in said)
    assert any("model['norm']['mean'] (BatchStat) is written" in text for text in said)
