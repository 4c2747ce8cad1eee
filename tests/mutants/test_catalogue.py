"""The catalogue of mutants fits the code as it is; whether tests notice them is what `make mutants` finds out."""

import ast
import re

import pytest

from tests.mutants._mutant import ROOT, Mutant, catalogue

MUTANTS = catalogue()


def functions_of(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.quick
def test_every_mutant_changes_the_code_as_it_is_and_names_tests_that_exist():
    assert len(MUTANTS) >= 80
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        changed = mutant.applied(ROOT)
        ast.parse(changed)
        assert mutant.path.startswith("jaxdp/") and mutant.breaks and mutant.tests, mutant.name
        for test in mutant.tests:
            path, _, name = test.partition("::")
            assert re.sub(r"\[.*", "", name) in functions_of(path), f"{mutant.name} names {test}, which does not exist"


def test_a_stale_mutant_is_named(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    for old, count in (("x = 1", 2), ("x = 2", 0)):
        with pytest.raises(ValueError, match=f"wrong: a.py holds '{old}' {count} times where once is needed"):
            Mutant("wrong", "all", "a.py", old, "x = 3", ("t",)).applied(tmp_path)
