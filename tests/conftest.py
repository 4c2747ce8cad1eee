"""Session-wide settings: each of these lines catches a family of silent numerical bugs."""

from collections.abc import Iterator
from pathlib import Path

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


# Batteries and runs that trace the same functions over and over, where checking annotations takes a third of the time.
# `make quick` checks the essentials of each folder; all other folders are checked in every run.
REPEATED = ("benchmarks", "cli", "examples", "interop", "models", "nnx", "parallel", "per_example", "training")


def _folder(item: pytest.Item) -> str:
    return item.path.relative_to(Path(__file__).parent).parts[0]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Check annotations or not, before any fixture is made."""
    checked = _folder(item) not in REPEATED or item.config.option.markexpr == "quick"
    jaxtyping.config.update("jaxtyping_disable", not checked)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole modules to one worker where they share runs or models that take long to make."""
    for item in items:
        if _folder(item) in ("training", "models", "parallel") and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
        # `quick("this", "that")`: of these parameters only.
        marker = item.get_closest_marker("quick")
        if marker is not None and marker.args and item.callspec.id not in marker.args:  # pyright: ignore[reportAttributeAccessIssue]
            item.own_markers = [mark for mark in item.own_markers if mark is not marker]


@pytest.fixture
def key() -> jax.Array:
    """A fixed key: tests are deterministic, training runs are not."""
    return jax.random.key(20240607)


@pytest.fixture
def without_type_checks() -> Iterator[None]:
    """As users run it: the library's own checks must catch what the test run's annotation checks would catch first."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
