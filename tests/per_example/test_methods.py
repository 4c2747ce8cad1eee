"""One battery over the one table: every method agrees with `vmap(grad)` on every model."""

import functools
from collections.abc import Iterator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from tests.certified import assert_certified
from tests.drawn import normal
from tests.per_example.model_zoo import BATCH, DROPOUT, WAYS, ZOO, Case

TOLERANCE = 1e-5


METHODS = ("fused", "bookkeeping", "ghost", "materialize")


def clip_to(bound: float | jax.Array):
    """Weights min(1, bound / norm)."""
    return lambda squared: jnp.minimum(1.0, bound / jnp.sqrt(jnp.where(squared > 0, squared, 1.0)))


def relative_error(tree: chex.ArrayTree, reference: chex.ArrayTree) -> float:
    chex.assert_trees_all_equal_shapes(tree, reference)
    difference = jax.tree.map(lambda a, b: jnp.sum(jnp.square(jnp.abs(a - b))), tree, reference)
    size = jax.tree.map(lambda b: jnp.sum(jnp.square(jnp.abs(b))), reference)
    return float(jnp.sqrt(sum(jax.tree.leaves(difference)) / sum(jax.tree.leaves(size))))


@functools.cache
def reference(name: str) -> tuple[Case, list[np.ndarray]]:
    """A model, and its examples' gradients by `vmap(grad)`."""
    case: Case = (ZOO | DROPOUT)[name]()
    grads = jax.jit(jax.vmap(jax.grad(case.loss), in_axes=(None, 0)))(case.params, case.batch)
    return case, [in_double(g) for g in jax.tree.leaves(grads)]


def in_double(g: jax.Array) -> np.ndarray:
    return np.asarray(g, np.complex128 if jnp.iscomplexobj(g) else np.float64)


def clipped_by_hand(grads: list[np.ndarray], groups, bound: float, mask: np.ndarray):
    """Squared norms `[batch, groups]` and the clipped sum, by the definition."""
    entries = [g.reshape(BATCH, len(mine), -1) for g, mine in zip(grads, groups.of_leaf, strict=True)]
    norms = np.zeros((BATCH, len(groups)))
    for g, mine in zip(entries, groups.of_leaf, strict=True):
        for e, group in enumerate(mine):
            norms[:, group] += np.square(np.abs(g[:, e])).sum(axis=1)
    weights = np.minimum(1.0, bound / np.sqrt(np.where(norms > 0, norms, 1.0))) * mask[:, None]
    sums = [np.einsum("bei,be->ei", g, weights[:, list(m)]) for g, m in zip(entries, groups.of_leaf, strict=True)]
    return norms * mask[:, None], [s.reshape(g.shape[1:]) for s, g in zip(sums, grads, strict=True)]


# These compile longest: the linen transformer differs from the scanned one in what Flax adds.
SLOWEST = ("linen_transformer", "complex_views", "branches")
# One of each kind of rule, as far as they compile in a second or two.
QUICK_MODELS = ("dense_net", "recurrent", "tied_embedding_and_head", "convolutions", "odd_primitives", "windows")
QUICK = {(name, "fused") for name in (*QUICK_MODELS, "scalar_parameter", "weight_normalised")}


# With dropout, each way to make keys with one model and one method in every run: `fused` has all that the others have.
IN_EVERY_RUN = {
    "dense_net, split",
    "wide_dense_sequence, raw split",
    "scanned_checkpointed_transformer, raw split again and again",
    "conditional, split again and again",
    "equinox_mlp, fold_in",
    "loop_indexed_stack, raw fold_in",
    "recurrent, raw wrapped",
    "carried_weight, nnx.Rngs",
    "scalar_parameter, raw nnx.Rngs",
}
LONG = {(name, method) for name in (*DROPOUT, *SLOWEST) for method in ("ghost", "bookkeeping")}
LONG |= {(name, "fused") for name in DROPOUT if name not in IN_EVERY_RUN}


def test_every_way_to_make_keys_is_in_every_run() -> None:
    assert {name.split(", ")[1] for name in IN_EVERY_RUN} == set(WAYS) and set(DROPOUT) >= IN_EVERY_RUN


