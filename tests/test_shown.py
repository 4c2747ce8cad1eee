"""Nothing private is printed: not by `repr`, not by an error, whoever raises it."""

import copy
import dataclasses
import functools
import importlib
import pickle
import pkgutil
import sys

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp import data, sampling, transforms
from jaxdp._shown import of_shapes, setting, shown
from jaxdp.per_example._private import Inert

# Parameters begin with 71, the batch with 62 and the seed with 53: none may be printed.
PARAMS = {"w": jnp.array([7120.125, 7121.25]), "b": jnp.float32(7122.5)}
BATCH = {"x": np.array([[6220.125, 6221.25], [6222.5, 6223.5]], np.float32), "y": jnp.array([6224.5, 6225.75])}
KEY = jax.random.key(53535353)
CLIP = transforms.clip(1.0)
NOISE = transforms.add_gaussian_noise(0.7, KEY)
PRIVATE = optax.chain(CLIP, NOISE)


def loss(params, example):
    return 1e-3 * example["y"] * (params["w"] @ example["x"]) + params["b"]


def lazy():
    return jaxdp.per_example_grad(loss)(PARAMS, BATCH)


def total():
    return CLIP.update(lazy(), CLIP.init(PARAMS))[0]


def digits_of(total):
    """How the sum before noise would begin if it were printed."""
    return [f"{float(x):.5f}"[:6] for leaf in jax.tree.leaves(total.tree) for x in np.ravel(leaf)]


def all_that_is_printed(error):
    """The error's words with those of the errors behind it."""
    found = []
    while error is not None:
        found += [str(error), *getattr(error, "__notes__", ())]
        error = error.__cause__ or error.__context__
    return "\n".join(found)


def nothing_private(text):
    # With the point, as addresses are full of digits too.
    for digits in (*(f"{x}{i}." for x in ("712", "622") for i in range(6)), "53535353", *digits_of(SUM)):
        assert digits not in text, text
    return text


def refused(operation, *sentences):
    """It fails, prints nothing private, and says one of the sentences."""
    with pytest.raises((TypeError, ValueError, AttributeError)) as why:
        operation()
    text = nothing_private(all_that_is_printed(why.value))
    assert any(sentence in text for sentence in sentences), text


SUM = total()
VALUES = {
    "gradients": (lazy, "start the chain with jaxdp.transforms.clip and add_gaussian_noise (or dpsgd)"),
    "sum": (total, "put add_gaussian_noise directly after clip"),
}
BEHIND = "MultiSteps and every other wrapper behind the noise"

