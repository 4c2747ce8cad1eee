"""One version, in every file that tells it."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import jaxdp

ROOT = Path(__file__).parent.parent


def test_every_file_has_the_same_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited is not None
    assert project["version"] == importlib.metadata.version(project["name"])
    assert project["version"] == jaxdp.__version__ == cited[1]
