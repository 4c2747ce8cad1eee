"""Every workload at its smallest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import workloads


@pytest.mark.parametrize("name", workloads.DEFAULT)
def test_every_parameter_is_trained(name):
    workload = workloads.build(name, "tiny")
    params, batch = workload.make_params(), workload.make_batch()
    values, grads = jax.jit(jax.vmap(jax.value_and_grad(workload.loss), in_axes=(None, 0)))(params, batch)
    assert values.shape == (workload.batch_size,)
    assert jnp.all(jnp.isfinite(values)) and jnp.std(values) > 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        # Softmax does not see what all keys have in common.
        if not any(part in jax.tree_util.keystr(path) for part in ("['key']['bias']",)):
            assert jnp.any(leaf != 0), jax.tree_util.keystr(path)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", workloads.NAMES)
def test_bfloat16_reaches_every_product_with_a_parameter(name):
    workload = workloads.build(name, "tiny", dtype=jnp.bfloat16)
    params = jax.eval_shape(workload.make_params)
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), jax.eval_shape(workload.make_batch))
    closed = jax.make_jaxpr(workload.loss)(params, example)
    assert closed.out_avals[0].dtype == jnp.float32
    text = str(closed)
    products = [line for line in text.splitlines() if " dot_general[" in line or " conv_general_dilated[" in line]
    assert len(products) >= 4
    # The scores of attention, with axes for heads, are no product with a parameter: the softmax wants them in float32.
    scores = [line for line in products if " dot_general[" in line and line.split("[")[1].count(",") > 2]
    assert all(":bf16[" in line for line in products if line not in scores)


def test_names():
    assert workloads.expand(["w4", "w2", "w2"]) == ("w4-vit", "w4-conv", "w2")
    assert "gpu" not in workloads.expand(["all"])
    with pytest.raises(ValueError, match="workloads has 'w9': use w1"):
        workloads.expand(["w9"])
    assert workloads.build("w2", "tiny", batch_size=3, seq=5).make_batch()["ids"].shape == (3, 6)


def test_parameters_are_fresh_at_every_call():
    """A step that reuses the buffers of its parameters must not take them from the next one."""
    workload = workloads.build("w1", "tiny")
    first, second = workload.make_params(), workload.make_params()
    jax.tree.map(lambda x: x.delete(), first)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(second))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(workload.make_params()))