ROUTES = {
    "an argument of jit": lambda v: jax.jit(lambda x: x)(v),
    "a result of jit": lambda v: jax.jit(lambda: v)(),
    "a static argument": lambda v: jax.jit(lambda x: x, static_argnums=0)(v),
    "an argument of grad": lambda v: jax.grad(lambda x: 1.0)(v),
    "a result of grad": lambda v: jax.grad(lambda x: v)(1.0),
    "an argument of vjp": lambda v: jax.vjp(lambda x: x, v),
    "an argument of vmap": lambda v: jax.vmap(lambda x: x)(v),
    "a result of vmap": lambda v: jax.vmap(lambda x: v)(jnp.ones(3)),
    "a carry of scan": lambda v: jax.lax.scan(lambda c, x: (c, None), v, jnp.ones(2)),
    "an input of scan": lambda v: jax.lax.scan(lambda c, x: (c, None), 1.0, v),
    "a new carry of scan": lambda v: jax.lax.scan(lambda c, x: (v, None), 1.0, jnp.ones(2)),
    "an output of scan": lambda v: jax.lax.scan(lambda c, x: (c, v), 1.0, jnp.ones(2)),
    "a while loop": lambda v: jax.lax.while_loop(lambda c: False, lambda c: c, v),
    "a branch's operand": lambda v: jax.lax.cond(True, lambda x: x, lambda x: x, v),
    "a branch's result": lambda v: jax.lax.cond(True, lambda: v, lambda: PARAMS),
    "an argument of eval_shape": lambda v: jax.eval_shape(lambda x: x, v),
    "a result of eval_shape": lambda v: jax.eval_shape(lambda: v),
    "make_jaxpr": lambda v: jax.make_jaxpr(lambda x: x)(v),
    "checkpoint": lambda v: jax.checkpoint(lambda x: x)(v),
    "a callback": lambda v: jax.pure_callback(lambda x: x, jnp.ones(()), v),
    "device_put": jax.device_put,
    "tree.map behind the parameters": lambda v: jax.tree.map(lambda p, g: p - g, PARAMS, v),
    "tree.map before the parameters": lambda v: jax.tree.map(lambda g, p: p - g, v, PARAMS),
    "apply_updates": lambda v: optax.apply_updates(PARAMS, v),
    "a norm": optax.tree.norm,
    "ravel_pytree": jax.flatten_util.ravel_pytree,
    "asarray": jnp.asarray,
    "numpy's array": np.array,
    "numpy's sum": np.sum,
    "jax's sum": jnp.sum,
    "isfinite": jnp.isfinite,
    "where": lambda v: jnp.where(True, v, 0.0),
    "zeros_like": jnp.zeros_like,
    "float": float,
    "int": int,
    "bool": bool,
    "len": len,
    "a list": list,
    "an item": lambda v: v["w"],
    "membership": lambda v: 1.0 in v,
    "a format": lambda v: f"{v:.3f}",
    "floor division": lambda v: v // 2,
    "remainder": lambda v: 2 % v,
    "divmod": lambda v: divmod(v, 2),
    "round": round,
    "plus": lambda v: +v,
    "a traced product": lambda v: jax.jit(lambda a: a * v)(2.0),
    "pickle": pickle.dumps,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.quick
@pytest.mark.parametrize("what", VALUES)
def test_every_route_into_jax_and_numpy_is_refused_with_the_sentence_and_no_value(what, monkeypatch):
    make, sentence = VALUES[what]
    value = make()
    # From Python 3.13 on, C code that asks whether `__jax_array__` exists prints what was raised, beside the refusal.
    beside = []
    monkeypatch.setattr(sys, "unraisablehook", beside.append)
    for operation in ROUTES.values():
        refused(functools.partial(operation, value), sentence)
    for unraised in beside:
        assert sentence in nothing_private(f"{unraised.err_msg} {unraised.exc_value} {unraised.object!r}")


@pytest.mark.quick
@pytest.mark.parametrize("what", VALUES)
def test_what_is_printed_of_a_private_value_is_its_shapes_and_what_to_do_with_it(what):
    make, sentence = VALUES[what]
    value = make()
    for text in (repr(value), str(value), f"{value}", f"{value!r}", "%s" % value, repr([value]), repr({"a": value})):  # noqa: UP031
        nothing_private(text)
        assert "'w': float32[2]" in text and sentence in text and BEHIND in text, text


WRAPPERS = {
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2),
    "MultiSteps that skips": lambda tx: optax.MultiSteps(tx, 2, should_skip_update_fn=optax.skip_not_finite),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 2),
    "flatten": optax.flatten,
    "conditionally_transform": lambda tx: optax.conditionally_transform(tx, lambda step, **_: step < 1),
    "scale": lambda tx: optax.chain(optax.scale(0.5), tx),
    "zero_nans": lambda tx: optax.chain(optax.zero_nans(), tx),
    "clip_by_global_norm": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "keep_params_nonnegative": lambda tx: optax.chain(optax.keep_params_nonnegative(), tx),
    "ema": lambda tx: optax.chain(optax.ema(0.9), tx),
    "centralize": lambda tx: optax.chain(optax.centralize(), tx),
    "lion": lambda tx: optax.chain(optax.lion(0.1), tx),
}
HIDES = {
    "masked": lambda tx: optax.masked(tx, {"w": True, "b": False}),
    "multi_transform": lambda tx: optax.multi_transform({"a": tx, "b": optax.sgd(0.1)}, {"w": "a", "b": "b"}),
    "freeze": lambda tx: optax.chain(optax.masked(optax.set_to_zero(), {"w": False, "b": True}), tx),
}


