"""What a user can hand in wrongly: each is one sentence that names the leaf and the fix."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import jaxdp
from tests.certified import assert_certified

PARAMS = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}
BATCH = {"x": jnp.ones((4, 3)), "y": jnp.zeros(4)}


@pytest.fixture(autouse=True)
def _without_type_checks() -> Iterator[None]:
    """As users run it: the library's own checks must catch what the test run's annotation checks would catch first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def loss(params, example):
    return jnp.sum(example["x"] @ params["dense"]["kernel"] + params["dense"]["bias"]) - example["y"]


def norms(loss=loss, params=PARAMS, batch=BATCH, method="ghost", has_aux=False, groups="all", **options):
    grads = jaxdp.per_example_grad(loss, has_aux=has_aux, method=method)(params, batch, **options)
    return grads.squared_norms(groups)


def test_what_the_errors_below_are_compared_with():
    """The same call with nothing wrong."""
    assert_certified(norms(), np.full(4, 8.0))
    assert norms().shape == (4,)


@pytest.mark.quick
@pytest.mark.parametrize("method", ["ghost", "materialize"])
@pytest.mark.parametrize(
    "leaf, message",
    [
        (jnp.arange(2), r"params\['dense'\]\['step'\] has dtype int32, which has no gradient.*close over it"),
        (np.zeros(2, np.uint8), r"params\['dense'\]\['step'\] has dtype uint8"),
        (jnp.ones(2, bool), r"params\['dense'\]\['step'\] has dtype bool"),
        (jax.random.key(0), r"params\['dense'\]\['step'\] has dtype key<fry>"),
        (0.5, r"params\['dense'\]\['step'\] is float, not an array: keep it outside params"),
        (3, r"params\['dense'\]\['step'\] is int, not an array"),
        ("relu", r"params\['dense'\]\['step'\] is str, not an array"),
    ],
)
def test_leaves_without_a_gradient(leaf, message, method):
    params = {"dense": {**PARAMS["dense"], "step": leaf}}
    with pytest.raises(TypeError, match=message):
        norms(params=params, method=method)


@pytest.mark.parametrize("params", [{}, None, [], {"dense": {}}])
def test_params_without_leaves(params):
    with pytest.raises(ValueError, match="params has no leaves: there is nothing to train"):
        norms(params=params)


def test_none_inside_params_is_no_leaf():
    """As everywhere in JAX: an absent bias, say."""
    params = {"dense": {**PARAMS["dense"], "scale": None}}
    np.testing.assert_allclose(norms(params=params), norms())


@pytest.mark.parametrize(
    "batch, message",
    [
        ({}, "batch has no leaves: give at least one array"),
        ({"x": jnp.ones((4, 3)), "y": 0.0}, r"batch\['y'\] is a scalar: every leaf .* leading batch axis"),
        ({"x": jnp.ones((4, 3)), "y": jnp.zeros(())}, r"batch\['y'\] is a scalar"),
        ({"x": jnp.ones((4, 3)), "y": jnp.zeros(5)}, r"batch\['y'\] has 5 examples where batch\['x'\] has 4"),
        ({"x": jnp.ones((0, 3)), "y": jnp.zeros(0)}, "batch has no examples: pad an empty Poisson sample"),
    ],
)
def test_batches_without_a_common_leading_axis(batch, message):
    with pytest.raises(ValueError, match=message):
        norms(batch=batch)


@pytest.mark.quick
@pytest.mark.parametrize(
    "column, kind",
    [
        (np.array(["a", "b", "c", "d"]), "<U1"),
        (np.array([b"a", b"b", b"c", b"d"]), r"\|S1"),
        (np.array(["a", None, "c", 1], object), "object"),
        (np.array(["2025-01-01"] * 4, "datetime64[D]"), r"datetime64\[D\]"),
        (["a", "b", "c", "d"], "str"),
        ("abcd", "str"),
    ],
)
def test_a_column_of_something_else_than_numbers(column, kind):
    with pytest.raises(TypeError, match=rf"batch\['text'\].* holds {kind}, which JAX cannot compute with: leave it"):
        norms(batch={**BATCH, "text": column})


