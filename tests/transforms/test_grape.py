"""GRAPE: the clip bounds what the noise covers, P is what it is said to be, and the optimiser lives in the subspace."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxdp
from jaxdp import transforms
from jaxdp.per_example import PerExampleGrads, Projection
from jaxdp.transforms._subspace import Chosen
from tests.drawn import normal

SIZE, M, N, RANK = 4, 6, 5, 2
KEY = jax.random.key(3)


PARAMS = {"b": normal(0, N), "w": normal(1, M, N), "v": normal(2, N, 7)}


def loss(params: Any, example: Any) -> jax.Array:
    """Linear in `factor`, so that a gradient can have any size."""
    hidden = jnp.tanh(example["x"] @ params["w"] + params["b"])
    return example["factor"] * jnp.sum(jnp.sin(hidden @ params["v"]))


def batch_of(factor: Any) -> dict[str, jax.Array]:
    return {"x": normal(3, len(factor), M), "factor": jnp.asarray(factor, jnp.float32)}


BATCH = batch_of([0.1, 1.0, -30.0, 4.0])


def lazy(params: Any = PARAMS, batch: Any = BATCH, **options: Any) -> PerExampleGrads:
    return jaxdp.per_example_grad(loss)(params, batch, **options)


def private(noise_multiplier: float = 0.0, max_norm: float = 1.0) -> transforms.DPSGD:
    return transforms.dpsgd(max_norm=max_norm, noise_multiplier=noise_multiplier, expected_batch_size=1.0, key=KEY)


def watching(inner: optax.GradientTransformation) -> tuple[optax.GradientTransformation, list[Any]]:
    """The chain inside, and the gradients that reach it."""
    seen: list[Any] = []

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        seen.append(updates)
        return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update), seen


@functools.cache
def basis_at(step: int, seed: int = 3, projection: str = "gaussian") -> dict[int, Projection]:
    """The projections of one update by leaf, as the chain inside meets them."""
    inner, seen = watching(private())
    key = jax.random.key(seed)
    tx = transforms.grape(inner, rank=RANK, refresh_every=3, key=key, projection=projection)

    def run(count):
        tx.update(lazy(), tx.init(PARAMS)._replace(count=count))
        return {leaf: p.matrix for leaf, p in seen[0]._projections.items()}

    found = jax.jit(run)(jnp.int32(step))
    return {leaf: dataclasses.replace(seen[0]._projections[leaf], matrix=p) for leaf, p in found.items()}


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def test_one_example_moves_the_clipped_sum_by_no_more_than_its_sensitivity() -> None:
    """Mixed leaves, and examples whose gradient lies where P is longest: the clip must see what the noise covers."""
    clip = transforms.clip(0.7)
    projections = basis_at(0)
    wide = {leaf: Projection(10.0 * p.matrix, p.axes, p.batch) for leaf, p in projections.items()}
    treedef = jax.tree.structure(PARAMS)
    chosen = treedef.unflatten([wide.get(i) for i in range(treedef.num_leaves)])
    factors = [0.01, 1e3, -1e4, float("nan")]

    @jax.jit
    def total(mask):
        summed, _ = clip.update(lazy(PARAMS, batch_of(factors), mask=mask).project(chosen), optax.EmptyState())
        return summed.tree

    everyone = flat(total(jnp.ones(4, bool)))
    assert clip.sensitivity == 0.7
    moved = [np.linalg.norm(everyone - flat(total(jnp.arange(4) != i))) for i in range(4)]
    assert max(moved) <= 0.7 * (1 + 1e-5)
    # The bound is reached by those who are clipped, and a gradient that is not finite counts nothing.
    np.testing.assert_allclose(moved[1:], [0.7, 0.7, 0.0], rtol=1e-5)


def test_the_noise_has_the_std_of_the_clipping_norm_on_every_coordinate_of_the_subspace() -> None:
    params = {"w": jnp.zeros((200, 100))}
    grads = jaxdp.per_example_grad(lambda p, x: jnp.sum(x @ p["w"]))(params, jnp.zeros((2, 200)))
    tx = transforms.grape(private(2.0, 0.5), rank=20, refresh_every=9, key=KEY, projection="orthonormal")
    found = jax.jit(lambda: tx.update(grads, tx.init(params))[0])()
    # Orthonormal columns times sqrt(k / r): the r coordinates of each row come back with sqrt(5) times their length.
    squares = np.sum(np.square(flat(found))) / (200 * 20 * 5.0)
    assert abs(np.sqrt(squares) - 1.0) < 0.05


def test_the_basis_lasts_a_period_and_each_leaf_and_matrix_has_its_own() -> None:
    first, last, second = (basis_at(step) for step in (0, 2, 3))
    assert sorted(first) == [1, 2]
    for leaf in first:
        assert jnp.array_equal(first[leaf].matrix, last[leaf].matrix)
        assert not jnp.any(first[leaf].matrix == second[leaf].matrix)
    assert first[1].axes == (0,) and first[2].axes == (1,)
    assert not jnp.any(first[1].matrix == first[2].matrix)
    stacked = Chosen((3, 8, 4), (1,), (0,), 2).draw("gaussian", KEY, jnp.float32).matrix
    assert stacked.shape == (3, 8, 2) and len(np.unique(np.asarray(stacked))) == stacked.size
    other = basis_at(0, 4)
    assert not jnp.any(first[1].matrix == other[1].matrix)


@pytest.mark.quick
@pytest.mark.parametrize(("kind", "scale"), [("gaussian", 1.0), ("orthonormal", 1.0), ("released", 1 / 3)])
def test_a_basis_is_the_identity_on_average(kind: Any, scale: float) -> None:
    draws = 4000
    p = Chosen((draws, 9, 5), (2,), (0,), 3).draw(kind, KEY, jnp.float32).matrix
    mean = jnp.einsum("nkr,nlr->kl", p, p) / draws
    # A product of two entries has a std of about 1 / sqrt(r).
    assert jnp.max(jnp.abs(mean - scale * jnp.eye(5))) < 5 * scale / np.sqrt(draws)


@pytest.mark.parametrize("projection", ["gaussian", "orthonormal"])
def test_an_update_is_the_clipped_projected_gradient_brought_back(projection: Any) -> None:
    tx = transforms.grape(private(0.0, 0.8), rank=RANK, refresh_every=3, key=KEY, projection=projection)
    state = tx.init(PARAMS)
    each = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(PARAMS, BATCH)
    found = jax.jit(lambda s: tx.update(lazy(microbatch_size=2), s)[0])(state)
    ready = jax.jit(lambda g, s: tx.update(g, s, PARAMS)[0])(each, state)
    bases = basis_at(0, projection=projection)
    grads = [np.asarray(each[name], np.float64) for name in ("b", "v", "w")]
    v, w = (np.asarray(bases[leaf].matrix, np.float64) for leaf in (1, 2))
    # v [5, 7] loses its rows, w [6, 5] its columns: the smaller sides.
    inside = [grads[0], np.einsum("bkn,kr->brn", grads[1], v), np.einsum("bmk,kr->bmr", grads[2], w)]
    norms = np.sqrt(sum(np.sum(np.square(g).reshape(SIZE, -1), axis=1) for g in inside))
    weights = np.minimum(1.0, 0.8 / norms)
    sums = [np.einsum("b,b...->...", weights, g) for g in inside]
    expected = {"b": sums[0], "v": v @ sums[1], "w": sums[2] @ w.T}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(ready[name], value, rtol=1e-4, atol=1e-5)


def test_a_full_orthonormal_basis_changes_nothing() -> None:
    square = Chosen((M, N), (1,), (), N).draw("orthonormal", KEY, jnp.float32)
    none = {"b": None, "v": None, "w": square}
    clip = transforms.clip(0.8)
    tx = transforms.grape(private(0.0, 0.8), rank=N, refresh_every=3, key=KEY)

    @jax.jit
    def run():
        inside = clip.update(lazy().project(none), optax.EmptyState())[0].tree
        full = clip.update(lazy(), optax.EmptyState())[0].tree
        return inside, full, tx.update(lazy(), tx.init(PARAMS))[0]

    inside, full, untouched = run()
    back = inside | {"w": square.back(inside["w"], (M, N))}
    np.testing.assert_allclose(flat(back), flat(full), rtol=1e-4, atol=1e-5)
    # A rank that is no smaller than the side leaves a parameter as it is.
    np.testing.assert_allclose(flat(untouched), flat(full), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimiser", [optax.scale_by_adam(), optax.trace(0.9)], ids=["adam", "momentum"])
def test_moments_have_the_subspaces_shape_and_a_new_basis_compiles_nothing(optimiser: Any) -> None:
    tx = optax.chain(
        transforms.grape(optax.chain(private(1.0), optimiser), rank=RANK, refresh_every=2, key=KEY),
        optax.add_decayed_weights(0.1),
        optax.scale_by_learning_rate(0.1),
    )
    params, state = PARAMS, tx.init(PARAMS)
    moments = [x.shape for x in jax.tree.leaves(state[0].inner[1]) if x.ndim]
    assert moments == [(N,), (RANK, 7), (M, RANK)] * (len(moments) // 3) and moments
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(1)
        # Optax counts steps in integers and raises floats to them, which strict promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(lazy(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(5):
        params, state = step(params, state)
    assert len(traces) == 1
    assert state[0].count == 5
    # The noise's stream went on: a refresh of the subspace must never repeat a draw.
    assert state[0].inner[0][1].count == 5


@pytest.mark.parametrize("how", ["keep", "reset", "transport"])
def test_what_becomes_of_moments_when_the_basis_changes(how: Any) -> None:
    inner = optax.chain(private(), optax.scale_by_adam(b1=1.0, b2=1.0))  # moments that only a refresh changes
    tx = transforms.grape(inner, rank=RANK, refresh_every=3, key=KEY, on_refresh=how)
    state = tx.init(PARAMS)._replace(count=jnp.int32(3))
    dpsgd, adam, *rest = state.inner
    mu = jax.tree.map(lambda x: normal(8, *x.shape), adam.mu)
    nu = jax.tree.map(lambda x: jnp.abs(normal(9, *x.shape)), adam.nu)
    state = state._replace(inner=(dpsgd, adam._replace(mu=mu, nu=nu), *rest))
    with jax.numpy_dtype_promotion("standard"):
        run = jax.jit(lambda count: tx.update(lazy(), state._replace(count=count))[1].inner[1])
        after, within = run(jnp.int32(3)), run(jnp.int32(4))
    for name in PARAMS:
        assert jnp.array_equal(within.mu[name], mu[name]) and jnp.array_equal(within.nu[name], nu[name])
    assert jnp.array_equal(after.mu["b"], mu["b"]) and jnp.array_equal(after.nu["b"], nu["b"])
    old, new = basis_at(0)[2].matrix, basis_at(3)[2].matrix
    direction = np.asarray(mu["w"]) @ np.asarray(old).T
    expected = {"keep": mu["w"], "reset": 0 * mu["w"], "transport": direction @ np.asarray(new) * RANK / N}[how]
    np.testing.assert_allclose(after.mu["w"], expected, rtol=1e-4, atol=1e-6)
    mean = np.repeat(np.mean(np.asarray(nu["w"]), axis=1, keepdims=True), RANK, axis=1)
    np.testing.assert_allclose(after.nu["w"], nu["w"] if how == "keep" else mean, rtol=1e-5)


def test_every_device_has_the_same_basis() -> None:
    tx = transforms.grape(private(), rank=RANK, refresh_every=3, key=KEY)
    batch = batch_of(np.linspace(-1.0, 2.0, 8))
    run = jax.jit(lambda batch: tx.update(lazy(PARAMS, batch), tx.init(PARAMS))[0])
    rows = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    np.testing.assert_allclose(flat(run(jax.device_put(batch, rows))), flat(run(batch)), rtol=1e-4, atol=1e-6)


def test_selection_by_path_and_by_the_loss() -> None:
    def shapes(**options: Any) -> dict[str, Any]:
        tx = transforms.grape(optax.trace(0.9), rank=RANK, refresh_every=3, key=KEY, **options)
        return {name: x.shape for name, x in tx.init(PARAMS).inner.trace.items()}

    assert shapes() == {"b": (N,), "v": (RANK, 7), "w": (M, RANK)}
    assert shapes(side="larger") == {"b": (N,), "v": (N, RANK), "w": (RANK, N)}
    assert shapes(side="rows") == {"b": (N,), "v": (RANK, 7), "w": (RANK, N)}
    assert shapes(select=lambda path, shape: "'w'" in path) == {"b": (N,), "v": (N, 7), "w": (M, RANK)}
    assert shapes(matrices=lazy().matrices()) == shapes()
    assert shapes(matrices=lazy().matrices() | {"v": None})["v"] == (N, 7)


NOISE = transforms.add_gaussian_noise(1.0, KEY)
MATRIX = {"rank": RANK, "refresh_every": 3, "key": KEY}


@pytest.mark.quick
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: optax.chain(transforms.clip(1.0), transforms.grape(NOISE, **MATRIX)), "already clipped, in another"),
        (
            lambda: optax.chain(transforms.clip(1.0), NOISE, transforms.grape(optax.scale(1.0), **MATRIX)),
            "grape comes first in a chain",
        ),
        (lambda: transforms.grape(transforms.clip(1.0), **MATRIX), "inside grape returned a sum .* private data"),
        (lambda: transforms.grape(optax.identity(), **MATRIX), "inside grape returned per-example gradients"),
        (lambda: transforms.grape(optax.scale(0.1), **MATRIX), "before they were clipped"),
        (lambda: transforms.grape(NOISE, **MATRIX), "sensitivity is unknown"),
        (
            lambda: transforms.grape(optax.chain(private(), optax.add_decayed_weights(0.1)), **MATRIX),
            "no value in a subspace: put optax.add_decayed_weights",
        ),
        (lambda: transforms.grape(transforms.grape(private(), **MATRIX), **MATRIX), "in a subspace already"),
        (
            lambda: optax.masked(transforms.grape(private(), **MATRIX), {"b": True, "v": True, "w": False}),
            "grape sees only a part",
        ),
    ],
)
def test_a_chain_that_would_make_the_statement_false_is_refused(make: Any, sentence: str) -> None:
    tx = make()
    with pytest.raises(TypeError, match=sentence):
        jax.eval_shape(lambda: tx.update(lazy(), tx.init(PARAMS), PARAMS)[0])


@pytest.mark.quick
def test_arguments_and_parameters_that_do_not_fit_are_named(without_type_checks: None) -> None:
    grape = lambda **given: transforms.grape(private(), **(MATRIX | given))
    for given, sentence in (
        ({"rank": 0}, "rank is 0"),
        ({"refresh_every": 0}, "refresh_every is 0"),
        ({"side": "left"}, "side is 'left'"),
        ({"projection": "sparse"}, "projection is 'sparse'"),
        ({"on_refresh": "forget"}, "on_refresh is 'forget'"),
    ):
        with pytest.raises((ValueError, TypeError), match=sentence):
            grape(**given)
    with pytest.raises(TypeError, match=r"rank is 1\.5"):
        grape(rank=1.5)
    with pytest.raises(ValueError, match=r"params\['heads'\] has shape \(2, 3, 4\).*matrices="):
        grape().init({"heads": jnp.ones((2, 3, 4))})
    table = jaxdp.per_example_grad(lambda p, i: jnp.sum(p[i]))(jnp.ones((6, 5)), jnp.array([[1, 2]]))
    with pytest.raises(ValueError, match=r"params cannot be projected, because .*'gather'"):
        grape().update(table, grape().init(jnp.ones((6, 5))))
    assert grape().dp_event() == private().dp_event()
    with pytest.raises(TypeError, match="does not know its privacy event"):
        transforms.grape(optax.chain(private()), **MATRIX).dp_event()


@pytest.mark.quick
def test_the_predicted_cosine_is_that_of_random_subspaces_with_noise() -> None:
    m, k, r, s, draws = 12, 8, 3, 0.05, 4000
    rng = np.random.default_rng(0)
    g = rng.normal(size=(m, k))
    g /= np.linalg.norm(g)
    p = rng.normal(size=(draws, k, r)) / np.sqrt(r)
    back = (g @ p + s * rng.normal(size=(draws, m, r))) @ p.transpose(0, 2, 1)
    # Inner product and length each at their mean, as the law has them.
    cosine = np.mean(np.sum(g * back, axis=(1, 2))) / np.sqrt(np.mean(np.sum(np.square(back), axis=(1, 2))))
    # ||G|| = mean_gradient * b * C = 1 where the noise is s = sigma C.
    found = transforms.predicted_cosine(
        jnp.zeros((m, k)), rank=r, noise_multiplier=s, mean_gradient=1.0, expected_batch_size=1.0
    )
    assert abs(cosine / found.projected - 1) < 0.02
    assert found.width == (k + 1) / r and found.coordinates == m * k
    exact = transforms.predicted_cosine(
        jnp.zeros((m, k)), rank=k, noise_multiplier=s, mean_gradient=1.0, expected_batch_size=1.0
    )
    assert exact.loss == 0.0
    with pytest.raises(ValueError, match="mean_gradient is 2"):
        transforms.predicted_cosine(
            jnp.zeros(3), rank=1, noise_multiplier=1.0, mean_gradient=2.0, expected_batch_size=1.0
        )
