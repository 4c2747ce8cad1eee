"""A resumed run is refused where its steps would be rounded another way, with the reason that is the true one."""

import os

import jax
import numpy as np
import pytest

from jaxdp.training import UserError
from jaxdp.training.files import _environment as module
from jaxdp.training.files._checksums import checksums
from jaxdp.training.files._environment import differences, environment
from jaxdp.training.files._run_directory import RunDirectory
from jaxdp.training.running._journal import Journal
from jaxdp.training.running._manifest import check_environment


def refusal(was: dict, tmp_path) -> str:
    with pytest.raises(UserError) as caught:
        check_environment(RunDirectory(tmp_path), {"environment": was})
    assert "the same noise" in str(caught.value) and str(caught.value).count(". ") == 0
    return str(caught.value)


@pytest.mark.quick
def test_nothing_differs_from_itself(tmp_path):
    check_environment(RunDirectory(tmp_path), {"environment": environment()})


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--xla_cpu_max_isa=SSE4_2", "XLA_FLAGS had no --xla_cpu_max_isa and has --xla_cpu_max_isa=SSE4_2"),
        ("--xla_cpu_enable_fast_math=true", "has --xla_cpu_enable_fast_math=true"),
        ("--xla_a=1 --xla_a=2", "has --xla_a=2"),
    ],
)
def test_flags_are_named(monkeypatch, tmp_path, flags, words):
    was = environment()
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} {flags}")
    said = refusal(was, tmp_path)
    assert words in said and "set XLA_FLAGS as it was" in said


def test_flags_that_change_no_number_are_not_compared(monkeypatch, tmp_path):
    was = environment()
    flags = "--xla_dump_to=/tmp/x --xla_force_host_platform_device_count=3"
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} {flags}")
    assert differences(was, environment()) == []


def test_flags_in_a_file_are_those_in_it(monkeypatch, tmp_path):
    (tmp_path / "flags").write_text("--xla_a=1")
    monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "flags"))
    assert environment()["flags"] == {"--xla_a": "1"}


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "NPROC", "OPENBLAS_CORETYPE", "LIBTPU_INIT_ARGS"])
def test_variables_that_libraries_read_are_named(monkeypatch, tmp_path, name):
    monkeypatch.delenv(name, raising=False)
    was = environment()
    monkeypatch.setenv(name, "1")
    assert f"the environment variable {name} was not set and is 1" in refusal(was, tmp_path)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_default_matmul_precision", "bfloat16"),
        ("jax_threefry_partitionable", False),
        ("jax_enable_x64", True),
        ("jax_random_seed_offset", 3),
    ],
)
def test_settings_of_jax_are_named(tmp_path, name, value):
    was, before = environment(), getattr(jax.config, name)
    try:
        jax.config.update(name, value)
        assert f"the JAX setting {name} was {before} and is {value}: " in refusal(was, tmp_path)
    finally:
        jax.config.update(name, before)


def test_settings_of_a_with_block_count():
    with jax.default_matmul_precision("bfloat16"):
        assert environment()["settings"]["jax_default_matmul_precision"] == "bfloat16"


def test_another_processor_is_named(monkeypatch, tmp_path):
    here = environment()
    cpu = here["cpu"] | {"model name": "Another", "instructions": [*here["cpu"].get("instructions", []), "avx9"]}
    said = refusal(here | {"cpu": cpu}, tmp_path)
    assert "model name was Another" in said and "this processor lacks avx9" in said and "machine where it began" in said
    usable = module._usable()
    monkeypatch.setattr(module, "_usable", lambda: usable + 1)
    assert f"{usable} processors could be used and now {usable + 1} can" in refusal(here, tmp_path)


def test_versions_come_before_what_follows_from_them(tmp_path):
    was = environment()
    was = was | {"versions": was["versions"] | {"numpy": "1.0"}, "settings": {}}
    said = refusal(was, tmp_path)
    assert "numpy was 1.0 and is" in said and "install the old version" in said and "setting" not in said


@pytest.mark.quick
def test_a_step_made_again_has_to_come_to_the_same_state(tmp_path):
    journal = Journal.begin(tmp_path / "journal.json", {"devices": 1})
    assert not journal.knows(3)
    for step in (3, *range(10, 30)):
        journal.same_state(step, f"state {step}")
    again = Journal.read(tmp_path / "journal.json")
    assert again.knows(3) and again.knows(29) and not again.knows(10)
    again.same_state(29, "state 29")
    with pytest.raises(UserError, match="step 29 gave other numbers than when it was first made"):
        again.same_state(29, "another")
    again.same_data(1, "data")
    with pytest.raises(UserError, match=r"phase\.2 would train on other numbers than before"):
        Journal.read(tmp_path / "journal.json").same_data(1, "others")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64", "bool", "int8"])
def test_a_checksum_sees_every_bit_and_every_place(dtype):
    x = np.array(jax.numpy.zeros((3, 5), dtype))
    plain = checksums([jax.numpy.asarray(x)])[0]
    seen = {plain}
    for byte in range(x.nbytes):
        for bit in range(1 if dtype == "bool" else 8):
            changed = x.copy()
            changed.view(np.uint8).reshape(-1)[byte] ^= 1 << bit
            seen.add(checksums([jax.numpy.asarray(changed)])[0])
    assert len(seen) == 1 + x.nbytes * (1 if dtype == "bool" else 8)


def test_a_checksum_does_not_depend_on_the_mesh():
    mesh = jax.make_mesh((2, 4), ("a", "b"))
    x = jax.random.normal(jax.random.key(0), (16, 4, 8))
    specs = [(), ("a",), ("b", "a"), (None, "b"), (None, None, ("a", "b"))]
    cut = [jax.device_put(x, jax.NamedSharding(mesh, jax.P(*spec))) for spec in specs]
    assert len(set(checksums([x, *cut]))) == 1
    assert len(set(checksums([x, x.reshape(4, 16, 8), jax.numpy.flip(x)]))) == 3
