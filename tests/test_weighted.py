"""Weighted sums of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdp.lowering._target import batch_sharded
from jaxdp.lowering._weighted import weighted_total
from tests.drawn import normal

# Few rows, many small ones, many large ones: a form for each.
SHAPES = [(0, 5), (1, 5), (16, 40, 40), (17, 3, 2), (64, 384), (33, 70, 80), (3,), (20,)]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_form_is_the_weighted_sum(shape: tuple[int, ...]) -> None:
    weights = jax.random.uniform(jax.random.key(1), shape[:1])
    rows = normal(2, *shape)
    expected = np.tensordot(np.float64(weights), np.float64(rows), axes=1)
    found = weighted_total(weights, rows)
    assert found.shape == shape[1:]
    assert found.dtype == rows.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_rows_on_several_devices_are_not_fetched_one_by_one() -> None:
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    def total(weights: jax.Array, rows: jax.Array) -> jax.Array:
        with batch_sharded(sharding):
            return weighted_total(weights, rows)

    shapes = [jax.ShapeDtypeStruct((8, *s), jnp.float32, sharding=sharding) for s in ((), (300, 100))]
    program = jax.jit(total).lower(*shapes).compile().as_text()
    assert program.count(" all-reduce(") == 1
    assert "all-gather" not in program
    assert "collective-permute" not in program
