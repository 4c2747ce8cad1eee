"""`clip` against plain numpy, and every row of its table of edge cases."""

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp import transforms
from jaxdp.transforms._spec import clipping_weights
from tests.transforms.small import (
    GROUPS,
    PARAMS,
    batch_of,
    flat64,
    loss,
    normal_batch,
    reference_clip,
    stacked_grads,
)

BATCH = normal_batch(5)
GRADS = stacked_grads(PARAMS, BATCH)


def clipped(tx, source="ghost", batch=BATCH, **options):
    if source == "stacked":
        given = stacked_grads(PARAMS, batch)
    else:
        given = jaxdp.per_example_grad(loss, method=source)(PARAMS, batch, **options)
    return tx.update(given, tx.init(PARAMS), PARAMS)[0]


@pytest.mark.quick("flat-all", "auto_v-param")
@pytest.mark.parametrize("groups", list(GROUPS))
@pytest.mark.parametrize("rule", ["flat", "auto_s", "auto_v"])
def test_clip_equals_numpy(groups, rule):
    for normalize, bound in ((False, 2.5), (True, 4.0)):
        tx = transforms.clip(bound, groups=GROUPS[groups], rule=rule, normalize=normalize)
        expected = reference_clip(GRADS, bound, groups=groups, rule=rule, normalize=normalize)
        for source in ("ghost", "stacked"):
            total = clipped(tx, source)
            np.testing.assert_allclose(flat64(total.tree), expected, rtol=2e-5, atol=1e-6)
            assert tx.sensitivity == (1.0 if normalize else bound)
            assert total.sensitivity == tx.sensitivity * (1 + total.slack) and 0 < total.slack < 2e-3
            assert jax.tree.structure(total.tree) == jax.tree.structure(PARAMS)


def test_the_reference_itself_clips_some_and_keeps_others():
    """Otherwise the comparison above would say little."""
    norms = np.linalg.norm([flat64(jax.tree.map(lambda g, i=i: g[i], GRADS)) for i in range(5)], axis=1)
    assert np.any(norms < 2.5) and np.any(norms > 2.5)


def test_short_gradients_are_left_alone_by_the_flat_rule_only():
    expected = flat64(jax.tree.map(lambda g: jnp.sum(g, axis=0), GRADS))
    np.testing.assert_allclose(flat64(clipped(transforms.clip(1e3)).tree), expected, rtol=1e-5, atol=1e-6)
    for rule in ("auto_s", "auto_v"):
        assert np.linalg.norm(flat64(clipped(transforms.clip(1e3, rule=rule)).tree) - expected) > 100


@pytest.mark.parametrize("source", ["ghost", "materialize", "stacked"])
@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e30])
def test_an_example_without_a_finite_norm_contributes_exactly_zero(source, factor):
    """1e30 overflows only when it is squared."""
    bad = batch_of(BATCH["x"], np.where(np.arange(5) == 2, factor, BATCH["factor"]))
    zero = batch_of(BATCH["x"], np.where(np.arange(5) == 2, 0.0, BATCH["factor"]))
    for rule in ("flat", "auto_s", "auto_v"):
        tx = transforms.clip(0.8, rule=rule)
        np.testing.assert_array_equal(flat64(clipped(tx, source, bad).tree), flat64(clipped(tx, source, zero).tree))


@pytest.mark.quick
@pytest.mark.parametrize("rule", ["flat", "auto_s", "auto_v"])
def test_the_weight_of_a_norm_that_is_not_finite_is_zero(rule):
    """Whoever asks: nothing else stands between a NaN and the sum where a norm alone is known."""
    squares = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 4.0])
    weights = clipping_weights(rule, squares, jnp.full(4, 0.5))
    np.testing.assert_array_equal(weights[:3], np.zeros(3))
    assert 0 < float(weights[3]) <= 0.25


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("source", ["ghost", "stacked"])
def test_one_group_that_is_not_finite_takes_the_whole_example_out(source, bad):
    """Its other groups are finite, and are in no sum either."""
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    loss = lambda p, x: p["a"] @ x["a"] + p["b"] @ x["b"]
    batch = {"a": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.array([[1.0, 1.0, 1.0], [bad, 1.0, 1.0]])}
    # Linear, so that an example is its own gradient.
    given = batch if source == "stacked" else jaxdp.per_example_grad(loss, method=source)(params, batch)
    tx = transforms.clip({"['a']": 100.0, "['b']": 100.0}, groups="param")
    total = tx.update(given, tx.init(params), params)[0].tree
    np.testing.assert_array_equal(flat64(total), [1.0, 2.0, 1.0, 1.0, 1.0])


