"""Meshes and sharding rules: what they give, and one sentence for each mistake."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxdp import parallel

PARAMS = {"up": {"kernel": jnp.zeros((6, 16)), "bias": jnp.zeros(16)}, "down": jnp.zeros((16, 6)), "odd": jnp.zeros(5)}


@pytest.mark.quick
def test_parameters_are_cut_by_the_last_rule_that_matches_and_then_along_fsdp():
    mesh = parallel.make_mesh(fsdp=2, tensor=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    rules = parallel.ShardingRules(mesh, {"*": P(), "up/*": "last", "down": P(("tensor", "fsdp"))})
    specs = jax.tree.map(lambda s: s.spec, rules(PARAMS))
    assert specs["up"] == {"kernel": P("fsdp", "tensor"), "bias": P("tensor")}
    assert specs["down"] == P(("tensor", "fsdp")) and specs["odd"] == P()
    assert parallel.batch_sharding(mesh).spec == P(("data", "fsdp"))


def test_moments_lie_with_their_parameters():
    mesh = parallel.make_mesh(fsdp=4)
    rules = parallel.ShardingRules(mesh)
    shardings = rules(PARAMS)
    state = jax.eval_shape(optax.adam(0.1).init, PARAMS)
    found = parallel.state_shardings(state, PARAMS, shardings, rules)
    assert found[0].mu == found[0].nu == shardings and found[0].count.spec == P()
    # A moment in a subspace has another shape, and is cut along what is left of it.
    small = state[0]._replace(mu=PARAMS | {"down": jax.ShapeDtypeStruct((16, 2), jnp.float32)})
    assert parallel.state_shardings(small, PARAMS, shardings, rules).mu["down"].spec == P("fsdp")


def test_placing_keeps_values_and_keys():
    mesh = parallel.make_mesh(data=2, fsdp=4)
    tree = {"x": np.arange(8.0, dtype=np.float32), "key": jax.random.key(3)}
    placed = parallel.place(tree, {"x": parallel.batch_sharding(mesh), "key": parallel.replicated(mesh)})
    np.testing.assert_array_equal(placed["x"], tree["x"])
    assert len(placed["x"].sharding.device_set) == 8 and placed["x"].addressable_shards[0].data.shape == (1,)
    np.testing.assert_array_equal(jax.random.key_data(placed["key"]), jax.random.key_data(tree["key"]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parallel.make_mesh(data=0), "mesh.data is 0: give a number of devices from 1"),
        (lambda: parallel.make_mesh(tensor=True), "mesh.tensor is True"),
        (lambda: parallel.make_mesh(data=4, fsdp=4), "needs 16 devices where there are 8"),
        (lambda: parallel.make_mesh(fsdp=3), "does not divide the 8 devices"),
        (lambda: _rules({"dwon": P()}), "the sharding rule 'dwon' matches no parameter"),
        (lambda: _rules({"down": P(None, None, "tensor")}), "has 3 axes where down has 2"),
        (lambda: _rules({"down": P("model")}), "names the axis 'model', which the mesh does not have"),
        (lambda: _rules({"down": P(None, "tensor")}), "axis 1 of down has length 6, which 'tensor' with 4 devices"),
    ],
)
def test_mistakes_are_one_sentence(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def _rules(rules):
    return parallel.ShardingRules(parallel.make_mesh(tensor=4), rules)(PARAMS)
