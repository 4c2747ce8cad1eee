"""The command, on a workload that compiles in no time."""

import dataclasses
import json
import signal
import socket
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxdp
from benchmarks import comparators, machine, measurement, step_cost, study, tables, variants, workloads
from benchmarks.variants import Absent, Privacy

pytestmark = [
    pytest.mark.usefixtures("as_users_run_it"),
    pytest.mark.filterwarnings("ignore:optax.global_norm is deprecated:DeprecationWarning"),
]

DOCUMENT = "before\n<!-- results toy -->\nnothing yet\n<!-- end toy -->\nafter\n"
METHODS = ("ghost/all", "ghost/param", "materialize/all", "telepathy/all", "ghost/colour", "ghost/all/3")


@pytest.fixture(scope="module")
def compile_once():
    """`compile_step` that compiles each variant of the toy at its first use only."""
    compiled, compile_step = {}, measurement.compile_step

    def once(variant, workload):
        if variant.key not in compiled:
            compiled[variant.key] = compile_step(variant, workload)
        return compiled[variant.key]

    return once


@pytest.fixture
def run(toy, compile_once, tmp_path, monkeypatch):
    """The command with the toy in place of every workload: (exit status, results)."""
    monkeypatch.setattr(workloads, "build", lambda *args, **kwargs: toy)
    monkeypatch.setattr(study, "compile_step", compile_once)

    def call(*more: str) -> tuple[int, dict]:
        given = ("--workloads", "w2", "--methods", *METHODS, "--repeats", "2", "--screening", "1")
        status = step_cost.main([*given, "--output", str(tmp_path), *more])
        return status, json.loads((tmp_path / "step_cost.json").read_text())

    return call


def test_the_shortest_of_several_compilations_counts(run, compile_once, monkeypatch):
    taken = {}

    def timed(variant, workload):
        taken.setdefault(variant.key, []).append([5.0, 3.0, 4.0][len(taken.get(variant.key, []))])
        return dataclasses.replace(compile_once(variant, workload), compile_seconds=taken[variant.key][-1])

    monkeypatch.setattr(study, "compile_step", timed)
    _, results = run("--compiles", "3")
    rows = {row["key"]: row for row in results["workloads"][0]["rows"] if "compile_seconds" in row}
    assert rows["plain"]["compile_seconds"] == rows["ghost/all"]["compile_seconds"] == 3.0
    assert {key: len(times) for key, times in taken.items() if key in ("plain", "ghost/all")} == {
        "plain": 3,
        "ghost/all": 3,
    }


def gradient(variant, workload):
    params = workload.make_params()
    return jax.jit(variant.gradient)(params, variant.init(params), workload.make_batch())[0]


def test_every_variant_computes_the_same_clipped_mean(toy):
    quiet = Privacy(max_norm=1.0, noise_multiplier=0.0)
    rows = variants.ours(
        toy, quiet, variants.parse_choices(["ghost/all", "ghost/all/2", "materialize/all", "auto/all"])
    )
    rows.append(comparators.optax_aggregate(toy, quiet))
    rows += [row for size in (None, 2) if not isinstance(row := comparators.jax_privacy(toy, quiet, size), Absent)]
    per_example = jax.vmap(jax.grad(toy.loss), in_axes=(None, 0))(toy.make_params(), toy.make_batch())
    norms = jnp.sqrt(sum(jnp.sum(jnp.square(g.reshape(4, -1)), axis=1) for g in jax.tree.leaves(per_example)))
    assert jnp.min(norms) < 1.0 < jnp.max(norms)
    weights = jnp.minimum(1.0, 1.0 / norms) / 4
    expected = jax.tree.map(lambda g: jnp.tensordot(weights, g, 1), per_example)
    for row in rows:
        for a, b in zip(jax.tree.leaves(gradient(row, toy)), jax.tree.leaves(expected), strict=True):
            assert jnp.allclose(a, b, rtol=1e-5, atol=1e-6), row.label


def test_baselines_are_the_mean_gradient_with_and_without_noise(toy):
    plain, plain_noise, tapped, tapped_noise = variants.baselines(toy, Privacy(1.0, 4.0))
    mean = gradient(plain, toy)
    assert all(
        jnp.allclose(a, b, rtol=1e-5) for a, b in zip(*map(jax.tree.leaves, (mean, gradient(tapped, toy))), strict=True)
    )
    for row in (plain_noise, tapped_noise):
        noise = jax.tree.map(jnp.subtract, gradient(row, toy), mean)
        flat = jnp.concatenate([x.ravel() for x in jax.tree.leaves(noise)])
        assert 0.3 < jnp.std(flat) < 3.0  # 8 draws of std 4 / 4


