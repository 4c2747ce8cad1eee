"""Estimated norms inside models: of the right gradient, with the right probes, whatever the method."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp.norms import Hutchinson, HutchPP, NormChoice
from tests.drawn import normal
from tests.per_example.model_zoo import BATCH
from tests.per_example.test_methods import clip_to, clipped_by_hand, reference, relative_error

KEY = jax.random.key(11)
NORMS = {"hutchinson": Hutchinson(8), "example": Hutchinson(8, sharing="example"), "hutch++": HutchPP(8, sketch=2)}


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimate every norm that can be estimated, however small."""
    estimator = lambda self, k, t, c, p: self.randomized if self.rule is None else None
    monkeypatch.setattr(NormChoice, "estimator", estimator)


@pytest.fixture
def unit_probes(always: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes that are the identity: the estimate is the norm, if it is made of all of the gradient."""
    eye = lambda key, shape, dtype: jnp.broadcast_to(jnp.eye(shape[-2], dtype=dtype), (*shape[:-1], shape[-2]))
    monkeypatch.setattr("jaxdp.norms._sketches.probe_matrix", eye)
    monkeypatch.setattr("jaxdp.per_example.uses._convolved.probe_matrix", eye)


@pytest.fixture(params=["short", "long"])
def length(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Short sequences are clipped all at once, long ones example by example; here none is long by itself."""
    if request.param == "long":
        monkeypatch.setattr("jaxdp.per_example.uses._contracted._LONG", 1)
    return request.param


TRICKY = ("tied_embedding_and_head", "recurrent", "scanned_checkpointed_transformer", "convolutions", "experts")


@pytest.mark.parametrize(
    ("name", "method", "groups", "norm"),
    [
        *[
            (name, "fused", "layer", "hutchinson")
            for name in ("lora", "carried_weight", "loop_indexed_stack", "nnx_conv_net")
        ],
        *[(name, method, "all", "example") for name in TRICKY for method in ("ghost", "bookkeeping")],
        *[(name, "fused", "param", "hutch++") for name in TRICKY],
    ],
)
def test_with_complete_probes_estimates_are_exact(
    unit_probes: None, name: str, method: str, groups: str, norm: str
) -> None:
    case, grads = reference(name)
    per_example = jaxdp.per_example_grad(case.loss, method=method)
    resolved = per_example(case.params, case.batch).groups(groups)
    bound = float(np.sqrt(np.median(sum(np.square(g).reshape(BATCH, -1).sum(axis=1) for g in grads)))) / 2
    expected_norms, expected = clipped_by_hand(grads, resolved, bound, np.ones(BATCH))

    @jax.jit
    def run(params, batch):
        return per_example(params, batch).clipped_sum_and_norms(clip_to(bound), groups, None, NORMS[norm], KEY)

    found, norms = run(case.params, case.batch)
    scale = np.maximum(expected_norms.max(axis=0, keepdims=True), 1e-9 * expected_norms.max())
    assert np.max(np.abs(norms - expected_norms) / scale) < 2e-5
    # Weights allow for what rounding may do to products with random combinations, too.
    assert relative_error(jax.tree.leaves(found), expected) < 5e-5


def stack_of(layers: int, length: int = 6):
    """A scan over equal layers, each of which sees the same input, so that all gradients are the same."""
    params = {"w": jnp.broadcast_to(jnp.eye(4), (layers, 4, 4)), "again": jnp.eye(4)}

    def loss(params, x):
        def layer(total, w):
            return total + jnp.sum(jnp.tanh(x @ w)) + jnp.sum(jnp.tanh(x @ params["again"])), None

        return jax.lax.scan(layer, jnp.zeros(()), params["w"])[0]

    row = normal(5, length, 4)
    return loss, params, jnp.stack([row] * 4)


def norms_of(sharing: str, key: jax.Array = KEY, **options) -> dict[str, np.ndarray]:
    loss, params, batch = stack_of(3)
    grads = jaxdp.per_example_grad(loss, method="ghost")(params, batch, **options)
    found = jax.jit(lambda k: grads.squared_norms("param", Hutchinson(8, sharing=sharing), k))(key)  # pyright: ignore
    return {str(name): np.asarray(x) for name, x in found.items()}


def test_probes_are_new_for_each_parameter_layer_step_and_where_asked_for_each_example(always: None) -> None:
    shared = norms_of("batch")
    layers = [shared[f"['w'][{i}]"] for i in range(3)]
    # The same gradient everywhere: what differs are the probes.
    for row in layers:
        np.testing.assert_allclose(row, row[0], rtol=1e-5)
    assert len({round(float(row[0]), 3) for row in layers}) == 3
    own = norms_of("example")
    assert len({round(float(x), 3) for i in range(3) for x in own[f"['w'][{i}]"]}) == 12
    other = norms_of("batch", jax.random.fold_in(KEY, 1))
    assert abs(other["['w'][0]"][0] / shared["['w'][0]"][0] - 1) > 1e-3


def test_parameters_and_layers_of_one_shape_have_probes_of_their_own(always: None) -> None:
    """Their estimates are independent, as the law of a group's norm assumes: equal gradients get different norms."""
    square = jnp.eye(4)
    params = {"a": square, "b": square, "v": jnp.stack([square] * 2), "w": jnp.stack([square] * 2)}

    def loss(params, x):
        layer = lambda total, p: (total + jnp.sum(jnp.tanh(x @ p["v"])) + jnp.sum(jnp.tanh(x @ p["w"])), None)
        total = jax.lax.scan(layer, jnp.zeros(()), {"v": params["v"], "w": params["w"]})[0]
        return total + jnp.sum(jnp.tanh(x @ params["a"])) + jnp.sum(jnp.tanh(x @ params["b"]))

    rows = jnp.stack([normal(5, 6, 4)] * 3)
    grads = jaxdp.per_example_grad(loss, method="ghost")(params, rows)
    for sharing, different in (("batch", 6), ("example", 18)):
        run = jax.jit(lambda k, s=sharing: grads.squared_norms("param", Hutchinson(8, sharing=s), k))  # pyright: ignore
        found = np.stack(list(run(KEY).values()))
        assert found.shape == (6, 3)
        assert len(np.unique(np.round(found / found.mean(), 4))) == different, sharing


def test_microbatches_do_not_begin_the_probes_anew(always: None) -> None:
    whole = norms_of("example")
    parts = norms_of("example", microbatch_size=2)
    for name, expected in whole.items():
        np.testing.assert_allclose(parts[name], expected, rtol=1e-5)
        assert len({round(float(x), 3) for x in expected}) == 4


@pytest.mark.parametrize("sharing", ["batch", "example"])
def test_every_method_makes_the_same_estimate(always: None, length: str, sharing: str) -> None:
    loss, params, batch = stack_of(3)
    batch = batch * jnp.arange(1.0, 5.0)[:, None, None]
    norm = Hutchinson(8, sharing=sharing)  # pyright: ignore[reportArgumentType]
    found = {}
    for method in ("ghost", "bookkeeping", "fused"):
        grads = jaxdp.per_example_grad(loss, method=method)(params, batch)
        run = jax.jit(lambda k, g=grads: g.clipped_sum_and_norms(clip_to(1.0), "param", None, norm, k))
        found[method] = run(KEY)
    for method in ("bookkeeping", "fused"):
        np.testing.assert_allclose(found[method][1], found["ghost"][1], rtol=2e-5)
        assert relative_error(found[method][0], found["ghost"][0]) < 2e-5


def test_a_parameter_shared_over_steps_is_sketched_with_one_set_of_probes(always: None) -> None:
    loss, params, batch = stack_of(3)
    exact = jaxdp.per_example_grad(loss)(params, batch).squared_norms("param")["['again']"][0]
    run = jax.jit(lambda k: jaxdp.per_example_grad(loss)(params, batch).squared_norms("param", Hutchinson(8), k))
    found = [float(run(jax.random.key(i))["['again']"][0]) for i in range(200)]
    # Three steps with probes of their own would miss the cross terms: a third of the norm.
    assert abs(np.mean(found) / float(exact) - 1) < 5 * np.std(found) / float(exact) / np.sqrt(200)


@pytest.mark.quick
def test_a_key_is_needed_and_a_rule_keeps_a_norm_exact() -> None:
    loss = lambda w, x: jnp.sum(jnp.tanh(x @ w))
    w, x = jnp.ones((256, 256)), jnp.ones((2, 512, 256))
    grads = jaxdp.per_example_grad(loss)(w, x)
    with pytest.raises(TypeError, match="fresh typed PRNG key"):
        grads.squared_norms("all", Hutchinson(8))
    with pytest.raises(TypeError, match=r"jaxdp\.norms"):
        jaxdp.explain(loss, w, x, norm="hutchinson")  # pyright: ignore[reportArgumentType]
    assert jaxdp.explain(loss, w, x, norm=Hutchinson(8)).rows[0].rule == "Hutchinson"
    assert jaxdp.explain(loss, w, x, norm=HutchPP(8, 4)).rows[0].rule == "Hutch++"
    assert jaxdp.explain(loss, w, x, norm=Hutchinson(8), rules={"params": "gram"}).rows[0].rule == "Gram"


def test_long_sequences_are_clipped_one_by_one_with_what_shares_their_threshold(
    always: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = {"kernel": normal(1, 2, 5, 5), "bias": jnp.zeros((2, 5))}
    batch = normal(2, 4, 12, 5) * jnp.arange(1.0, 5.0)[:, None, None]

    def loss(params, x):
        layer = lambda x, w: (jnp.tanh(x @ w["kernel"] + w["bias"][None]), None)
        return jnp.sum(jnp.square(jax.lax.scan(layer, x, params)[0]))

    grads = jaxdp.per_example_grad(loss, method="fused")(params, batch)
    run = jax.jit(lambda k: grads.clipped_sum_and_norms(clip_to(1.0), "layer", None, Hutchinson(8), k))
    at_once, norms = run(KEY)
    calls = []
    monkeypatch.setattr("jaxdp.per_example.uses._contracted._LONG", 12)
    one_by_one = jaxdp.norms.estimated_clipped_sum
    noted = lambda *args: calls.append(1) or one_by_one(*args)
    monkeypatch.setattr("jaxdp.per_example.uses._contracted.estimated_clipped_sum", noted)
    jax.clear_caches()
    found, same = jax.jit(lambda k: grads.clipped_sum_and_norms(clip_to(1.0), "layer", None, Hutchinson(8), k))(KEY)
    assert calls
    np.testing.assert_allclose(same, norms, rtol=2e-5)
    assert relative_error(found, at_once) < 2e-5


@pytest.mark.parametrize("norm", [Hutchinson(8), HutchPP(8, sketch=8)], ids=["hutchinson", "hutch++"])
def test_no_buffer_of_the_sequence_squared_or_of_one_gradient_per_example(
    length: str, norm: Hutchinson | HutchPP
) -> None:
    size, t, d, p = 4, 512, 256, 384
    loss = lambda w, x: jnp.sum(jnp.square(jnp.tanh(x @ w)))
    w, x = jnp.zeros((d, p)), jnp.zeros((size, t, d))

    def buffers(norm: jaxdp.norms.Norm, rules: dict | None) -> list[list[int]]:
        grads = jaxdp.per_example_grad(loss, method="fused", rules=rules)
        step = lambda w, x, k: grads(w, x).clipped_sum(clip_to(1.0), "all", None, norm, k)
        hlo = jax.jit(step).lower(w, x, KEY).compile().as_text() or ""
        return [[int(n) for n in dims.split(",")] for dims in re.findall(r"f32\[([\d,]+)\]", hlo)]

    squares = lambda found: [b for b in found if b.count(t) > 1]
    gradients = lambda found: [b for b in found if d in b and p in b and np.prod(b) > d * p]
    # The measure sees what it is meant to see.
    assert squares(buffers(jaxdp.norms.Exact(), {"params": "gram"}))
    assert gradients(buffers(jaxdp.norms.Exact(), {"params": "materialize"}))
    found = buffers(norm, None)
    assert not squares(found) and not gradients(found)
    assert max(np.prod(b) for b in found) <= size * t * p