def test_a_loss_that_was_written_for_batches():
    def losses(p, batch):
        return jnp.sum(batch["x"] @ p["dense"]["kernel"] + p["dense"]["bias"][None], axis=-1) - batch["y"]

    of_one = lambda p, e: losses(p, jax.tree.map(lambda x: x[None], e))
    with pytest.raises(ValueError, match=r"returns shape \(1,\).*written for batches a batch of one: loss\(params"):
        norms(of_one)
    np.testing.assert_allclose(norms(lambda p, e: of_one(p, e)[0]), norms())


def test_explain_takes_batches_of_numpys_64_bits():
    ids = np.arange(12).reshape(4, 3)
    assert "gather" in str(jaxdp.explain(lambda p, i: jnp.sum(p[i]), jnp.ones((20, 2)), ids))
    assert "mul" in str(jaxdp.explain(lambda p, x: jnp.sum(p * x), jnp.ones(2), np.ones((4, 2))))


@pytest.mark.parametrize("shape", [(3,), (5,), (4, 1), ()])
def test_a_mask_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"mask has shape .* where the batch needs \(4,\)"):
        norms(mask=jnp.ones(shape, bool))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32])
def test_a_mask_of_numbers(dtype):
    """A float mask would invite weights, which the norms do not know of."""
    with pytest.raises(TypeError, match=r"mask has dtype .*: give booleans, True for real examples"):
        norms(mask=jnp.ones(4, dtype))


@pytest.mark.parametrize("size", [0, -1, 5, 2.0, "2", np.ones(1)])
def test_microbatch_sizes_that_do_not_exist(size):
    with pytest.raises(ValueError, match=r"microbatch_size is .*: give a whole number from 1 to .* 4"):
        norms(microbatch_size=size)


@pytest.mark.parametrize("method", ["ghost", "materialize"])
@pytest.mark.parametrize(
    "bad, error, message",
    [
        (lambda p, e: e["x"] @ p["dense"]["kernel"], ValueError, r"returns shape \(2,\) for one example.*a scalar"),
        (lambda p, e: loss(p, e)[None], ValueError, r"returns shape \(1,\) for one example"),
        (
            lambda p, e: loss(p, e).astype(int),
            TypeError,
            r"the loss has dtype int32: it must be a real floating-point number",
        ),
        (lambda p, e: loss(p, e) > 0, TypeError, "the loss has dtype bool"),
        (lambda p, e: loss(p, e).astype(jnp.complex64), TypeError, "the loss has dtype complex64"),
        (lambda p, e: (loss(p, e), e["x"]), TypeError, "returns a container .*has_aux=True"),
        (lambda p, e: {"loss": loss(p, e)}, TypeError, "returns a container where one scalar is needed"),
        (lambda p, e: None, TypeError, "returns a container where one scalar is needed"),
    ],
)
def test_losses_that_are_no_scalar(bad, error, message, method):
    with pytest.raises(error, match=message):
        norms(bad, method=method)


@pytest.mark.parametrize(
    "bad", [loss, lambda p, e: [loss(p, e), 1], lambda p, e: (loss(p, e),), lambda p, e: (loss(p, e), 1, 2)]
)
def test_has_aux_without_a_pair(bad):
    with pytest.raises(TypeError, match=r"has_aux=True, but the loss does not return a pair \(value, aux\)"):
        norms(bad, has_aux=True)


def test_the_value_of_a_pair_is_checked_too():
    with pytest.raises(ValueError, match=r"returns shape \(3,\) for one example"):
        norms(lambda p, e: (e["x"] * loss(p, e), ()), has_aux=True)


@pytest.mark.parametrize("method", ["vmap", None])
def test_an_unknown_method(method):
    with pytest.raises(ValueError, match=r"method is .*: use one of 'auto', 'fused', 'bookkeeping', 'ghost'"):
        jaxdp.per_example_grad(loss, method=method)


@pytest.mark.parametrize("groups", ["layers", None, 3])
def test_unknown_groups(groups):
    with pytest.raises((TypeError, ValueError), match=r'groups is .*: use "all", "layer", "param", Blocks'):
        norms(groups=groups)