# Each model has one grouping with each method in every run, another one than its neighbours, so that every pair of a
# method and a grouping meets a third of the models or more; the rest is slow. With one group over everything `fused` is
# `bookkeeping`.
GROUPINGS = {"fused": ("layer", "param"), "ghost": ("all", "layer", "param"), "bookkeeping": ("param", "all", "layer")}


def cells() -> Iterator[tuple[str, str, tuple[str, ...], bool]]:
    """Model, method and groupings of each test, and whether it is for the long run."""
    for i, name in enumerate((*ZOO, *DROPOUT)):
        for method in METHODS[:3]:
            now = GROUPINGS[method][i % len(GROUPINGS[method])]
            yield name, method, (now,), (name, method) in LONG
            yield name, method, tuple(spec for spec in ("all", "layer", "param") if spec != now), True


@pytest.mark.parametrize(
    ("name", "method", "groupings"),
    [
        pytest.param(
            name,
            method,
            groupings,
            id=f"{name}-{method}-{'-'.join(groupings)}",
            # In one worker, which makes the gradients that all are compared with once.
            marks=[pytest.mark.xdist_group(name)]
            + [pytest.mark.quick] * (not long and (name, method) in QUICK)
            + [pytest.mark.slow] * long,
        )
        for name, method, groupings, long in cells()
    ],
)
def test_every_method_and_grouping_equals_materialize(
    name: str, method: str, groupings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if method != "fused":
        # Gradients so small would be made as they are where several uses make them.
        monkeypatch.setattr("jaxdp.per_example.planning._plan.WHOLE_GRADIENTS", 0.0)
    case, grads = reference(name)
    masked = jnp.arange(BATCH) != 2
    per_example = jaxdp.per_example_grad(case.loss, method=method)
    total = sum(np.square(np.abs(g)).reshape(BATCH, -1).sum(axis=1) for g in grads)
    bound = float(np.sqrt(np.median(total)))
    plans = {"all": (bound, {}), "layer": (bound / 3, {"mask": masked}), "param": (bound / 3, {"microbatch_size": 2})}
    plans["param"][1]["mask"] = masked
    plans = {spec: plans[spec] for spec in groupings}

    @jax.jit
    def run(params, batch):
        return {
            spec: per_example(params, batch, **options).clipped_sum_and_norms(clip_to(limit), spec)
            for spec, (limit, options) in plans.items()
        }

    lazy = per_example(case.params, case.batch)
    for spec, (found, norms) in run(case.params, case.batch).items():
        limit, options = plans[spec]
        groups = lazy.groups(spec)
        if "microbatch_size" in options:
            # Compiled in a loop, some models round otherwise by more than the tolerance, whatever the method.
            expected, expected_norms = materialized_in_microbatches(name, spec, limit)
        else:
            mask = np.asarray(options.get("mask", np.ones(BATCH, bool)))
            expected_norms, expected = clipped_by_hand(grads, groups, limit, mask)
        # The gradient of a key's bias is zero but for rounding: beside the others, not beside itself.
        scale = np.maximum(expected_norms.max(axis=0, keepdims=True), 1e-9 * expected_norms.max())
        assert np.max(np.abs(norms - expected_norms) / scale) < TOLERANCE, spec
        assert relative_error(jax.tree.leaves(found), expected) < TOLERANCE, spec


@functools.cache
def materialized_in_microbatches(name: str, spec: str, limit: float) -> tuple[list[np.ndarray], np.ndarray]:
    """The clipped sum and the norms by the reference method, in the microbatches of the test above."""
    case, _ = reference(name)
    per_example = jaxdp.per_example_grad(case.loss, method="materialize")
    run = lambda p, x: per_example(p, x, mask=jnp.arange(BATCH) != 2, microbatch_size=2).clipped_sum_and_norms(
        clip_to(limit), spec
    )
    total, norms = jax.jit(run)(case.params, case.batch)
    return [np.asarray(x) for x in jax.tree.leaves(total)], np.asarray(norms)


@pytest.mark.parametrize("method", ["ghost", "materialize"])
@pytest.mark.parametrize(
    "name", ["scanned_checkpointed_transformer", "tied_embedding_and_head", "recurrent", "lora", "state_space"]
)
def test_norms_and_weighted_sums_by_themselves(name: str, method: str) -> None:
    case, grads = reference(name)
    weights = jnp.linspace(-1.0, 1.0, BATCH)
    per_example = jaxdp.per_example_grad(case.loss, method=method)

    @jax.jit
    def run(params, batch):
        lazy = per_example(params, batch)
        return lazy.squared_norms(), lazy.squared_norms("layer"), lazy.weighted_sum(weights)

    norms, by_layer, total = run(case.params, case.batch)
    by_hand, _ = clipped_by_hand(grads, per_example(case.params, case.batch).groups("layer"), 1.0, np.ones(BATCH))
    assert_certified(jnp.stack(list(by_layer.values()), axis=1), by_hand, floor=1e-6 * by_hand.max())
    assert_certified(norms, by_hand.sum(axis=1))
    assert relative_error(jax.tree.leaves(total), [np.einsum("b,b...->...", weights, g) for g in grads]) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("scanned_checkpointed_transformer", "layer"),
        ("nnx_conv_net", "param"),
        ("tied_embedding_and_head", "all"),
        ("recurrent", "all"),
        ("fourier_layers", "layer"),
        pytest.param("branches", "all", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_a_non_finite_example_contributes_exactly_zero(name: str, groups: str, method: str) -> None:
    case = ZOO[name]()
    scaled = lambda p, example: case.loss(p, example[0]) * example[1]
    good = jnp.arange(BATCH) != 1
    grad = jaxdp.per_example_grad(scaled, method=method)

    @jax.jit
    def run(factors, mask):
        grads = grad(case.params, (case.batch, factors), mask=mask)
        return grads.clipped_sum_and_norms(clip_to(jnp.float32(0.5)), groups)

    without, _ = run(jnp.ones(BATCH), good)
    for poison in (jnp.nan, jnp.inf):
        poisoned, norms = run(jnp.where(good, 1.0, poison), jnp.ones(BATCH, bool))
        assert bool(jnp.all(jnp.isinf(norms[1])))
        chex.assert_trees_all_close(poisoned, without, rtol=1e-6, atol=1e-7)
    nothing, _ = run(jnp.full(BATCH, jnp.nan), jnp.ones(BATCH, bool))
    assert all(bool(jnp.all(x == 0)) for x in jax.tree.leaves(nothing))


def test_a_non_finite_input_contributes_exactly_zero() -> None:
    """NaN in the activations themselves: 0 * NaN must not enter any contraction."""
    for name in ("dense_net", "convolutions", "transformer", "experts"):
        case = ZOO[name]()
        good = jnp.arange(BATCH) != 1
        batch = case.batch
        if name == "dense_net":
            batch = {"x": batch["x"].at[1].set(jnp.nan), "y": batch["y"]}
            loss = case.loss
        elif name == "transformer":
            loss, batch = (
                (lambda p, e: case.loss(jax.tree.map(lambda w: w * e[1], p), e[0])),
                (batch, jnp.ones(BATCH).at[1].set(jnp.nan)),
            )
        else:
            batch, loss = batch.at[1].set(jnp.inf), case.loss
        grad = jaxdp.per_example_grad(loss, method="ghost")

        @jax.jit
        def run(batch, mask, grad=grad, case=case):
            return grad(case.params, batch, mask=mask).clipped_sum(clip_to(jnp.float32(0.5)))

        poisoned = run(batch, jnp.ones(BATCH, bool))
        clean = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0) if x.dtype == jnp.float32 else x, batch)
        chex.assert_trees_all_close(poisoned, run(clean, good), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", ["ghost", "materialize"])
def test_half_precision_norms_are_float32(method: str) -> None:
    """10 million entries of 1e-4: their squares are zero in float16, and their sum is 0.1."""
    n = 10_000_000
    loss = lambda p, x: jnp.sum(p * x).astype(jnp.float32)
    x = jnp.full((1, n), 1e-4, jnp.float16)
    norms = jaxdp.per_example_grad(loss, method=method)(jnp.zeros(n, jnp.float16), x).squared_norms()
    assert norms.dtype == jnp.float32
    assert abs(float(norms[0]) / 0.1 - 1) < 1e-2


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_model_agrees_with_its_float32_gradients(dtype) -> None:
    case = ZOO["transformer"]()
    half = jax.tree.map(lambda w: w.astype(dtype), case.params)

    @functools.partial(jax.jit, static_argnums=0)
    def run(method, params, batch):
        grads = jaxdp.per_example_grad(case.loss, method=method)(params, batch)
        return grads.squared_norms(), grads.weighted_sum(jnp.ones(BATCH))

    norms, total = run("ghost", half, case.batch)
    expected, reference_total = run("materialize", half, case.batch)
    # The reference rounds every gradient to the leaf's dtype before it is squared.
    chex.assert_trees_all_close(norms, expected, rtol=2e-2)
    assert {x.dtype for x in jax.tree.leaves(total)} == {jnp.dtype(jnp.float32)}
    assert relative_error(total, reference_total) < 2e-2


def test_a_gradient_that_is_reused_is_weighed_by_its_whole_group() -> None:
    """A long sequence through a narrow layer: the kernel's gradient is kept, and the bias counts in its weight."""
    keys = jax.random.split(jax.random.key(1), 3)
    params = {"kernel": jax.random.normal(keys[0], (4, 4)), "bias": jnp.zeros(4)}
    # The bias's gradient is the longer one by far.
    batch = 0.01 * jax.random.normal(keys[1], (BATCH, 64, 4))
    loss = lambda p, x: jnp.sum((x @ p["kernel"] + p["bias"][None]) * jnp.linspace(0.5, 1.5, 64)[:, None])
    assert "kept" in str(jaxdp.explain(loss, params, batch, groups="all", method="fused"))
    grads = jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, batch)
    run = lambda p, x: jaxdp.per_example_grad(loss, method="fused")(p, x)
    found, norms = jax.jit(lambda p, x: run(p, x).clipped_sum_and_norms(clip_to(1.0)))(params, batch)
    leaves = [np.asarray(g, np.float64) for g in jax.tree.leaves(grads)]
    by_hand, expected = clipped_by_hand(leaves, run(params, batch).groups("all"), 1.0, np.ones(BATCH))
    assert np.allclose(norms, by_hand, rtol=1e-5)
    assert relative_error(jax.tree.leaves(found), expected) < TOLERANCE


