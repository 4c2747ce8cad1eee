"""Thresholds and noise by group: what fits the parameters, and noise that follows them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdp import transforms
from jaxdp.per_example import Blocks, resolve_groups
from tests.transforms.small import PARAMS, flat64

SIZE = 40_000
ENTRIES = {"layers": jnp.zeros((2, SIZE)), "out": jnp.zeros(SIZE)}
STACKED = resolve_groups("param", ENTRIES, ((2,), ()))
THRESHOLDS = {"['layers'][0]": 0.3, "['layers'][1]": 1.2, "['out']": 0.4}


def update(tx, params=PARAMS):
    grads = jax.tree.map(lambda p: jnp.zeros((2, *p.shape)), params)
    return tx.update(grads, tx.init(params), params)


@pytest.mark.parametrize(
    "max_norm, groups, message",
    [
        ({"['dense']": 1.0}, "layer", r"max_norm has no number for the group \"\['head'\]\""),
        ({"['dense']": 1.0, "['head']": 1.0, "dense": 1.0}, "layer", r"max_norm names the group 'dense'.*groups are"),
        ({"a": 1.0, "b": 1.0}, {"dense": "a", "head": "c"}, r"no number for the group 'c'"),
        ({"block 0": 1.0, "block 1": 1.0, "block 2": 1.0}, Blocks(2), r"names the group 'block 2'"),
        ({"dense": 1.0}, "all", r"params\['head'\] has no group"),
        ({"dense": 1.0, "head": 1.0, "tail": 1.0}, "all", r"a node \['tail'\] where params have none"),
    ],
)
def test_thresholds_without_a_group_and_groups_without_a_threshold_are_refused_at_init(max_norm, groups, message):
    tx = transforms.clip(max_norm, groups=groups)
    for refused in (lambda: tx.init(PARAMS), lambda: tx.update(PARAMS_STACKED, optax.EmptyState(), PARAMS)):
        with pytest.raises(ValueError, match=message):
            refused()


PARAMS_STACKED = jax.tree.map(lambda p: jnp.zeros((2, *p.shape)), PARAMS)


def test_groups_that_only_the_loss_knows_are_checked_at_update():
    """A stack's layers have names that the parameters alone do not show."""
    params = {"layers": {"w": jnp.ones((2, 3)), "b": jnp.ones(2)}, "out": jnp.ones(3)}
    by_layer = {"['layers'][0]": 1.0, "['layers'][1]": 2.0, "['out']": 2.0}
    assert transforms.clip(by_layer, groups="layer").sensitivity == 3.0
    for max_norm, groups in ((by_layer, "layer"), ({True: 1.0, False: 1.0}, lambda path: path.endswith("[0]"))):
        transforms.clip(max_norm, groups=groups).init(params)
        with pytest.raises(ValueError, match="max_norm has no number"):
            update(transforms.clip({"none": 1.0}, groups=lambda path: path), params)
    with pytest.raises(ValueError, match=r"no number for the group \"\['layers'\]\""):
        update(transforms.clip(by_layer, groups="layer"), params)
    with pytest.raises(ValueError, match=r"no number for the group \"\['out'\]\""):
        transforms.clip({"['layers'][0]": 1.0}, groups="layer").init(params)
    with pytest.raises(ValueError, match=r"names the group 'x'"):
        transforms.clip(by_layer | {"x": 1.0}, groups="layer").init(params)
    resolved = resolve_groups("layer", params, ((2,), (2,), ()))
    total, _ = update(transforms.clip(by_layer, groups=resolved), params)
    assert total.sensitivity == 3.0 * (1 + total.slack)


@pytest.mark.parametrize(
    "max_norm, error, message",
    [
        ({"dense": 0.0, "head": 1.0}, ValueError, r"max_norm of \"\['dense'\]\" is 0.0: .*positive"),
        ({"dense": math.nan, "head": 1.0}, ValueError, r"positive and finite"),
        ({"dense": 1e30, "head": 1.0}, ValueError, r"float32 cannot square"),
        ({"dense": True, "head": 1.0}, TypeError, r"max_norm is .*Python number"),
        ({"dense": "a", "head": 1.0}, TypeError, r"max_norm is .*Python number"),
        ({"dense": np.ones(1), "head": 1.0}, TypeError, r"max_norm is .*Python number"),
        ({}, TypeError, r"max_norm is .*Python number"),
    ],
)
def test_thresholds_without_a_meaning_are_refused(max_norm, error, message):
    with pytest.raises(error, match=message):
        transforms.clip(max_norm)
    if max_norm and not isinstance(max_norm["dense"], np.ndarray | str):
        with pytest.raises((TypeError, ValueError), match="max_norm of 'dense' is"):
            transforms.clip(max_norm, groups={"dense": "dense", "head": "head"})