def test_the_command(run, tmp_path, capsys):
    document = tmp_path / "results.md"
    document.write_text(DOCUMENT)
    status, results = run("--comparators", "optax", "--docs", str(document))
    assert status == 0 and results["complete"]
    (workload,) = results["workloads"]
    rows = {row["key"]: row for row in workload["rows"]}
    assert set(rows) == {"plain", "plain+noise", "tapped", "tapped+noise", "optax", *METHODS}
    assert workload["parameters"] == 8
    for key in METHODS[3:]:
        assert rows.pop(key)["status"] == "skipped"
    for row in rows.values():
        assert row["status"] == "measured" and len(row["seconds"]["samples"]) == 2
        assert row["bytes"]["argument"] > 0 and row["flops"] > 0 and row["compile_seconds"] > 0
        assert row["ratios"]["time"] == row["seconds"]["median"] / rows[workload["baseline"]]["seconds"]["median"]
    assert rows[workload["baseline"]]["seconds"]["median"] == min(
        rows[key]["seconds"]["median"] for key in ("plain", "tapped")
    )
    assert (tmp_path / "step_cost.png").stat().st_size > 10_000
    said = capsys.readouterr().out
    assert "jaxdp ghost/param" in said and "method is 'telepathy'" in said
    text = document.read_text()
    assert text.startswith("before\n<!-- results toy -->\ntoy: two regressions") and "nothing yet" not in text
    assert text.endswith("<!-- end toy -->\nafter\n") and "| jaxdp ghost/all |" in text

    again = tmp_path / "again.md"
    again.write_text(DOCUMENT)
    step_cost.main(["--from-json", str(tmp_path / "step_cost.json"), "--output", str(tmp_path), "--docs", str(again)])
    assert again.read_text() == text


@pytest.mark.parametrize("after", [0, 20])
def test_an_interruption_keeps_what_was_measured(run, monkeypatch, after):
    sample, calls = measurement.Bench.sample, []

    def interrupted(bench, program, steps=1):
        calls.append(program)
        if len(calls) > after:
            signal.raise_signal(signal.SIGTERM)
        return sample(bench, program, steps)

    monkeypatch.setattr(measurement.Bench, "sample", interrupted)
    status, results = run("--comparators", "optax")
    assert status == 130 and not results["complete"]
    rows = [row for row in results["workloads"][0]["rows"] if row["status"] != "skipped"]
    assert all(row["bytes"]["temp"] >= 0 and "temp" in row["ratios"] for row in rows)
    # 8 variants: one round of warm-up, one timed round, and half of the second.
    assert sum(len(row.get("seconds", {"samples": []})["samples"]) for row in rows) == max(0, after - 8)


def test_an_interruption_while_compiling_keeps_what_was_compiled(run, compile_once, monkeypatch):
    def interrupted(variant, workload):
        if variant.key == "ghost/all":
            raise KeyboardInterrupt
        return compile_once(variant, workload)

    monkeypatch.setattr(study, "compile_step", interrupted)
    status, results = run("--comparators", "optax")
    rows = {row["key"]: row for row in results["workloads"][0]["rows"]}
    assert status == 130
    assert rows["plain"]["status"] == "compiled" and rows["ghost/all"]["status"] == "interrupted"
    assert "optax" not in rows


def test_a_variant_that_fails_does_not_take_the_others_with_it(run, compile_once, monkeypatch):
    sample = measurement.Bench.sample

    def compile_or_fail(variant, workload):
        if variant.key == "materialize/all":
            raise TypeError("no such thing")
        return compile_once(variant, workload)

    def sample_or_fail(bench, program, steps=1):
        if program.variant.key == "ghost/all":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nmore")
        return sample(bench, program, steps)

    monkeypatch.setattr(study, "compile_step", compile_or_fail)
    monkeypatch.setattr(measurement.Bench, "sample", sample_or_fail)
    status, results = run("--comparators", "optax")
    rows = {row["key"]: row for row in results["workloads"][0]["rows"]}
    assert status == 1
    assert rows["materialize/all"]["note"] == "TypeError: no such thing"
    assert rows["ghost/all"]["note"] == "JaxRuntimeError: RESOURCE_EXHAUSTED: out of memory"
    assert rows["ghost/param"]["status"] == rows["optax"]["status"] == "measured"


@pytest.mark.parametrize("free, options", [(1, ()), (None, ("--memory-gib", "1e-9"))])
def test_a_program_that_does_not_fit_is_not_run(run, monkeypatch, free, options):
    monkeypatch.setattr(machine, "free_bytes", lambda: free)
    status, results = run("--comparators", "optax", *options)
    rows = {row["key"]: row for row in results["workloads"][0]["rows"]}
    big = [row for row in rows.values() if row.get("bytes", {"temp": 0})["temp"] > 0]
    assert status == 0 and big
    assert all(row["status"] == "compiled" and "needs" in row["note"] and "seconds" not in row for row in big)