@pytest.mark.parametrize("method", METHODS)
def test_a_float64_model(method: str) -> None:
    """Norms and weights stay float32, sums are float64."""
    case, grads = reference("scanned_checkpointed_transformer")
    with jax.enable_x64(True):
        params = jax.tree.map(lambda w: jnp.asarray(np.asarray(w), jnp.float64), case.params)
        run = lambda p, x: jaxdp.per_example_grad(case.loss, method=method)(p, x).clipped_sum_and_norms(
            clip_to(0.1), "layer"
        )
        total, norms = jax.jit(run)(params, case.batch)
        groups = jaxdp.per_example_grad(case.loss)(params, case.batch).groups("layer")
    _, expected = clipped_by_hand(grads, groups, 0.1, np.ones(BATCH))
    assert norms.dtype == jnp.float32 and {x.dtype for x in jax.tree.leaves(total)} == {jnp.dtype(jnp.float64)}
    assert relative_error([np.asarray(x) for x in jax.tree.leaves(total)], expected) < TOLERANCE


def test_cancelling_gram_norms_are_never_underestimated() -> None:
    """Two equal inputs with opposite cotangents: the gradients vanish, their Gram sums are rounding errors."""
    x, c, noise = normal(0, 3, 32, 1, 64)
    cotangents = jnp.concatenate([c, -c + 1e-6 * noise], axis=1)
    loss = lambda p, example: jnp.sum((example[0] @ p) * example[1])
    params, batch = jnp.ones((64, 64)), (jnp.tile(x, (1, 2, 1)), cotangents)
    norms = jaxdp.per_example_grad(loss, method="ghost")(params, batch).squared_norms()
    exact = jaxdp.per_example_grad(loss, method="materialize")(params, batch).squared_norms()
    assert bool(jnp.all(exact > 0)) and bool(jnp.all(norms >= exact))


