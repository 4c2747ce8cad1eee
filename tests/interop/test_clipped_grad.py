"""`clipped_grad` against plain `vmap(grad)`, with jax_privacy neither installed nor needed."""

import ast
import itertools
import sys
from pathlib import Path

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp.interop.jax_privacy import clipped_grad
from tests.interop.models import (
    BATCH,
    PADDING,
    PARAMS,
    SLACK,
    X,
    Y,
    assert_equal_but_for_slack,
    flat,
    gradients,
    loss,
    reference,
)

Neighbors = dp_accounting.NeighboringRelation
CLIP = 1.5


def summed(**keywords):
    keywords = {"l2_clip_norm": CLIP, "batch_argnums": (1, 2)} | keywords
    return clipped_grad(loss, **keywords)


@pytest.mark.quick
def test_padding_contributes_nothing_and_everything_else_does():
    grads = gradients()
    norms = np.linalg.norm(grads, axis=1)
    assert norms.min() < CLIP < norms.max()
    got, aux = jax.jit(summed(return_grad_norms=True, return_values=True))(PARAMS, X, Y, is_padding_example=PADDING)
    assert_equal_but_for_slack(flat(got), reference(grads, CLIP, np.asarray(PADDING)))
    np.testing.assert_allclose(aux.grad_norms, np.where(PADDING, 0, norms), rtol=1e-5)
    values = jax.vmap(loss, in_axes=(None, 0, 0))(PARAMS, X, Y)
    np.testing.assert_allclose(aux.values, np.where(PADDING, 0, values), rtol=1e-5)
    assert aux.aux is None


@pytest.mark.parametrize(("groups", "parts"), [("param", (slice(0, 4), slice(4, 8), slice(8, 20)))])
def test_groups_share_out_the_clipping_norm(groups, parts):
    fn = summed(groups=groups, method="ghost")
    got = jax.jit(fn)(PARAMS, X, Y)
    assert_equal_but_for_slack(flat(got), reference(gradients(), CLIP, np.zeros(BATCH, bool), parts))
    assert fn.sensitivity() == CLIP


@pytest.mark.quick
@pytest.mark.parametrize(
    ("groups", "rescale", "normalize_by"),
    [("all", False, 1.0), ("all", False, 4.0), ("all", True, 1.0), ("param", True, 4.0)],
)
def test_sensitivity_is_reached_and_not_exceeded(groups, rescale, normalize_by):
    """One example added whose gradient is large in every group; another one in its place; and the opposite one."""
    fn = summed(rescale_to_unit_norm=rescale, normalize_by=normalize_by, groups=groups)
    padding = jnp.arange(BATCH) >= 1
    jitted = jax.jit(fn)
    outs = [flat(jitted(PARAMS, X, Y.at[0].set(y), is_padding_example=padding)) for y in (1e4, -1e4)]
    nobody = flat(jitted(PARAMS, X, Y, is_padding_example=jnp.ones(BATCH, bool)))
    assert not nobody.any()
    bound = (1.0 if rescale else CLIP) / normalize_by
    for relation in (Neighbors.ADD_OR_REMOVE_ONE, Neighbors.REPLACE_SPECIAL):
        # What is missing is left for rounding.
        norms = np.array([np.linalg.norm(out) for out in outs]) / fn.sensitivity(relation)
        assert np.all(norms <= 1) and np.all(norms >= 1 - SLACK)
    assert 1 - SLACK <= np.linalg.norm(outs[0] - outs[1]) / fn.sensitivity(Neighbors.REPLACE_ONE) <= 1
    assert fn.sensitivity() == fn.l2_norm_bound == bound
    assert not fn.has_aux


def test_unknown_neighbors_are_refused(without_type_checks):
    with pytest.raises(ValueError, match="neighboring_relation is 'all': use one of"):
        summed().sensitivity("all")


def test_an_example_without_a_finite_gradient_is_left_out():
    got, aux = jax.jit(summed(return_grad_norms=True))(PARAMS, X, Y.at[1].set(jnp.nan))
    assert_equal_but_for_slack(flat(got), reference(gradients(), CLIP, np.arange(BATCH) == 1))
    assert np.isinf(aux.grad_norms[1]) and np.isfinite(np.delete(aux.grad_norms, 1)).all()


def test_tiny_gradients_are_not_enlarged_beyond_the_bound():
    """float32 cannot square these norms, so a clipping norm below them would seem not to bind."""
    for rescale in (False, True):
        run = lambda x, clip: clipped_grad(
            jnp.multiply, l2_clip_norm=clip, rescale_to_unit_norm=rescale, keep_batch_dim=False, method="materialize"
        )(jnp.ones(()), x)
        jitted = jax.jit(run)
        for norm, clip in itertools.product((1e-25, 1e-12), (1e-30, 1e-14)):
            assert 0 <= float(jitted(jnp.array([norm]), jnp.float32(clip))) <= (1.0 if rescale else clip) * 1.00001


