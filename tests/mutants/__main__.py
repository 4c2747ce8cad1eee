"""Break privacy in one small way after the other, and see whether the tests notice: `python -m tests.mutants`.

The tree is copied; each mutant is applied to the copy, its tests run there, and the file is put back. A mutant whose
tests pass has survived: a guarantee without a test. Verdicts are kept in `.mutants.json` until the mutant, its file or
its tests change, so that a run that was stopped goes on where it was.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.mutants._forked import load_libraries, run_tests
from tests.mutants._mutant import ROOT, Mutant, catalogue

_COPIED = ("jaxdp", "tests", "configs", "docs", "pyproject.toml", "README.md", "Makefile")
_VERDICTS = ROOT / ".mutants.json"
# A mutant that loops for ever has not been noticed by a test.
_SECONDS = 600


def main() -> int:
    """The exit code: 0 when every mutant was killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", metavar="NAME", help="run mutants whose name or path holds this")
    parser.add_argument("--list", action="store_true", help="list them and run none")
    parser.add_argument("--fresh", action="store_true", help="forget earlier verdicts")
    parser.add_argument("--unchecked", action="store_true", help="take it that the tests pass without a mutant")
    options = parser.parse_args()
    mutants = [m for m in catalogue() if not options.only or any(o in m.name or o in m.path for o in options.only)]
    if options.list:
        print("\n".join(f"{m.path}: {m.name} ({m.breaks})" for m in mutants))
        return 0
    if not mutants:
        print(f"no mutant's name or path holds {' or '.join(map(repr, options.only))}: see --list.")
        return 2
    stale = [sentence for m in mutants if (sentence := _stale(m))]
    if stale:
        print("\n".join(stale))
        return 2
    verdicts = {} if options.fresh or not _VERDICTS.exists() else json.loads(_VERDICTS.read_text())
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder)
        _copy_tree(copy)
        load_libraries()
        return _run_all(mutants, copy, verdicts, options.unchecked)


def _run_all(mutants: list[Mutant], copy: Path, verdicts: dict[str, str], unchecked: bool) -> int:
    todo = [m for m in mutants if _digest(m, copy) not in verdicts]
    tests = sorted({test for m in todo for test in m.tests})
    code, output = run_tests(copy, tests, _SECONDS * (len(tests) + 1)) if tests and not unchecked else (0, "")
    if code != 0:
        print(f"{output[-2000:]}\nthe tests of these mutants fail without any mutant: mend them first.")
        return 2
    survivors = []
    for number, mutant in enumerate(mutants, 1):
        began, key = time.monotonic(), _digest(mutant, copy)
        known = key in verdicts
        verdict = verdicts[key] if known else _verdict(mutant, copy)
        if not known and verdict in ("killed", "survived"):
            verdicts[key] = verdict
            _VERDICTS.write_text(json.dumps(verdicts, indent=1))
        took = "known" if known else f"{time.monotonic() - began:.0f} s"
        print(f"[{number}/{len(mutants)}] {verdict:8} {mutant.name} ({took})", flush=True)
        if verdict != "killed":
            survivors.append(mutant)
    print(f"\n{len(mutants) - len(survivors)} of {len(mutants)} killed.")
    for mutant in survivors:
        print(f"not killed: {mutant.name}: nothing notices that {mutant.breaks} ({mutant.path})")
    return int(bool(survivors))


def _verdict(mutant: Mutant, copy: Path) -> str:
    path = copy / mutant.path
    before = path.read_text(encoding="utf-8")
    try:
        path.write_text(mutant.applied(copy), encoding="utf-8")
        code, output = run_tests(copy, mutant.tests, _SECONDS)
    finally:
        path.write_text(before, encoding="utf-8")
    if code == 1 and " failed" in output.splitlines()[-1]:
        return "killed"
    if code == 0:
        return "survived"
    # It did not even import, say: that shows nothing about the tests.
    print(output[-2000:])
    return "broken" if code is not None else "hung"


def _copy_tree(copy: Path) -> None:
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copy(source, copy / name)


def _stale(mutant: Mutant) -> str | None:
    try:
        mutant.applied(ROOT)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _digest(mutant: Mutant, copy: Path) -> str:
    """Of all that a verdict depends on, as far as the mutant names it."""
    files = sorted({mutant.path, *(test.partition("::")[0] for test in mutant.tests)})
    parts = [repr(mutant), *((copy / file).read_text(encoding="utf-8") for file in files)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
