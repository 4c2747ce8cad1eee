"""Pytest on a copy of the tree, in a fork of a process that has the libraries loaded: they take longer than a test."""

import importlib
import os
import signal
import sys
import time
from pathlib import Path

# What a fork may share, as it is never changed. Nothing of jaxdp, and no JAX backend, is there before the fork.
_LIBRARIES = (
    *("jax", "jax.numpy", "numpy", "optax", "flax.nnx", "orbax.checkpoint", "dp_accounting", "scipy.stats"),
    *("pytest", "pydantic", "tokenizers"),
)
# Without the annotation checks of the test run: a test is to notice, not a type.
_OPTIONS = ("-q", "-x", "-p", "no:cacheprovider", "-o", "addopts=--strict-markers")
# The libraries are loaded before pytest could rewrite the assertions of those among them that are its plugins.
_OPTIONS += ("-W", "ignore::pytest.PytestAssertRewriteWarning")


def load_libraries() -> None:
    """Import what the forks share."""
    for name in _LIBRARIES:
        importlib.import_module(name)


def run_tests(copy: Path, tests: tuple[str, ...] | list[str], seconds: float) -> tuple[int | None, str]:
    """Pytest's exit code on the tests of the copy (None if it took too long), and what it said."""
    said = copy / ".said"
    child = os.fork()
    if not child:
        os._exit(_in_child(copy, tests, said))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), said.read_text(encoding="utf-8", errors="replace").strip()
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None, ""


def _in_child(copy: Path, tests: tuple[str, ...] | list[str], said: Path) -> int:
    code: int = 3
    try:
        with said.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        here = Path.cwd()
        sys.path[:] = [str(copy), *(p for p in sys.path if Path(p or ".").resolve() not in (copy.resolve(), here))]
        os.chdir(copy)
        os.environ["PYTHONPATH"] = str(copy)
        sys.dont_write_bytecode = True
        for name in [n for n in sys.modules if n.partition(".")[0] in ("jaxdp", "tests")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        jaxdp = importlib.import_module("jaxdp")
        if not Path(str(jaxdp.__file__)).resolve().is_relative_to(copy.resolve()):
            print(f"the tests would be of {jaxdp.__file__}, not of the copy")
            return 3
        code = int(importlib.import_module("pytest").main([*_OPTIONS, *tests]))
    except BaseException as error:
        # Also what a mutant makes of the package itself: that it cannot be imported shows nothing about the tests.
        print(f"{type(error).__name__}: {error}")
        code = 3
    finally:
        sys.stdout.flush()
    return code
