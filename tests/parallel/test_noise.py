"""Noise on a mesh: the values of one device, each device drawing its own part."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxdp
from jaxdp import parallel, transforms
from jaxdp.transforms import ClippedSum

from .hlo import array_bytes, exchanged

SHAPE = (64, 48)
SPECS = {"a": P("fsdp", "tensor"), "b": P("tensor"), "c": P("fsdp", "tensor"), "d": P()}


def noisy(key: jax.Array, shardings: Any) -> Any:
    tx = transforms.add_gaussian_noise(1.5, key)
    tree = {name: jnp.zeros((8,) if name == "d" else SHAPE) for name in SPECS}
    clipped: Any = ClippedSum(tree, 1.0, shardings=shardings)
    return tx.update(clipped, tx.init(tree))[0]


@pytest.mark.quick
def test_every_device_draws_its_part_of_one_stream(key: jax.Array):
    mesh = parallel.make_mesh(data=1, fsdp=4, tensor=2)
    shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    alone = jax.jit(lambda: noisy(key, None))()
    compiled = jax.jit(lambda: noisy(key, shardings), out_shardings=shardings).lower().compile()
    found = compiled()
    for name, expected in alone.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=1e-7)
    # No shard is a copy of another.
    shards = {str(shard.index): np.asarray(shard.data) for shard in found["a"].addressable_shards}
    assert len({x.tobytes() for x in shards.values()}) == 8
    # The random bits of no leaf that is cut are on one device, and nothing is sent.
    largest = max(array_bytes(" ".join(line for line in str(compiled.as_text()).splitlines() if "u32[" in line)))
    assert largest <= 2 * 4 * SHAPE[0] * SHAPE[1] // 2
    assert exchanged(compiled) == 0


def test_what_would_depend_on_the_mesh_is_refused(key: jax.Array):
    mesh = parallel.make_mesh(data=8)
    shardings = {name: NamedSharding(mesh, P()) for name in SPECS}
    with pytest.raises(ValueError, match="the key's generator is rbg"):
        noisy(jax.random.key(0, impl="rbg"), shardings)
    sharding = parallel.batch_sharding(mesh)
    sampler = jaxdp.sampling.ShardedPoissonSampling(100, 0.5, sharding)
    with pytest.raises(ValueError, match="the key's generator is rbg"):
        sampler.sample(jax.random.key(0, impl="rbg"), 0)
    with jax.threefry_partitionable(False):
        with pytest.raises(ValueError, match="jax_threefry_partitionable is off"):
            noisy(key, shardings)
        with pytest.raises(ValueError, match="jax_threefry_partitionable is off"):
            parallel.Placement(sharding)