@pytest.mark.parametrize("source", ["ghost", "materialize"])
def test_a_masked_example_contributes_exactly_zero(source):
    mask = jnp.arange(5) != 2
    zero = batch_of(BATCH["x"], np.where(mask, BATCH["factor"], 0.0))
    poisoned = batch_of(BATCH["x"], np.where(mask, BATCH["factor"], np.nan))
    for batch in (BATCH, poisoned):
        masked = clipped(transforms.clip(0.8), source, batch, mask=mask)
        np.testing.assert_array_equal(flat64(masked.tree), flat64(clipped(transforms.clip(0.8), source, zero).tree))


@pytest.mark.parametrize("rule", ["flat", "auto_s", "auto_v"])
def test_a_zero_gradient_contributes_zero(rule):
    nothing = clipped(transforms.clip(0.8, rule=rule), batch=batch_of(BATCH["x"], np.zeros(5)))
    np.testing.assert_array_equal(flat64(nothing.tree), 0.0)


@pytest.mark.parametrize("max_norm", [0, -1.0, float("nan"), float("inf"), 1e-12, 1e30])
def test_a_max_norm_without_a_meaning_is_refused(max_norm):
    with pytest.raises(ValueError, match=r"max_norm is .*(positive and finite|float32 cannot square)"):
        transforms.clip(max_norm)


@pytest.mark.parametrize("max_norm", [True, "1.0", None, np.ones(1)])
@pytest.mark.usefixtures("without_type_checks")
def test_a_max_norm_of_another_kind_is_refused(max_norm):
    with pytest.raises(TypeError, match=r"max_norm is .*Python number"):
        transforms.clip(max_norm)


@pytest.mark.usefixtures("without_type_checks")
def test_a_traced_max_norm_is_refused():
    """The sensitivity is a public constant of the mechanism, so it cannot depend on what is computed."""
    with pytest.raises(TypeError, match=r"max_norm is .*Python number"):
        jax.jit(lambda bound: transforms.clip(bound).sensitivity)(1.0)


def test_a_numpy_number_is_as_good_as_a_python_one():
    assert transforms.clip(np.float64(0.5)).sensitivity == 0.5
    assert transforms.clip(2).sensitivity == 2.0


@pytest.mark.usefixtures("without_type_checks")
def test_unknown_rules_and_groups_are_refused():
    with pytest.raises(ValueError, match=r"rule is 'hard'.*auto_v"):
        transforms.clip(1.0, rule="hard")
    with pytest.raises(ValueError, match=r'groups is "?.layers.*"param"'):
        transforms.clip(1.0, groups="layers").init(PARAMS)


def test_each_group_has_its_share_of_the_bound():
    """Huge gradients everywhere: every group ends at R / sqrt(M), and all of them together at R."""
    grads = jax.tree.map(lambda p: jnp.full((1, *p.shape), 1e4), PARAMS)
    for groups, count in (("all", 1), ("layers", 2), ("param", 3)):
        tx = transforms.clip(2.0, groups=GROUPS[groups])
        tree = tx.update(grads, tx.init(PARAMS), PARAMS)[0].tree
        assert np.linalg.norm(flat64(tree)) == pytest.approx(2.0, rel=1e-5)
        share = {"all": tree, "layers": tree["dense"], "param": tree["head"]}[groups]
        assert np.linalg.norm(flat64(share)) == pytest.approx(2.0 / np.sqrt(count), rel=1e-5)


def test_group_functions_see_paths():
    seen = []
    clipped(transforms.clip(1.0, groups=lambda path: seen.append(path) or "one"), "stacked")
    assert seen == ["['dense']['bias']", "['dense']['kernel']", "['head']"]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_gradients_are_summed_in_float32(dtype):
    """4,096 gradients of 1: half-precision sums stop growing long before that."""
    grads = jnp.ones((4096, 2), dtype)
    total, _ = transforms.clip(10.0).update(grads, optax.EmptyState(), jnp.zeros(2, dtype))
    assert total.tree.dtype == jnp.float32
    np.testing.assert_array_equal(total.tree, 4096.0)


def test_the_event_is_that_of_the_noise():
    tx = transforms.clip(0.3)
    assert tx.dp_event(1.5) == dp_accounting.GaussianDpEvent(1.5)
    assert tx.dp_event(0.0) == dp_accounting.NonPrivateDpEvent()
    private = transforms.dpsgd(max_norm=0.3, noise_multiplier=1.5, expected_batch_size=8, key=jax.random.key(0))
    assert private.dp_event() == tx.dp_event(1.5) and private.clip.sensitivity == 0.3
    spent = jaxdp.accounting.epsilon(clip=tx, noise_multiplier=1.5, delta=1e-5, sampling_probability=0.01, num_steps=10)
    assert 0 < spent < 1
