"""What the documents show is run: Python blocks, the examples of public docstrings, links and commands."""

import doctest
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = [
    "jaxdp",
    "accounting",
    "data",
    "interop.jax_privacy",
    "models",
    "nnx",
    "norms",
    "parallel",
    "per_example",
    "sampling",
    "training",
    "transforms",
]


def blocks(document: Path, language: str) -> list[tuple[int, str]]:
    """(line number, code) of every fenced block of a language."""
    text = document.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in found]


@pytest.fixture
def as_users_run_it():
    """With JAX's own settings: the strict ones of the tests also judge other libraries' arithmetic."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.quick("README.md")
@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("document", [d for d in DOCUMENTS if blocks(d, "python")], ids=lambda d: d.name)
def test_python_blocks_run(document, capsys):
    """In order and in one namespace, as a reader would type them."""
    names: dict[str, Any] = {"__name__": "documents"}
    for line, code in blocks(document, "python"):
        # Errors point into the document.
        exec(compile("\n" * line + code, str(document), "exec"), names)
    said = capsys.readouterr().out
    if document.name == "README.md":
        accuracy, epsilon = map(float, re.search(r"accuracy (\S+) at epsilon (\S+)", said).groups())
        assert accuracy > 0.9 and 2.9 < epsilon <= 3.0
        assert names["step"]._cache_size() == 1
        assert names["norms"].shape == (8,)


def public_objects() -> dict[str, Any]:
    """Public functions, classes, and their own methods and properties, by name."""
    found = {}
    for package in PACKAGES:
        module = importlib.import_module("jaxdp" if package == "jaxdp" else f"jaxdp.{package}")
        names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
        for name in names:
            value = getattr(module, name)
            if not (inspect.isfunction(value) or inspect.isclass(value)) or not value.__module__.startswith("jaxdp"):
                continue
            found[f"{value.__module__}.{value.__qualname__}"] = value
            if inspect.isclass(value):
                for member, inner in vars(value).items():
                    inner = inner.fget if isinstance(inner, property) else getattr(inner, "__func__", inner)
                    if inspect.isfunction(inner) and not member.startswith("_"):
                        found[f"{value.__module__}.{value.__qualname__}.{member}"] = inner
    return found


PUBLIC = public_objects()
WITH_EXAMPLES = [name for name, value in PUBLIC.items() if ">>>" in (value.__doc__ or "")]


def test_examples_were_found():
    assert {"per_example_grad", "clip", "add_gaussian_noise", "dpsgd", "calibrate", "sample", "clipped_sum"} <= {
        name.rsplit(".", 1)[-1] for name in WITH_EXAMPLES
    }


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_of_docstrings_run(name):
    value = PUBLIC[name]
    names = dict(vars(sys.modules[value.__module__]))
    example = doctest.DocTestParser().get_doctest(inspect.cleandoc(value.__doc__), names, name, None, 0)
    said: list[str] = []
    failed, tried = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=said.append)
    assert tried > 0
    assert not failed, "".join(said)


def test_public_objects_have_docstrings():
    assert [name for name, value in PUBLIC.items() if not value.__doc__] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_links_and_paths_exist(document):
    text = document.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("http")]
    paths = re.findall(r"(?:configs|docs|jaxdp|tests)/[\w./]*\w", text)
    missing = [link for link in links if not (document.parent / link).exists()]
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


def test_commands_exist():
    """Targets of make, and commands of jaxdp with their options."""
    text = "\n".join(code for document in DOCUMENTS for _, code in blocks(document, "sh"))
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", text, re.MULTILINE)) <= targets
    from jaxdp.cli import _main as cli
    from jaxdp.training import load_config

    calls = re.findall(r"^jaxdp ([^#\n]*)", text, re.MULTILINE)
    assert len(calls) >= 5
    for call in calls:
        arguments, overrides = cli._split_overrides(call.split())
        cli._parse(arguments)
        if arguments[0] == "train":
            load_config(ROOT / arguments[1], overrides)
