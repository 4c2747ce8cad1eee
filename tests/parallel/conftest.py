"""A short run of two phases."""

from pathlib import Path

import pytest

from ..training.conftest import table, tiny_model  # noqa: F401
from ..training.small import two_phases


@pytest.fixture(scope="package")
def config(tmp_path_factory: pytest.TempPathFactory, table: Path, tiny_model: Path) -> Path:  # noqa: F811
    text = two_phases(table, tiny_model).replace("steps = 12\n", "steps = 3\n").replace("steps = 18\n", "steps = 4\n")
    path = tmp_path_factory.mktemp("config") / "small.toml"
    path.write_text(text.replace("evaluations = 9", "evaluations = 1").replace("evaluations = 4", "evaluations = 1"))
    return path