@pytest.mark.quick
def test_users_need_no_jax_privacy(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax_privacy", None)
    grad = clipped_grad(lambda w, x: jnp.mean(x) * w, l2_clip_norm=1.0)(3.0, np.array([0.5, 7.0], np.float32))
    np.testing.assert_allclose(grad, 1.5, rtol=1e-5)
    modules = list(Path(jaxdp.__file__).parent.rglob("*.py"))
    nodes = [node for path in modules for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert "jaxdp.interop" in imported
    assert not {name for name in imported if name.split(".")[0] == "jax_privacy"}


def test_half_precision_parameters_give_a_float32_sum():
    """Rounded to bfloat16, a sum of a thousand would forget most of what one example changes."""
    linear = lambda w, x: (x * w).astype(jnp.float32)
    fn = clipped_grad(linear, l2_clip_norm=1.0, keep_batch_dim=False)
    x = jnp.ones(300, jnp.bfloat16)
    last = jnp.arange(300) == 299
    got = [jax.jit(fn)(jnp.ones((), jnp.bfloat16), x, is_padding_example=without) for without in (last & False, last)]
    assert got[0].dtype == jnp.float32
    # The room for rounding is 0.5% with 300 examples; bfloat16 would lose the last example altogether.
    assert 0.99 < float(got[0]) - float(got[1]) <= 1 and float(got[0]) / float(got[1]) == pytest.approx(300 / 299)


@pytest.mark.parametrize("argnums", [0, (0,)])
def test_an_empty_batch_has_a_sum_of_zero(argnums):
    fn = summed(argnums=argnums, return_values=True, return_grad_norms=True, microbatch_size=2)
    total, aux = fn(PARAMS, X[:0], Y[:0])
    assert jax.tree.structure(total) == jax.tree.structure(PARAMS if argnums == 0 else (PARAMS,))
    assert [x.shape for x in jax.tree.leaves(total)] == [x.shape for x in jax.tree.leaves(PARAMS)]
    assert not flat(total).any()
    assert aux.values.shape == aux.grad_norms.shape == (0,)


REFUSED = {
    "pre_clipping_transform is given": {"pre_clipping_transform": lambda g: g},
    "spmd_axis_name is 'data'": {"spmd_axis_name": "data"},
    "nan_safe is False": {"nan_safe": False},
    "dtype is bfloat16": {"dtype": jnp.bfloat16},
    "dtype is float16": {"dtype": np.float16},
    "l2_clip_norm is -1.0": {"l2_clip_norm": -1.0},
    "l2_clip_norm is nan": {"l2_clip_norm": float("nan")},
    "l2_clip_norm is True": {"l2_clip_norm": True},
    "l2_clip_norm is an array that is no": {"l2_clip_norm": jnp.ones(2)},
    "normalize_by is 0": {"normalize_by": 0},
    "normalize_by is nan": {"normalize_by": float("nan")},
    "normalize_by is '3'": {"normalize_by": "3"},
    r"argnums is \(0,\) and batch_argnums is \(0, 1\)": {"batch_argnums": (0, 1)},
    r"batch_argnums is \(\)": {"batch_argnums": ()},
    r"argnums is \(-1,\)": {"argnums": -1},
    "prng_argnum is 1": {"prng_argnum": 1},
    "method is 'fast'": {"method": "fast"},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_be_served_is_refused_by_name(sentence, without_type_checks):
    with pytest.raises((ValueError, TypeError), match=sentence):
        summed(**REFUSED[sentence])


CALLS = {
    "argument 2 is missing: the call has 2": lambda: summed()(PARAMS, X),
    "is_padding_example has shape": lambda: summed()(PARAMS, X, Y, is_padding_example=PADDING[:2]),
    "is_padding_example has dtype int32": lambda: summed()(PARAMS, X, Y, is_padding_example=PADDING.astype(jnp.int32)),
    "microbatch_size is 7": lambda: summed(microbatch_size=7)(PARAMS, X, Y),
    "batch_argnums names an argument without a batch axis": lambda: summed()(PARAMS, 1.0, Y),
    "does not reach the loss": lambda: summed()(PARAMS | {"unused": jnp.ones(2)}, X, Y),
}


@pytest.mark.parametrize("sentence", CALLS)
def test_calls_that_do_not_fit_are_refused(sentence, without_type_checks):
    with pytest.raises((ValueError, TypeError), match=sentence):
        CALLS[sentence]()