def test_large_contractions_are_tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """With little room, norms are found over chunks of examples and tiles of columns, to the same value."""
    case = ZOO["scanned_checkpointed_transformer"]()

    def norms() -> jax.Array:
        run = lambda p, x: jaxdp.per_example_grad(case.loss, method="ghost")(p, x).squared_norms()
        return jax.jit(run)(case.params, case.batch)

    expected = norms()
    for room, one_by_one in ((300, True), (50, True), (300, False)):
        monkeypatch.setattr("jaxdp.norms._exact._ALIVE_ELEMENTS", room)
        monkeypatch.setattr("jaxdp.norms._exact._on_cpu", lambda one_by_one=one_by_one: one_by_one)
        monkeypatch.setattr("jaxdp.per_example.uses._batching._VECTORISED_ELEMENTS", room)
        chex.assert_trees_all_close(norms(), expected, rtol=1e-5)


def test_weighted_sums_and_norms_of_masked_microbatches() -> None:
    case, mask = ZOO["dense_net"](), jnp.arange(BATCH) != 2
    for method in ("materialize", "ghost"):
        grads = jaxdp.per_example_grad(case.loss, method=method)(case.params, case.batch, mask=mask, microbatch_size=2)
        each = jaxdp.per_example_grad(case.loss)(case.params, case.batch).materialize()
        weights = jnp.linspace(-1.0, 1.0, BATCH)
        expected = jax.tree.map(lambda g, w=weights: jnp.einsum("b...,b->...", g, jnp.where(mask, w, 0)), each)
        assert relative_error(grads.weighted_sum(weights), expected) < TOLERANCE
        norms = sum(jnp.sum(jnp.square(g).reshape(BATCH, -1), axis=1) for g in jax.tree.leaves(each))
        chex.assert_trees_all_close(grads.squared_norms(), jnp.where(mask, norms, 0), rtol=1e-5)


