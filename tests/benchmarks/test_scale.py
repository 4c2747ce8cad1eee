"""The study of many devices: what is read from HLO, the search for what fits, the plan, and the command."""

import json
from pathlib import Path

import jax
import pytest
from jax.sharding import Mesh, PartitionSpec

from benchmarks import scale
from benchmarks.scaling import fits, plan, weak
from benchmarks.scaling.collectives import collectives, summary
from benchmarks.scaling.hlo import Program

HLO = """HloModule step, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (state: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %state = (s32[], f32[8,16]{1,0}) parameter(0)
  %part = f32[2,16]{1,0} get-tuple-element(%state), index=1
  %whole = f32[8,16]{1,0} all-gather(%part), replica_groups=[1,4]<=[4], dimensions={0}, metadata={op_name="gather"}
  %product = f32[8,8]{1,0} dot(%whole, %whole), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  ROOT %next = (s32[], f32[8,16]{1,0}) tuple(%state)
}

%condition (state: (s32[], f32[8,16])) -> pred[] {
  %state.1 = (s32[], f32[8,16]{1,0}) parameter(0)
  ROOT %less = pred[] compare(%state.1, %state.1), direction=LT
}

ENTRY %main (x: f32[8,16]) -> bf16[4] {
  %x = f32[8,16]{1,0} parameter(0)
  %sums = (f32[10]{0}, pred[3]{0}) all-reduce(%x, %x), replica_groups={{0,1},{2,3}}, to_apply=%add
  %piece = f32[2]{0} reduce-scatter(%x), replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
  %start = (bf16[4]{0}, bf16[4]{0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1}}
  %known = (s32[], f32[8,16]{1,0}) while(%x), condition=%condition, body=%body, KNOWN
  %unknown = (s32[], f32[8,16]{1,0}) while(%x), condition=%condition, body=%body
  ROOT %done = bf16[4]{0} collective-permute-done(%start)
}
""".replace("KNOWN", 'backend_config={"known_trip_count":{"n":"3"}}')


def test_bytes_of_every_kind_are_counted_as_often_as_they_are_sent():
    program = Program(HLO)
    table = {
        kind: (row["operations"], row["runs"], row["sent"]) for kind, row in summary(collectives(program, 4)).items()
    }
    gathered = 8 * 16 * 4 * 3 / 4
    assert table == {
        "all-reduce": (1, 1, 43.0),  # 2 (n - 1) / n of 40 + 3 bytes in pairs
        "reduce-scatter": (1, 1, 3 / 4 * 32),
        "collective-permute": (1, 1, 8.0),
        "all-gather": (2, 4, 4 * gathered),  # three times, and once in the loop of unknown length
    }
    assert [one.unknown for one in collectives(program, 4) if one.kind == "all-gather"] == [False, True]
    assert program.product_flops() == 4 * 2 * 8 * 8 * 16
    with pytest.raises(ValueError, match="entry computation"):
        Program("nothing")


def test_a_compiled_loop_over_eight_devices_is_read_right():
    mesh = Mesh(jax.devices(), ("x",))

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec("x")), out_specs=PartitionSpec())
    def run(x, w):
        return jax.lax.scan(lambda x, _: (jax.lax.psum(x @ w, "x"), None), x, length=5)[0]

    compiled = run.lower(jax.ShapeDtypeStruct((4, 6), "float32"), jax.ShapeDtypeStruct((48, 6), "float32")).compile()
    program = Program(compiled.as_text())
    (one,) = (x for x in collectives(program, 8) if x.kind == "all-reduce")
    assert (one.sent, one.payload, one.runs, one.unknown) == (2 * 7 / 8 * 96, 96, 5, False)
    assert program.product_flops() == 5 * 2 * 4 * 6 * 6