def one_update(tx, grads):
    with jax.numpy_dtype_promotion("standard"):
        tx.update(grads, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize("name", [*WRAPPERS, *HIDES])
def test_every_wrapper_before_the_noise_is_refused_with_the_sentence_and_no_value(name):
    wrap = {**WRAPPERS, **HIDES}[name]
    hidden = "sees only a part of the parameters"
    for inside in (PRIVATE, CLIP, optax.sgd(0.1)):
        sentences = (VALUES["gradients"][1], hidden, *([VALUES["sum"][1]] if inside is CLIP else []))
        refused(functools.partial(one_update, wrap(inside), lazy()), *sentences)
    refused(lambda: one_update(optax.chain(CLIP, wrap(NOISE)), lazy()), VALUES["sum"][1], hidden)


def test_gradients_that_flatten_has_mixed_are_sent_behind_the_noise():
    stacked = jax.vmap(jax.grad(loss), in_axes=(None, 0))(PARAMS, BATCH)
    refused(lambda: one_update(optax.flatten(PRIVATE), stacked), "optax.flatten, " + BEHIND)


def test_a_gradient_with_its_std_shows_shapes_on_every_route():
    """It is public, but it is what a log would be full of; a scalar product must stay possible."""
    noise = transforms.add_gaussian_noise(0.7, KEY, with_stddev=True)
    noisy = noise.update(total(), noise.init(PARAMS))[0]
    assert "tree={'b': float32[], 'w': float32[2]}" in repr(noisy) and "leave with_stddev out" in repr(noisy)
    digits = [f"{float(x):.5f}"[:6] for leaf in jax.tree.leaves(noisy.tree) for x in np.ravel(leaf)]
    for name, operation in ROUTES.items():
        if name in ("pickle", "copy", "deepcopy", "a traced product"):
            continue
        with pytest.raises((TypeError, ValueError, AttributeError)) as why:
            operation(noisy)
        assert not any(x in nothing_private(all_that_is_printed(why.value)) for x in digits)


STATES = {
    "noise": (NOISE, lazy),
    "estimated norms": (transforms.clip(1.0, norm=jaxdp.norms.Hutchinson(8), key=KEY), lazy),
    "adaptive": (
        transforms.adaptive_dpsgd(initial_norm=1.0, noise_multiplier=0.1, expected_batch_size=2.0, key=KEY),
        lazy,
    ),
    "grape": (transforms.grape(PRIVATE, rank=1, refresh_every=2, key=KEY), lazy),
    "zeroth order": (transforms.zeroth_order(PRIVATE, key=KEY), lazy),
}


@pytest.mark.parametrize("name", STATES)
def test_no_state_shows_its_key(name):
    text = nothing_private(repr(STATES[name][0].init(PARAMS)))
    assert "key=key<fry>[]" in text


def test_no_key_stream_batch_or_data_set_shows_what_it_holds():
    assert nothing_private(repr(sampling.streams(KEY))).startswith("Streams(noise=key<fry>[], sampling=key<fry>[]")
    batch = sampling.PoissonSampling(16, 0.5).sample(KEY, 0)
    assert repr(batch) == f"Batch(indices=int32[{batch.mask.size}], mask=bool[{batch.mask.size}])"
    texts = data.LabelledText(("i owe 7120", "nothing"), np.array([0, 1], np.int32), ("a", "b"))
    assert repr(texts) == "LabelledText(texts=<2 str>, labels=int32[2], label_names=<2 str>)"
    assert repr(data.TextRecords(("i owe 7120",), ("ann",))) == "TextRecords(texts=<1 str>, users=<1 str>)"


def test_a_loss_that_carries_data_does_not_show_it():
    with_data = functools.partial(lambda data, params, example: loss(params, example), BATCH["y"])
    nothing_private(repr(jaxdp.per_example_grad(with_data)(PARAMS, BATCH)))


def test_an_array_given_for_a_setting_is_not_quoted(without_type_checks):
    """A threshold that someone computed from the examples is private."""
    private = jnp.float32(7120.125)
    for given in (private, np.array([7120.125]), [private], {"w": private}, lazy(), total()):
        assert "float" in nothing_private(setting(given))
    assert setting([1, {"a": None}]) == "[1, {'a': None}]" and setting("x") == "'x'"
    for operation in (
        lambda: transforms.clip(private),
        lambda: transforms.clip({"a": private}),
        lambda: transforms.clip(1.0, noise_shape={"all": private}),
        lambda: transforms.add_gaussian_noise(private, KEY),
        lambda: transforms.dpsgd(max_norm=1.0, noise_multiplier=1.0, expected_batch_size=private, key=KEY),
        lambda: transforms.zeroth_order(PRIVATE, key=KEY, scale=private),
        lambda: jaxdp.per_example_grad(loss)(PARAMS, BATCH, microbatch_size=private),
    ):
        with pytest.raises((TypeError, ValueError)) as why:
            operation()
        nothing_private(str(why.value))


def test_shapes_are_shown_in_one_line():
    assert shown({"a": [np.zeros((2, 3))], "b": (jnp.zeros(2, bool),), "c": len}) == (
        "{'a': [float64[2,3]], 'b': (bool[2],), 'c': builtin_function_or_method}"
    )
    assert shown(["somebody's text"] * 5) == "<5 str>" and shown("somebody's text") == "str"


# Their annotations do not say that what they hold is private.
PRIVATE_DATA = {
    *("TextExample", "HiddenExample", "FeatureExample", "TokenExample", "HiddenTokens", "ImageExample"),
    *("LabelledText", "TextRecords", "Dataset", "Prepared", "PhaseData", "LanguageModel", "TextClassification"),
    *("ClippedGrad", "AuxiliaryOutput", "Passes", "ClippingWeights", "Plain", "Weight"),
}


def arrays_in(annotation):
    text = str(annotation)
    return any(word in text for word in ("Array", "ndarray", "PRNGKey", "PyTree", "shaped", "Params"))


def test_every_class_that_holds_arrays_shows_shapes_only():
    """New ones too: a dataclass or named tuple with an array in it says `__repr__ = of_shapes`."""
    # All that these hold follows from privatised gradients, or from no data at all.
    public = {"RmtDenoiseState", "CorrectedAdamState", "Denoised", "Inflation", "_Node", "_Format", "StepFunction"}
    public |= {"Losses", "StepLoss"}
    seen = set()
    for module in pkgutil.walk_packages(jaxdp.__path__, "jaxdp."):
        for found in vars(importlib.import_module(module.name)).values():
            if not isinstance(found, type) or not found.__module__.startswith("jaxdp") or found.__name__ in public:
                continue
            if not (dataclasses.is_dataclass(found) or hasattr(found, "_fields")) or issubclass(found, Inert):
                continue
            holds = any(arrays_in(x) for x in vars(found).get("__annotations__", {}).values())
            if holds or found.__name__ in PRIVATE_DATA:
                seen.add(found.__name__)
                assert found.__repr__ is of_shapes, f"{found.__module__}.{found.__name__} would print its arrays"
    assert {"GaussianNoiseState", "TrainState", "Shadow", "Batch", "Projection"} | PRIVATE_DATA <= seen
