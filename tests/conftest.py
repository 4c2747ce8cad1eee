"""Session-wide settings: each of these lines catches a family of silent numerical bugs."""

from collections.abc import Iterator

import jax
import jaxtyping
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Reference comparisons at 1e-5 must not depend on a reduced-precision matmul.
jax.config.update("jax_default_matmul_precision", "highest")

# Small shapes compile far longer than they run.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def key() -> jax.Array:
    """A fixed key: tests are deterministic, training runs are not."""
    return jax.random.key(20240607)


@pytest.fixture
def without_type_checks() -> Iterator[None]:
    """As users run it: the library's own checks must catch what the test run's annotation checks would catch first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
