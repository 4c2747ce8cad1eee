"""`[clipping]`: groups, how norms are found, and what of it the plan, the run and the statement agree on."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import dp_accounting
import jax
import jax.numpy as jnp
import pytest

import jaxdp
from jaxdp import accounting, sampling, training
from jaxdp.training.chain._clipping import clip_spec, groups_of, private_mean, threshold_metrics
from jaxdp.training.running._loop import phase_transformation
from jaxdp.training.running._plan import plan_from_saved, saved_plan
from jaxdp.training.running._statement import make_statement
from jaxdp.training.tasks._classifier import load_classifier

# The noise is given, so that nothing has to be calibrated; few steps make a cheap curve.
FEW = (("privacy.noise_multiplier", "1.0"), ("phase.1.steps", "1"), ("phase.2.steps", "3"))
ESTIMATED = (("clipping.norm", "hutchinson"), ("clipping.probes", "32"))


def plan_of(config_file: Path, *overrides: tuple[str, str]) -> training.Plan:
    return training.make_plan(training.load_config(config_file, (*FEW, *overrides)), 900)


def step_event(plan: training.Plan, number: int) -> Any:
    """The event of one release of a phase."""
    phase = plan.phases[number]
    return clip_spec(phase.config, plan.config.clipping, phase.groups).dp_event(phase.noise_multiplier or 0.0)


@pytest.mark.parametrize(("groups", "counts"), [("layer", (1, 2)), ("param", (2, 4)), ("2", (1, 2))])
def test_a_plan_counts_the_groups_of_estimated_norms_before_any_weight_is_read(config_file, groups, counts):
    plan = plan_of(config_file, ("clipping.groups", groups), *ESTIMATED)
    for number, count in enumerate(counts):
        event = step_event(plan, number)
        assert isinstance(event, accounting.RandomizedGaussianDpEvent) and event.probes == 32
        assert event.shares == pytest.approx((1 / count,) * count)
    classifier = load_classifier(plan.config.model, Path(plan.config.model.path), ("a", "b", "c"))
    for phase in plan.phases:
        assert set(phase.groups or ()) == set(classifier.trained_paths(phase.config.train, "train"))
    # Through a file, as resuming and reporting read it.
    assert plan_from_saved(plan.config, 900, json.loads(json.dumps(saved_plan(plan)))) == plan


def test_groups_other_than_those_accounted_for_are_refused(config_file):
    plan = plan_of(config_file, ("clipping.groups", "layer"), *ESTIMATED)
    top = {f"encoder/layers/1/output_norm/{name}": jnp.ones(16) for name in ("bias", "scale")}
    params = top | {"head/bias": jnp.ones(2), "head/kernel": jnp.ones((48, 2))}
    tx = phase_transformation(plan, 1, jax.random.key(0))

    def update(params: Any) -> Any:
        loss = lambda p, x: sum(jnp.sum(leaf * x) for leaf in jax.tree.leaves(p))
        grads: Any = jaxdp.per_example_grad(loss)(params, jnp.ones(3))
        return tx.update(grads, tx.init(params), params)[0]

    assert jax.tree.structure(jax.eval_shape(update, params)) == jax.tree.structure(params)
    with pytest.raises(ValueError, match="no group: the function given as groups must return a name"):
        jax.eval_shape(update, params | {"encoder/layers/0/output_norm/bias": jnp.ones(16)})
    with pytest.raises(ValueError, match=r"max_norm names the group 'head', which does not exist"):
        jax.eval_shape(update, top)


def test_a_phase_clips_to_the_norm_that_its_statement_names(config_file):
    plan = plan_of(
        config_file, ("phase.1.max_norm", "0.25"), ("clipping.max_norm", "0.5"), ("clipping.normalize", "false")
    )
    statement = make_statement(plan, seeded=False)
    grads = jaxdp.per_example_grad(lambda w, x: w @ x)(jnp.zeros(2), jnp.array([[30.0, 40.0]]))
    for phase, stated in zip(plan.phases, statement.phases, strict=True):
        noiseless: Any = private_mean(
            phase.config, plan.config.clipping, phase.groups, noise_multiplier=0.0, expected_batch_size=1.0,
            key=jax.random.key(0), with_stddev=False,
        )  # fmt: skip
        mean = noiseless.update(grads, noiseless.init(jnp.zeros(2)))[0]
        assert float(jnp.linalg.norm(mean)) == pytest.approx(stated.clipping_norm)
    assert [stated.clipping_norm for stated in statement.phases] == [0.25, 0.5]


def test_blocks_follow_the_layers_numbers_and_never_outnumber_the_modules():
    paths = [f"encoder/layers/{i}/{leaf}" for i in range(12) for leaf in ("kernel", "bias")] + ["head/kernel"]
    shapes = {path: jax.ShapeDtypeStruct((4,), jnp.float32) for path in paths}
    halves = groups_of(training.Config.model_fields["clipping"].default.model_copy(update={"groups": 2}), shapes)
    lower = {path for path, name in halves.items() if name == "block 0"}
    assert lower == {path for path in paths[:-1] if int(path.split("/")[2]) < 6}
    every = groups_of(training.Config.model_fields["clipping"].default.model_copy(update={"groups": 99}), shapes)
    assert len(set(every.values())) == 13 and every["head/kernel"] == "block 12"


def test_exact_norms_need_no_model_for_their_plan_and_blocks_are_named_in_the_statement(config_file, tmp_path):
    nowhere = ("model.path", json.dumps(str(tmp_path / "nowhere")))
    plan = plan_of(config_file, ("clipping.groups", "layer"), nowhere)
    assert [phase.groups for phase in plan.phases] == [None, None]
    assert step_event(plan, 1) == dp_accounting.GaussianDpEvent(1.0)
    with pytest.raises(training.UserError, match=r"model\.path"):
        plan_of(config_file, ("clipping.groups", "layer"), nowhere, *ESTIMATED)
    blocks = make_statement(plan_of(config_file, ("clipping.groups", "2")), seeded=False)
    assert "groups 2 blocks of modules, norms exact" in blocks.phases[1].mechanism
    layers = make_statement(plan_of(config_file, ("clipping.groups", "layer"), *ESTIMATED), seeded=False)
    assert "groups layer, 2 of them, norms estimated by hutchinson" in layers.phases[1].mechanism
    layers.verify()
    assert layers.epsilon > blocks.epsilon


def test_groups_that_mean_nothing_are_refused(config_file):
    for overrides, sentence in (
        ((("clipping.groups", "0"),), "clipping.groups is 0: use .* or a whole number of blocks"),
        ((("subspace.method", "zeroth_order"), *ESTIMATED), "clips one number for each direction"),
    ):
        with pytest.raises(training.UserError, match=sentence):
            plan_of(config_file, *overrides)


ADAPTIVE = (("clipping.adaptive", "true"), ("clipping.groups", "layer"), ("clipping.indicator_noise", "4.0"))


@pytest.mark.quick
def test_adaptive_thresholds_are_accounted_jointly_and_the_statement_says_so(config_file):
    plan, fixed = plan_of(config_file, *ADAPTIVE), plan_of(config_file)
    # One Gaussian release: the budget is that of fixed thresholds, and the sum has the noise that the counts leave.
    assert plan.event == fixed.event and plan.epsilon == fixed.epsilon
    top = plan.phases[1]
    noise = top.sum_noise_multiplier(plan.config)
    assert noise**-2 + 2 / (4 * 4.0**2) == pytest.approx((top.noise_multiplier or 0.0) ** -2)
    statement = make_statement(plan, seeded=False)
    assert (
        statement.phases[1].clipping_norm is None and f"the sum's own is {noise:.6g}" in statement.phases[1].mechanism
    )
    assert "follow the 0.5 quantile of the norms (rule flat, groups layer, 2 of them" in statement.phases[1].mechanism
    statement.verify()


@pytest.mark.parametrize("shape", ["isotropic", "equal_budget"])
def test_a_phase_adapts_its_thresholds_as_the_library_does(config_file, shape):
    plan = plan_of(config_file, *ADAPTIVE, ("clipping.noise_shape", shape), ("phase.2.optimizer", "sgd"))
    params = {"encoder/layers/1/output_norm/scale": jnp.ones(3), "head/kernel": jnp.ones((2, 2))}
    groups = {path: path.rpartition("/")[0] for path in params}
    plan = dataclasses.replace(plan, phases=(plan.phases[0], dataclasses.replace(plan.phases[1], groups=groups)))
    loss = lambda p, x: jnp.sum(x) * (3 * jnp.sum(p["head/kernel"]) + jnp.sum(p["encoder/layers/1/output_norm/scale"]))
    grads: Any = jaxdp.per_example_grad(loss)(params, jnp.linspace(0.0, 1.0, 5))
    tx = phase_transformation(plan, 1, jax.random.key(0))
    size = plan.phases[1].sampler.expected_batch_size
    library = jaxdp.transforms.adaptive_dpsgd(
        initial_norm=1.0, noise_multiplier=1.0, expected_batch_size=size, indicator_noise_stddev=4.0, groups="param",
        normalize=True, noise_shape=shape, key=jax.random.fold_in(sampling.streams(jax.random.key(0)).noise, 1),
    )  # fmt: skip

    def two_steps(tx: Any) -> Any:
        state = tx.init(params)
        _, state = tx.update(grads, state, params)
        return tx.update(grads, state, params)

    (ours, state), (theirs, expected) = (jax.jit(two_steps, static_argnums=0)(x) for x in (tx, library))
    ratios = [jax.tree.leaves(ours)[i] / jax.tree.leaves(theirs)[i] for i in range(2)]
    # What follows is the learning rate of plain SGD.
    for ratio in ratios:
        assert jnp.allclose(ratio, ratios[0].ravel()[0], rtol=1e-4)
    thresholds = expected[0].thresholds
    assert thresholds[0] != thresholds[1]
    assert threshold_metrics(state)["clipping_norm"] == pytest.approx(float(jnp.linalg.norm(thresholds)), rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ((("clipping.adaptive", "true"), *ESTIMATED), "the two on the same examples have not been analysed"),
        ((("clipping.noise_shape", "equal_budget"),), "differs from .isotropic. only between groups"),
        ((("clipping.adaptive", "true"), ("subspace.method", "grape")), "takes fixed thresholds"),
        (
            (*ADAPTIVE[:2], ("clipping.indicator_noise", "0.4")),
            "leaves nothing for the sum at a noise multiplier of 4 with 1 group",
        ),
        ((*ADAPTIVE, ("clipping.floor", "0.8")), "clipping.floor is 0.8, above the first threshold of phase top, 0.7"),
    ],
)
def test_adaptive_thresholds_that_cannot_be_are_refused(config_file, overrides, sentence):
    with pytest.raises(training.UserError, match=sentence):
        plan_of(config_file, *overrides)
