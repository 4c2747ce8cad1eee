"""Imports point one way: between packages, and between the rooms of a package."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From what imports nothing to what imports everything. A package that is not named may be imported by none.
PACKAGES = ["numerics", "lowering", "data", "norms", "models", "accounting", "sampling", "per_example", "parallel"]
PACKAGES += ["transforms", "nnx", "interop", "training", "cli"]
ROOMS = {
    "per_example": ["tracing", "uses", "subspace", "rewriting", "grouping", "planning", "passes"],
    "training": ["config", "files", "tasks", "chain", "running", "reporting"],
}


def imports(path: Path) -> Iterator[tuple[str, ...]]:
    """The modules of jaxdp that a module imports, anywhere in it and for type checkers, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            # By dots, from the folder that the module is in; and what is imported may be a module.
            above = ".".join(path.relative_to(ROOT).parts[: -node.level]) + "." if node.level else ""
            names = [f"{above}{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (tuple(name.split(".")[1:]) for name in names if name.split(".")[0] == "jaxdp")


def modules(package: str) -> Iterator[tuple[tuple[str, ...], Path]]:
    for path in sorted((ROOT / "jaxdp" / package).rglob("*.py")):
        yield path.relative_to(ROOT / "jaxdp").with_suffix("").parts, path


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_what_stands_before_them(package: str) -> None:
    for name, path in modules(package):
        for other in imports(path):
            if other and other[0] in PACKAGES:
                assert PACKAGES.index(other[0]) <= PACKAGES.index(package), f"{name} imports {other}"


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_what_stands_before_them(package: str) -> None:
    rooms = ROOMS[package]
    assert {p.name for p in (ROOT / "jaxdp" / package).iterdir() if p.is_dir() and p.name[0] != "_"} == set(rooms)
    for name, path in modules(package):
        for other in imports(path):
            if name[1] in rooms and other[:1] == (package,) and other[1:]:
                # What belongs to no room is below all of them: errors, and what refuses arithmetic.
                above = [*rooms, "_api", "_grads", "_run", "_finish"]
                if other[1] in above:
                    assert above.index(other[1]) <= above.index(name[1]), f"{name} imports {other}"


def test_no_module_imports_what_imports_it() -> None:
    graph = {name: set(imports(path)) for package in PACKAGES for name, path in modules(package)}
    # `from a.b import c` may mean the module a.b.c or a name in a.b.
    known = {name: {o if o in graph else o[:-1] for o in found} & set(graph) - {name} for name, found in graph.items()}
    while ready := [name for name, found in known.items() if not found]:
        known = {name: found - set(ready) for name, found in known.items() if name not in ready}
    assert not known, f"imports in circles: {sorted(known)}"