def test_values_and_aux() -> None:
    case = ZOO["dense_net"]()
    loss = lambda p, x: (case.loss(p, x), {"x": x["x"]})
    grads = jaxdp.per_example_grad(loss, has_aux=True)(case.params, case.batch, mask=jnp.arange(BATCH) < 3)
    expected = jnp.stack([case.loss(case.params, jax.tree.map(lambda v: v[i], case.batch)) for i in range(BATCH)])
    chex.assert_trees_all_close(grads.values, jnp.where(jnp.arange(BATCH) < 3, expected, 0), rtol=1e-5)
    chex.assert_trees_all_close(grads.aux["x"][:3], case.batch["x"][:3])


def test_one_trace_serves_every_batch_size() -> None:
    case, traces = ZOO["dense_net"](), []

    def loss(p, x):
        traces.append(1)
        return case.loss(p, x)

    @jax.jit
    def run(mask):
        grads = jaxdp.per_example_grad(loss)(case.params, case.batch, mask=mask, microbatch_size=2)
        return grads.weighted_sum(jnp.ones(BATCH))

    run(jnp.zeros(BATCH, bool))
    count = len(traces)
    for real in range(1, BATCH + 1):
        run(jnp.arange(BATCH) < real)
    assert len(traces) == count
    assert jax.tree.all(jax.tree.map(lambda x: bool(jnp.all(x == 0)), run(jnp.zeros(BATCH, bool))))


def test_the_loop_stops_after_the_last_real_example() -> None:
    """Three of eight examples in microbatches of two are two trips, not four."""
    seen = []

    def loss(p, x):
        jax.debug.callback(lambda i: seen.append(int(i)), x)
        return p * x

    grads = jaxdp.per_example_grad(loss, method="materialize")
    jax.block_until_ready(
        grads(jnp.float32(1), jnp.arange(8.0), mask=jnp.arange(8) < 3, microbatch_size=2).weighted_sum(jnp.ones(8))
    )
    jax.effects_barrier()
    # The masked example of the second microbatch is replaced by the real one.
    assert sorted(seen) == [0, 1, 2, 2]


def test_a_batch_of_one_and_a_vmap_around_everything() -> None:
    case = ZOO["dense_net"]()
    single = jax.tree.map(lambda x: x[:1], case.batch)
    norms = [
        jaxdp.per_example_grad(case.loss, method=m)(case.params, single).squared_norms()
        for m in ("ghost", "materialize")
    ]
    chex.assert_trees_all_close(*norms, rtol=1e-5)

    def clipped(scale):
        params = jax.tree.map(lambda x: x * scale, case.params)
        return jaxdp.per_example_grad(case.loss)(params, case.batch).clipped_sum(clip_to(jnp.float32(0.5)))

    scales = jnp.array([1.0, 2.0])
    each = [clipped(scale) for scale in scales]
    chex.assert_trees_all_close(
        jax.vmap(clipped)(scales), jax.tree.map(lambda *x: jnp.stack(x), *each), rtol=1e-5, atol=1e-6
    )
