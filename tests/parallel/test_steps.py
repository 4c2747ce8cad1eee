"""A private step is the same on every mesh, and exchanges no more than one without privacy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp import norms
from jaxdp.per_example.uses import _batching

from . import steps
from .hlo import exchanged

on_mesh = functools.cache(steps.OnMesh)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    yield
    on_mesh.cache_clear()


@pytest.mark.parametrize(
    ("name", "axes", "method"),
    [
        ("flat", (8, 1, 1), "bookkeeping"),
        ("flat", (2, 2, 2), "bookkeeping"),
        ("estimated", (1, 4, 2), "auto"),
        ("grape", (2, 2, 2), "auto"),
    ],
)
def test_parameters_are_those_of_one_device(name: str, axes: tuple[int, ...], method: str):
    before, alone = steps.make_params(), steps.one_device(name)
    trained = on_mesh(name, *axes, method=method).run()
    for leaf, expected, start in zip(*map(jax.tree.leaves, (trained, alone, before)), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)
        assert np.abs(expected - start).max() > 1e-3


def test_estimated_norms_are_estimated():
    data = jax.tree.map(jnp.asarray, steps.examples(np.arange(4)))
    plan = jaxdp.explain(steps.loss, steps.make_params(), data, norm=norms.Hutchinson(8))
    assert sum(row.rule == "Hutchinson" for row in plan.rows) == 4


def test_nothing_but_norms_is_exchanged_beyond_the_step_without_privacy():
    private, plain = on_mesh("flat", 2, 2, 2, method="bookkeeping"), on_mesh("sum", 2, 2, 2)
    extra = exchanged(private.compiled) - exchanged(plain.compiled)
    # A few float32 for each example of a microbatch and each parameter; one Gram matrix (T x T) would be more.
    local, leaves = steps.MICROBATCH // private.placement.shards, len(jax.tree.leaves(private.params))
    assert 0 <= extra <= 8 * 4 * local * leaves < 4 * local * steps.T**2 * leaves
    assert exchanged(plain.compiled) > 20 * extra


def test_an_example_without_a_finite_gradient_is_left_out_on_every_device():
    mesh = jaxdp.parallel.make_mesh(data=4)
    placement = jaxdp.parallel.Placement(jaxdp.parallel.batch_sharding(mesh))
    params = {"w": jnp.arange(6.0).reshape(3, 2) / 6}
    x = np.linspace(-1, 1, 48).reshape(16, 3).astype(np.float32)
    # One device has a NaN among its examples, one has nothing but NaN, one has no example at all.
    x[[1, 4, 5, 6, 7]] = np.nan
    batch: dict[str, Any] = {"x": x, "flag": np.arange(16) % 3 == 0, "key": jax.random.split(jax.random.key(3), 16)}
    mask = np.arange(16) < 12

    def loss(params: Any, example: Any) -> jax.Array:
        noise = 0.1 * jax.random.normal(example["key"], (2,))
        return jnp.sum(jnp.tanh(example["x"] @ params["w"] + noise)) * jnp.where(example["flag"], 1.0, 2.0)

    @functools.partial(jax.jit, static_argnums=2)
    def total(batch: Any, mask: Any, placement: Any) -> Any:
        grads = jaxdp.per_example_grad(loss)(params, batch, mask=mask, placement=placement)
        return grads.clipped_sum_and_norms(lambda sq: jnp.minimum(1.0, 0.3 / jnp.sqrt(sq)))

    expected = total(batch, mask, None)
    found = total(jax.device_put(batch, placement.batch), jax.device_put(mask, placement.batch), placement)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert np.isfinite(np.asarray(found[0]["w"])).all() and np.isinf(np.asarray(found[1])).sum() == 5


def test_loops_over_examples_stay_on_their_device(monkeypatch: pytest.MonkeyPatch):
    """Large gradients are made one by one, by each device for its own examples."""
    monkeypatch.setattr(_batching, "_VECTORISED_ELEMENTS", 1)
    monkeypatch.setattr("jaxdp.norms._exact._TOGETHER_ELEMENTS", 1)
    monkeypatch.setattr("jaxdp.norms._exact._REUSED_ELEMENTS", 1)
    mesh = jaxdp.parallel.make_mesh(data=4)
    placement = jaxdp.parallel.Placement(jaxdp.parallel.batch_sharding(mesh))
    draw = np.random.default_rng(0)
    normal = lambda *shape: draw.normal(size=shape).astype(np.float32)
    params = {"gram": normal(8, 8), "product": normal(8, 8), "other": normal(4, 8)}
    batch = normal(16, 4, 8)
    mask = np.arange(16) % 5 != 0

    def loss(p: Any, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(jnp.tanh(x @ p["gram"]) @ p["product"])
        return jnp.sum(jnp.maximum(hidden, p["other"]))

    def total(params: Any, batch: Any, mask: Any, placement: Any) -> Any:
        rules = {"params['gram']": "gram", "params['product']": "materialize"}
        grads = jaxdp.per_example_grad(loss, rules=rules)(
            params, batch, mask=mask, microbatch_size=8, placement=placement
        )
        return grads.clipped_sum(lambda sq: jnp.minimum(1.0, 0.3 / jnp.sqrt(sq)), groups="param")

    expected = jax.jit(functools.partial(total, placement=None))(params, batch, mask)
    placed = jax.device_put((batch, mask), placement.batch)
    compiled = jax.jit(functools.partial(total, placement=placement)).lower(params, *placed).compile()
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), compiled(params, *placed), expected
    )
    # The sums of three parameters and little more: no example travels but the one that stands in for masked ones.
    sums = sum(x.nbytes for x in params.values())
    assert exchanged(compiled) < sums + batch[0].nbytes + 256


def test_sizes_that_do_not_divide_and_meshes_that_do_not_fit_are_refused():
    mesh = jaxdp.parallel.make_mesh(data=4)
    placement = jaxdp.parallel.Placement(jaxdp.parallel.batch_sharding(mesh))
    grads = jaxdp.per_example_grad(lambda w, x: w @ x)
    with pytest.raises(ValueError, match="the batch is 6 with a batch cut into 4 parts"):
        grads(jnp.ones(2), jnp.ones((6, 2)), placement=placement)
    with pytest.raises(ValueError, match="microbatch_size is 2 with a batch cut into 4 parts"):
        grads(jnp.ones(2), jnp.ones((8, 2)), microbatch_size=2, placement=placement)
    explicit = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Explicit,))
    with pytest.raises(ValueError, match="the mesh's axes are not automatic"):
        jaxdp.parallel.Placement(jax.sharding.NamedSharding(explicit, jax.sharding.PartitionSpec("data")))
    with pytest.raises(ValueError, match="cut the batch along its first axis only"):
        jaxdp.parallel.Placement(jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data")))