@pytest.mark.parametrize(
    ("needs", "start", "grain", "low", "high"),
    [
        (lambda n: 100 + 7 * n, 2, 1, 120, 128),  # straight: found in a few tries
        (lambda n: 100 + n * n // 16, 2, 1, 113, 120),
        (lambda n: 100 + 7 * n, 1024, 1, 120, 128),  # too large to begin with
        (lambda n: 100 + 7 * n, 32, 32, 96, 128),
        (lambda n: 2000, 4, 1, 0, 0),
        (lambda n: 10, 4, 1, 512, 512),  # as far as the limit
    ],
)
def test_the_largest_size_that_fits_is_found(needs, start, grain, low, high):
    tried = []
    found = fits.largest(lambda n: tried.append(n) or needs(n), 1000, start, 512, grain, 16)
    assert low <= found <= high and len(tried) <= 12
    assert not found or needs(found) <= 1000
    assert len(tried) == len(set(tried))


def test_the_plan_adds_up():
    cluster = plan.Cluster(devices=4, batch_per_device=2, seq=32)
    found = plan.paper_plan("tiny", cluster)
    rows = {row["key"]: row for row in found["rows"]}
    plain, ghost, fused, kept = (rows[key] for key in ("plain", "ghost", "fused", "bookkeeping"))
    entries = found["parameters"]
    assert entries == 2 * 64 * 16 + 2 * (4 * 16 * 16 + 3 * 16 * 32 + 2 * 16) + 16
    assert plain["memory"]["parameters"] + plain["memory"]["Adam's moments"] == 12 * entries / 4
    # One pass gathers the weights as often as an ordinary step does; a second pass, once more in 16 bits.
    assert fused["work"]["sent"] == plain["work"]["sent"] == 0.75 * 8 * entries
    assert ghost["work"]["sent"] - plain["work"]["sent"] == 0.75 * 2 * entries
    # Clipped sums take the place of products with the weights' gradients.
    assert plain["work"]["model"] == fused["work"]["model"] + ghost["work"]["sums"]
    assert ghost["work"]["model"] > plain["work"]["model"] > fused["work"]["model"]
    assert ghost["memory"]["factors kept"] < kept["memory"]["factors kept"]
    assert plain["ratio"] == [1.0, 1.0] and min(row["ratio"][0] for row in rows.values()) == 1.0
    assert rows["vmap-1"]["work"]["sent"] == 2 * plain["work"]["sent"]
    faster = plan.paper_plan("tiny", plan.Cluster(devices=4, batch_per_device=2, seq=32, sum_tflops=989.0))
    assert {row["key"]: row for row in faster["rows"]}["ghost"]["ratio"][1] < ghost["ratio"][1]


@pytest.mark.usefixtures("as_users_run_it")
def test_the_command_writes_what_it_prints_and_keeps_what_it_has(tmp_path: Path, capsys, monkeypatch):
    document = tmp_path / "document.md"
    document.write_text(
        "".join(f"<!-- results {name} -->\nold\n<!-- end {name} -->\n" for name in ("weak", "fits", "plan"))
    )
    common = ["--scale", "tiny", "--output", str(tmp_path), "--docs", str(document)]
    monkeypatch.setattr(weak, "LAYOUTS", ("data",))
    assert scale.main([*common, "--parts", "weak", "plan", "--devices", "2", "--weak-steps", "plain"]) == 0
    sizes = {"plain": lambda n: 2**19 + 2**16 * n, "fused": lambda n: 2**19 + 2**17 * n}
    found = lambda key, workload: {"total": sizes[key](workload.batch_size if workload.name == "w3" else 1)}
    monkeypatch.setattr(fits, "_memory", found)
    assert scale.main([*common, "--parts", "fits", "--fit-steps", "plain", "fused"]) == 0
    results = json.loads((tmp_path / "scale.json").read_text())
    (row,) = results["weak"]
    assert row["devices"] == 2 and row["layout"] == "data" and row["memory"]["total"] > 0
    # All gradients of a decoder of 2 layers, in a ring of two: each of 8 bytes' worth of an entry is sent once.
    assert row["collectives"]["all-reduce"]["sent"] == row["sent"] > 4 * 7_000
    assert {(r["axis"], r["key"]): r["largest"] for r in results["fits"]} == {
        ("batch", "plain"): 8,
        ("batch", "fused"): 4,
        ("seq", "plain"): 64,
        ("seq", "fused"): 64,
    }
    text = document.read_text()
    assert "old" not in text and "| fused/layer | 4 | 0.50 |" in text and "vmap(grad), microbatch 1" in text
    assert "numbers mean nothing" in text and "largest batch" in capsys.readouterr().out
    assert (tmp_path / "scale.png").stat().st_size > 1000


def test_a_step_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="weak_steps has 'gost': use plain"):
        scale.Settings(weak_steps=("gost",))
