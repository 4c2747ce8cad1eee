"""A workload that compiles in no time."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from benchmarks.workloads import Workload


def affine_loss(params, example):
    residual = example["x"] @ params["weight"] + params["bias"] - example["y"]
    return jnp.sum(jnp.square(residual))


@pytest.fixture(scope="session")
def toy() -> Workload:
    """Four examples of two regressions, with gradients above and below the clipping norm."""

    def make_batch():
        x = jax.random.normal(jax.random.key(1), (4, 3)) * jnp.array([0.01, 0.1, 1.0, 10.0])[:, None]
        return {"x": x, "y": 0.1 * jax.random.normal(jax.random.key(2), (4, 2))}

    def make_params():
        return {"weight": jax.random.normal(jax.random.key(0), (3, 2)), "bias": jnp.zeros(2)}

    return Workload("toy", "two regressions", affine_loss, make_params, make_batch, 4, {"seq": 1})


@pytest.fixture
def as_users_run_it() -> Iterator[None]:
    """With JAX's own settings: the strict ones of the tests also judge other libraries' arithmetic."""
    jaxtyping.config.update("jaxtyping_disable", True)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
    jaxtyping.config.update("jaxtyping_disable", False)
