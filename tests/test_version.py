"""One version: that of the tag, which the change log and the citation name."""

import importlib.metadata
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import jaxdp

ROOT = Path(__file__).parent.parent


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_that_of_what_is_installed() -> None:
    assert jaxdp.__version__ == importlib.metadata.version("jaxdp-training") != "0.0.0+unknown"


def test_the_change_log_and_the_citation_name_one_version() -> None:
    (cited,) = re.findall(r"^version: (\S+)$", text("CITATION.cff"), re.MULTILINE)
    newest = re.search(r"^To become (\S+)\.$|^## \[(\d\S*)\]", text("CHANGELOG.md"), re.MULTILINE)
    assert newest is not None
    assert cited in newest.groups()


def test_the_newest_tag_is_no_newer_than_what_is_cited() -> None:
    if shutil.which("git") is None:
        pytest.skip("tags are asked of git")
    found = subprocess.run(["git", "tag", "--list", "v*"], cwd=ROOT, capture_output=True, text=True, check=False)
    numbers = lambda version: [int(part) for part in re.findall(r"\d+", version)]
    (cited,) = re.findall(r"^version: (\S+)$", text("CITATION.cff"), re.MULTILINE)
    assert all(numbers(tag) <= numbers(cited) for tag in found.stdout.split())