def test_without_jax_privacy_its_rows_are_absent_with_a_note(toy, monkeypatch):
    monkeypatch.setattr(comparators.importlib.util, "find_spec", lambda name: None)
    row = comparators.jax_privacy(toy, Privacy())
    assert isinstance(row, Absent) and "pip install '.[bench]'" in row.note


def test_with_jax_privacy_the_rival_of_each_row_needs_no_more_memory(run):
    pytest.importorskip("jax_privacy")
    status, results = run("--comparators", "jax_privacy")
    rows = {row["key"]: row for row in results["workloads"][0]["rows"]}
    assert status == 0
    assert {f"jax_privacy/{size}" for size in (1, 2, 4)} <= set(rows)
    assert rows["jax_privacy/4"]["status"] == "measured"
    assert sum(bool(row.get("fastest")) for row in rows.values()) == 1
    for row in rows.values():
        if row.get("rival"):
            assert rows[row["rival"]]["bytes"]["temp"] <= row["bytes"]["temp"]
            assert row["ratios"]["speedup_at_equal_memory"] > 0
        # The microbatches of one batch do the work of the whole.
        if row["family"] == "jax_privacy":
            assert row["flops"] == rows["jax_privacy/4"]["flops"]


def row(key, family, median, temp, **more):
    seconds = {"median": median, "samples": [median]}
    return {
        "key": key,
        "family": family,
        "seconds": seconds,
        "bytes": {"temp": temp},
        "flops": 10,
        "compile_seconds": 1.0,
        **more,
    }


def test_ratios_refer_to_the_faster_baseline():
    rows = [
        row("plain", "baseline", 2.0, 100),
        row("tapped", "baseline", 1.0, 200),
        row("plain+noise", "noised", 4.0, 100),
        row("ghost/all", "jaxdp", 3.0, 300, rival="jax_privacy/2"),
        row("jax_privacy/2", "jax_privacy", 6.0, 300),
    ]
    assert study.compare(rows) == {"baseline": "tapped", "baseline_noised": "plain+noise"}
    ratios = rows[3]["ratios"]
    assert (ratios["time"], ratios["time_noised"], ratios["temp"]) == (3.0, 0.75, 1.5)
    assert ratios["speedup_at_equal_memory"] == 2.0
    assert tables.cells({**rows[3], "label": "ghost"}, "tapped")[-1] == "2.00x"
    assert tables.cells({**rows[3], "label": "ghost", "rival": None, "ratios": {}}, "tapped")[-1] == "none fits"


def test_choices_are_read_and_refused():
    assert variants.parse_choices(["fused", "ghost/param", "ghost/param/2"]) == (
        ("fused", "layer", None),
        ("fused", "param", None),
        ("ghost", "param", None),
        ("ghost", "param", 2),
    )
    for wrong in ("telepathy", "ghost/all/few", "ghost/all/0", "ghost/all/2/2"):
        with pytest.raises(ValueError, match=f"methods has '{wrong}'"):
            variants.parse_choices([wrong])
    assert variants.group_style("blocks-4") == jaxdp.per_example.Blocks(4)
    assert variants.group_style("layer") == "layer"
    assert comparators.microbatch_sizes(12) == (1, 2, 4)
    assert comparators.microbatch_sizes(64) == (1, 2, 4, 8, 16, 32)
    with pytest.raises(ValueError, match="repeats is 0"):
        step_cost.Settings(repeats=0)
    with pytest.raises(ValueError, match="compiles is 0"):
        step_cost.Settings(compiles=0)


def test_machine_facts_name_neither_host_nor_path():
    text = json.dumps(machine.facts("float32"))
    assert socket.gethostname() not in text.replace(machine.cpu_model(), "") or len(socket.gethostname()) < 4
    assert str(Path.home()) not in text and str(Path.cwd()) not in text
    assert machine.facts("float32")["cores"] >= 1


def test_the_command_restarts_once_with_an_allocator_that_keeps_memory(monkeypatch) -> None:
    started = []
    monkeypatch.setattr(machine.os, "execve", lambda *given: started.append(given))
    monkeypatch.setattr(machine.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(machine.sys, "orig_argv", ["python", "benchmarks/step_cost.py", "--repeats", "2"])
    for name in ("MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    machine.keep_freed_memory()
    ((program, arguments, environment),) = started
    assert arguments == [program, "benchmarks/step_cost.py", "--repeats", "2"]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    machine.keep_freed_memory()
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    monkeypatch.setattr(machine.platform, "libc_ver", lambda: ("", ""))
    machine.keep_freed_memory()
    assert len(started) == 1