def test_weights_of_another_shape():
    grads = jaxdp.per_example_grad(loss)(PARAMS, BATCH)
    with pytest.raises(ValueError, match=r"weights has shape \(3,\) where the batch needs \(4,\)"):
        grads.weighted_sum(jnp.ones(3))


@pytest.mark.quick
@pytest.mark.parametrize(
    "unused",
    [
        lambda p, e: jnp.sum(e["x"] @ p["dense"]["kernel"]),
        lambda p, e: jnp.sum(e["x"] @ p["dense"]["kernel"] + jax.lax.stop_gradient(p["dense"]["bias"])),
        lambda p, e: jnp.sum(e["x"] @ p["dense"]["kernel"] * jnp.sign(jax.lax.stop_gradient(p["dense"]["bias"]))),
        lambda p, e: jnp.sum(e["x"] @ p["dense"]["kernel"]) * p["dense"]["bias"].shape[0],
    ],
)
def test_a_parameter_that_does_not_reach_the_loss(unused):
    """It would be trained on noise alone."""
    with pytest.raises(
        ValueError, match=r"params\['dense'\]\['bias'\] does not reach the loss.*leave it out of params"
    ):
        norms(unused)


@pytest.mark.parametrize("method", ["ghost", "materialize"])
def test_errors_of_the_loss_itself_keep_their_words(method):
    def mismatched(p, e):
        return jnp.sum(e["x"] @ p["dense"]["kernel"].T)

    with pytest.raises(TypeError, match=r"dot_general requires contracting dimensions to have the same shape"):
        norms(mismatched, method=method)

    def complaining(p, e):
        raise RuntimeError("the dictionary has no such word")

    with pytest.raises(RuntimeError, match="the dictionary has no such word"):
        norms(complaining, method=method)
    with pytest.raises(KeyError, match="label"):
        norms(lambda p, e: loss(p, e) * e["label"], method=method)


@pytest.mark.parametrize("method", ["ghost", "materialize"])
def test_a_loop_of_unknown_length_has_no_gradient(method):
    """JAX says so by itself; a silent zero would hide the parameter from the clipping."""

    def until_large(p, e):
        start = jnp.sum(e["x"] @ p["dense"]["kernel"] + p["dense"]["bias"])
        return jax.lax.while_loop(lambda x: x < 100.0, lambda x: 2.0 * x, start)

    def with_a_parameter_inside(p, e):
        start = jnp.sum(e["x"] @ p["dense"]["kernel"])
        grow = lambda x: x + jnp.sum(p["dense"]["bias"]) + 1.0
        return jax.lax.while_loop(lambda x: x < 100.0, grow, start)

    for endless in (until_large, with_a_parameter_inside):
        with pytest.raises(ValueError, match=r"Reverse-mode differentiation does not work for lax\.while_loop"):
            norms(endless, method=method)


def test_errors_come_while_tracing():
    """Nothing has to be computed to be told."""
    with pytest.raises(ValueError, match="does not reach the loss"):
        jax.eval_shape(lambda p, b: norms(lambda q, e: jnp.sum(q["dense"]["kernel"]) * e["y"], p, b), PARAMS, BATCH)
    with pytest.raises(TypeError, match=r"params\['dense'\]\['bias'\] has dtype int32"):
        jax.eval_shape(
            lambda p: norms(params={"dense": {"kernel": p, "bias": jnp.arange(2)}}), PARAMS["dense"]["kernel"]
        )


@pytest.mark.quick
def test_numpy_batches_work_without_jit_and_masked_rows_have_a_norm_of_zero():
    loss = lambda w, x: jnp.sum(jnp.tanh(x @ w))
    batch = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    mask = np.array([True, False, True, True])
    for method in ("auto", "ghost", "materialize"):
        grads = jaxdp.per_example_grad(loss, method=method)(np.ones((2, 2), np.float32), batch, mask=mask)
        _, norms = grads.clipped_sum_and_norms(lambda squared: jnp.minimum(1.0, 1.0 / squared))
        assert norms[1, 0] == 0 and bool(jnp.all(norms[mask, 0] > 0))