@pytest.mark.parametrize(
    "noise_shape, error, message",
    [
        ("round", ValueError, r"noise_shape is 'round'.*equal_budget"),
        (1.0, TypeError, r"noise_shape is 1.0"),
        ({"all": 0.0}, ValueError, r"noise_shape of 'all' is 0.0"),
        ({"all": -1.0}, ValueError, r"noise_shape of 'all' is -1.0"),
        ({"all": math.inf}, ValueError, r"noise_shape of 'all' is inf"),
        ({"all": math.nan}, ValueError, r"noise_shape of 'all' is nan"),
        ({"all": 1e-20}, ValueError, r"only the ratios"),
    ],
)
def test_a_noise_shape_without_a_meaning_is_refused(noise_shape, error, message):
    with pytest.raises(error, match=message):
        transforms.clip(1.0, noise_shape=noise_shape)


def test_a_noise_shape_of_other_groups_is_refused():
    with pytest.raises(ValueError, match=r"noise_shape has no number for the group 'all'"):
        transforms.clip(1.0, noise_shape={"one": 1.0}).init(PARAMS)
    with pytest.raises(ValueError, match=r"noise_shape names the group \"\['tail'\]\""):
        transforms.clip({"dense": 1.0, "head": 1.0}, noise_shape={"dense": 1.0, "head": 1.0, "tail": 1.0}).init(PARAMS)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("noise_shape", ["isotropic", "equal_budget", {**THRESHOLDS, "['out']": 2.0}])
def test_the_noise_drawn_on_each_group_has_its_std(key, noise_shape, normalize):
    """End to end, a stack's entries and an ordinary leaf each with their own std."""
    tx = transforms.dpsgd(
        max_norm=THRESHOLDS,
        groups=STACKED,
        noise_shape=noise_shape,
        normalize=normalize,
        noise_multiplier=0.7,
        expected_batch_size=5.0,
        key=key,
    )
    noise, _ = update(tx, ENTRIES)
    bounds = list(THRESHOLDS.values())
    shapes = {"isotropic": [1.0] * 3, "equal_budget": bounds}
    gammas = shapes[noise_shape] if isinstance(noise_shape, str) else list(noise_shape.values())
    share = math.hypot(*(bound / gamma for bound, gamma in zip(bounds, gammas, strict=True)))
    unit = math.hypot(*bounds) if normalize else 1.0
    for rows, gamma in zip((noise["layers"][0], noise["layers"][1], noise["out"]), gammas, strict=True):
        sample = np.asarray(rows, np.float64) / (0.7 * share * gamma / unit / 5.0)
        assert abs(sample.mean()) < 5 / np.sqrt(SIZE)
        assert abs(sample.std() - 1) < 5 / np.sqrt(2 * SIZE)


def test_the_noise_shape_changes_the_noise_only(key):
    """The same sum, sensitivity and event, and with the same key the same draws."""
    shaped = [transforms.clip(THRESHOLDS, groups=STACKED, noise_shape=shape) for shape in ("isotropic", "equal_budget")]
    sums = [update(tx, ENTRIES)[0] for tx in shaped]
    assert sums[0].sensitivity == sums[1].sensitivity
    assert shaped[0].dp_event(2.0) == shaped[1].dp_event(2.0)
    noise = transforms.add_gaussian_noise(1.0, key)
    plain, other = (noise.update(total, noise.init(ENTRIES))[0] for total in sums)
    ratio = math.sqrt(3) * 0.4 * (1 + sums[0].slack) / sums[0].sensitivity
    np.testing.assert_allclose(other["out"], ratio * plain["out"], rtol=1e-5)


def test_leaves_of_one_shape_are_drawn_together_and_differ(key):
    """By one generator, however many there are, and again alike."""
    noise = transforms.add_gaussian_noise(1.0, key)
    tree = {f"{i:02}": jnp.zeros((3, 4)) for i in range(5)} | {"x": jnp.zeros(7)}
    draw = lambda tree: noise.update(transforms.ClippedSum(tree, 1.0), noise.init(tree))[0]
    values = flat64(draw(tree))
    assert len(np.unique(values)) == len(values)
    np.testing.assert_array_equal(values, flat64(draw(tree)))
    generators = lambda count: str(jax.make_jaxpr(draw)([jnp.zeros((3, 4))] * count)).count("= log ")
    assert generators(2) == generators(20) > 0
