"""`explain` prints what is run: rules, places of clipping and costs, and what `auto` and the user choose."""

import dataclasses

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp.norms import outer_certificate, prefers_reuse
from jaxdp.norms._exact import exact_rule
from jaxdp.per_example.rewriting import _taps
from tests.per_example.model_zoo import BATCH, ZOO, Case, layer_norm, normal, weights

TOLERANCE = 1e-5


def by_row(plan: jaxdp.Explanation, field: str) -> dict[str, set]:
    found: dict[str, set] = {}
    for row in plan.rows:
        found.setdefault(row.parameter, set()).add(getattr(row, field))
    return found


def places(plan: jaxdp.Explanation) -> set[str]:
    return {row.clipped for row in plan.rows}


def stack_of_layers(wrap=lambda block: block, scanned: bool = True, size: int = BATCH, length: int = 16) -> Case:
    """Kernels of three different shapes, of which one is a stack; each favours another rule."""
    params = {
        "first": weights(1, 6, 40),
        "layers": {"w": weights(2, 3, 40, 40), "b": normal(3, 3, 40), "scale": 1 + normal(4, 3, 40, scale=0.1)},
        "last": weights(5, 40, 3),
    }

    def block(h: jax.Array, p: dict) -> jax.Array:
        return h + jnp.tanh(layer_norm(h, p["scale"], p["b"]) @ p["w"])

    def loss(p: dict, x: jax.Array) -> jax.Array:
        h = x @ p["first"]
        if scanned:
            h, _ = jax.lax.scan(lambda h, w: (wrap(block)(h, w), None), h, p["layers"])
        else:
            for i in range(3):
                h = wrap(block)(h, jax.tree.map(lambda w, i=i: w[i], p["layers"]))
        return jnp.sum(jnp.square(h @ p["last"]))

    return Case(loss, params, normal(6, size, length, 6))


def clip(squared: jax.Array) -> jax.Array:
    return jnp.minimum(1.0, 2.0 / jnp.sqrt(jnp.where(squared > 0, squared, 1.0)))


def clipped(case: Case, groups="all", **options):
    return lambda p, x: jaxdp.per_example_grad(case.loss, **options)(p, x).clipped_sum_and_norms(clip, groups)


def assert_same(found, expected, tolerance: float = TOLERANCE) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(a - b) <= tolerance * max(np.linalg.norm(b), 1e-3)


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, int, int]]:
    """Which norm was found how: (rule, C, P), filled in while a program is traced."""
    seen = set()

    def record(module: str, name: str, rule: str) -> None:
        original = getattr(__import__(module, fromlist=["_"]), name)

        def recorded(a, g, *rest):
            seen.add((rule, a.shape[-1], g.shape[-1]))
            return original(a, g, *rest)

        monkeypatch.setattr(f"{module}.{name}", recorded)

    of_rule = {
        "_gram_squared_norm": "Gram",
        "_vector_certificate": "Gram",
        "_product_sums": "product",
        "_tiled_sums": "tiled product",
    }
    for name, rule in of_rule.items():
        record("jaxdp.norms._exact", name, rule)
    record("jaxdp.per_example.uses._contracted", "clipped_outer_sum", "product, once")
    report = _taps._report

    def reported(use, mode, *rest):
        if mode is _taps.Mode.GRADIENT:
            seen.add(("product, kept", *use.shape))
        return report(use, mode, *rest)

    monkeypatch.setattr(_taps, "_report", reported)
    return seen


def planned(plan: jaxdp.Explanation, case: Case) -> set[tuple[str, int, int]]:
    leaves = jax.tree_util.tree_leaves_with_path(case.params)
    shapes = {"params" + jax.tree_util.keystr(path): leaf.shape[-2:] for path, leaf in leaves}
    return {(row.rule, *shapes[row.parameter]) for row in plan.rows if row.primitive == "dot_general"}


@pytest.mark.parametrize(
    ("method", "groups"),
    [
        ("auto", "all"),
        ("fused", "all"),
        ("fused", "layer"),
        ("fused", "param"),
        ("bookkeeping", "layer"),
        ("ghost", "param"),
    ],
)
def test_the_printed_rules_are_executed(method: str, groups: str, executed: set) -> None:
    case = stack_of_layers(jax.checkpoint)
    for rules in (None, {"params['layers']['w']": "materialize", "*st']": "gram"}, {"*": "gram"}):
        executed.clear()
        plan = jaxdp.explain(case.loss, case.params, case.batch, groups=groups, method=method, rules=rules)
        jax.eval_shape(clipped(case, groups, method=method, rules=rules), case.params, case.batch)
        assert len(executed) == 3
        assert executed == planned(plan, case)


def test_rules_of_the_model_differ_between_its_kernels() -> None:
    """Otherwise the test above would compare one rule with itself."""
    case = stack_of_layers()
    rules = by_row(jaxdp.explain(case.loss, case.params, case.batch, method="ghost"), "rule")
    assert rules["params['layers']['w']"] == {"Gram"}
    assert rules["params['first']"] == rules["params['last']"] == {"product, kept"}


@pytest.mark.quick
def test_costs_of_a_dense_layer_by_hand() -> None:
    """T = 4, C = 64, P = 48 for w; the vector v sees T = 4, C = 48, P = 1."""
    case = ZOO["wide_dense_sequence"]()
    plan = jaxdp.explain(case.loss, case.params, case.batch, method="ghost")
    rows = {row.parameter: row for row in plan.rows}
    w = rows["params['w']"]
    assert w.rule == "Gram"
    assert w.flops == BATCH * (2 * 4 * 4 * (64 + 48) + 2 * 4 * 4 + 2 * 4 * 64 * 48)
    # Factors are read for the norm and for the sum; two Gram matrices are written and read.
    assert w.bytes == BATCH * 4 * (2 * 4 * (64 + 48) + 2 * 2 * 4 * 4)
    assert rows["params['b']"].rule == "elementwise"
    assert plan.training_flops == BATCH * 3 * 2 * 4 * (64 * 48 + 48)
    assert plan.flops == sum(row.flops for row in plan.rows)
    product = jaxdp.explain(case.loss, case.params, case.batch, method="ghost", rules={"params['w']": "materialize"})
    row = next(row for row in product.rows if row.parameter == "params['w']")
    assert row.rule == "product"
    assert row.flops == BATCH * (2 * 4 * 64 * 48 + 2 * 64 * 48 + 2 * 4 * 64 * 48)


def test_costs_count_steps_of_loops_and_examples() -> None:
    one = stack_of_layers(size=1)
    many = stack_of_layers(size=4)
    unrolled = stack_of_layers(scanned=False, size=1)
    costs = [jaxdp.explain(c.loss, c.params, c.batch, method="ghost").flops for c in (one, many, unrolled)]
    assert costs[1] == 4 * costs[0]
    assert costs[2] == costs[0]


@pytest.mark.quick
def test_shapes_are_enough_and_nothing_is_computed() -> None:
    case = ZOO["tied_embedding_and_head"]()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (case.params, case.batch))

    def loss(params, example):
        assert isinstance(params["w"], jax.core.Tracer)
        return case.loss(params, example), example

    plan = jaxdp.explain(loss, *shapes, has_aux=True)
    assert plan == jaxdp.explain(case.loss, case.params, case.batch)
    assert by_row(plan, "rule")["params['embed']"] == {"rows + Gram, joint"}


@pytest.mark.quick
def test_the_table_is_aligned_and_complete() -> None:
    case = ZOO["scanned_checkpointed_transformer"]()
    plan = jaxdp.explain(case.loss, case.params, case.batch, groups="layer")
    lines = str(plan).splitlines()
    rules = [i for i, line in enumerate(lines) if set(line) == {"-"}]
    head, body, total = lines[1], lines[rules[0] + 1 : rules[1]], lines[rules[1] + 1]
    assert len(body) == len(plan.rows)
    assert {len(line) for line in (head, *body, total)} == {len(lines[rules[0]])}
    at = head.index("clipped")
    assert all(line[at:].startswith(row.clipped) for line, row in zip(body, plan.rows, strict=True))
    assert all(row.inside == "scan[3] checkpoint" for row in plan.rows if "layers" in row.parameter)
    assert "3 groups" in str(plan) and total.split()[1] == f"{plan.flops / 1e9:.3g}"


def test_advice_names_the_microbatches_that_take_one_pass() -> None:
    case = stack_of_layers(jax.checkpoint, size=64)
    plan = jaxdp.explain(case.loss, case.params, case.batch)
    assert "second pass" in places(plan)
    size = int(plan.advice.split("microbatches of at most ")[1].split(",")[0])
    of_size = lambda n: places(jaxdp.explain(case.loss, case.params, case.batch[:n]))
    assert size >= 1 and of_size(size) == {"end of pass"} and "second pass" in of_size(size + 1)
    # Outside loops and checkpoints nothing is held that a second pass would not hold, too.
    flat = stack_of_layers(scanned=False)
    assert "holds no more" in jaxdp.explain(flat.loss, flat.params, flat.batch, method="ghost").advice


def test_advice_names_the_leaf_that_is_stored() -> None:
    case = ZOO["weight_normalised"]()
    plan = jaxdp.explain(case.loss, case.params, case.batch)
    assert by_row(plan, "rule")["params['v']"] == {"own gradient (B x leaf)"}
    stored = [row for row in plan.rows if row.parameter == "params['v']"]
    assert sum(row.held_bytes for row in stored) == BATCH * case.params["v"].size * 4
    assert "params['v'] has one gradient for each example" in plan.advice
    everything = jaxdp.explain(case.loss, case.params, case.batch, method="materialize")
    assert everything.held_bytes == BATCH * everything.params_bytes


@pytest.mark.quick
def test_auto_clips_groups_of_layers_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxdp.per_example.planning._plan.FACTOR_ALLOWANCE", 0.0)
    case = stack_of_layers(jax.checkpoint)
    plan = jaxdp.explain(case.loss, case.params, case.batch, groups="layer")
    assert by_row(plan, "clipped")["params['layers']['w']"] == {"in the loop step"}
    assert by_row(plan, "clipped")["params['last']"] == {"in the use"}
    assert plan.second_pass_flops == 0


@pytest.mark.quick
def test_auto_takes_one_pass_where_xla_shares_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flat clipping without loops and checkpoints, whatever factors need; with checkpoints they count."""
    monkeypatch.setattr("jaxdp.per_example.planning._plan.FACTOR_ALLOWANCE", 0.0)
    plain, remat = stack_of_layers(scanned=False), stack_of_layers(jax.checkpoint, scanned=False)
    assert places(jaxdp.explain(plain.loss, plain.params, plain.batch)) == {"end of pass"}
    rows = jaxdp.explain(remat.loss, remat.params, remat.batch).rows
    assert {row.clipped for row in rows if row.inside} == {"second pass"}


def scans(case: Case, **options) -> int:
    return str(jax.make_jaxpr(clipped(case, **options))(case.params, case.batch)).count("= scan[")


@pytest.mark.parametrize("wrap", [jax.checkpoint, lambda block: block])
def test_auto_weighs_factors_of_loops_against_the_parameters(wrap) -> None:
    """One pass up to the batch at which the factors of the scan need as much memory as all parameters."""
    small = stack_of_layers(wrap, size=1, length=2)
    kept = jaxdp.explain(small.loss, small.params, small.batch, method="bookkeeping")
    # Inputs (three kinds of them) and cotangents of the layers' kernel, bias and scale.
    assert sum(row.held_bytes for row in kept.rows if row.inside) == 3 * 4 * (2 * 2 * 40 + 40 + 40)
    assert kept.params_bytes == 4 * (6 * 40 + 3 * (40 * 40 + 80) + 40 * 3)
    limit = kept.params_bytes // (3 * 4 * (2 * 2 * 40 + 80))
    for size, place, method in ((limit, "end of pass", "bookkeeping"), (limit + 1, "second pass", "ghost")):
        case = stack_of_layers(wrap, size=size, length=2)
        plan = jaxdp.explain(case.loss, case.params, case.batch)
        assert places(plan) == {place}
        assert (plan.second_pass_flops > 0) == (place == "second pass")
        assert scans(case) == scans(case, method=method)
    assert scans(case, method="ghost") != scans(case, method="bookkeeping")


def test_the_second_pass_repeats_products_of_loops() -> None:
    """The cotangent of the kernel's input, and inside a checkpoint its output again."""
    kernel = BATCH * 3 * 2 * 16 * 40 * 40
    for wrap, times in ((jax.checkpoint, 2), (lambda block: block, 1)):
        case = stack_of_layers(wrap)
        assert jaxdp.explain(case.loss, case.params, case.batch, method="ghost").second_pass_flops == times * kernel


def test_one_program_may_clip_in_uses_in_steps_and_in_a_second_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxdp.per_example.planning._plan.FACTOR_ALLOWANCE", 0.0)
    case = stack_of_layers(jax.checkpoint)
    groups = lambda path: path if "'w'" in path or "last" in path else "rest"
    plan = jaxdp.explain(case.loss, case.params, case.batch, groups=groups)
    assert places(plan) == {"in the use", "second pass", "end of pass"}
    # What is held instead of its factors needs no second pass.
    assert {row.rule for row in plan.rows if row.clipped == "end of pass"} == {"product, kept"}
    found = jax.jit(clipped(case, groups))(case.params, case.batch)
    assert_same(found, jax.jit(clipped(case, groups, method="materialize"))(case.params, case.batch))
    groups = lambda path: "rest" if "'scale'" in path else path.replace("['b']", "['w']")
    plan = jaxdp.explain(case.loss, case.params, case.batch, groups=groups)
    assert places(plan) == {"in the use", "in the loop step", "second pass"}
    found = jax.jit(clipped(case, groups))(case.params, case.batch)
    assert_same(found, jax.jit(clipped(case, groups, method="materialize"))(case.params, case.batch))


FORCED = [
    ("wide_dense_sequence", "all"),
    ("wide_dense_sequence", "param"),
    ("recurrent", "param"),
    ("tied_embedding_and_head", "all"),
    ("convolutions", "param"),
    ("experts", "param"),
]


@pytest.mark.parametrize(("name", "groups"), FORCED)
def test_either_rule_gives_the_same_sum(name: str, groups: str) -> None:
    case = ZOO[name]()
    run = lambda **options: jax.jit(clipped(case, groups, **options))(case.params, case.batch)
    reference = run(method="materialize")
    # Norms from Gram matrices are certified from above, by what their rounding can have taken.
    for rule, tolerance in (("gram", 5e-5), ("materialize", TOLERANCE)):
        assert_same(run(method="fused", rules={"*": rule}), reference, tolerance)


@pytest.mark.quick
def test_stars_match_anything_and_brackets_themselves() -> None:
    case = stack_of_layers()
    explain = lambda rules: by_row(
        jaxdp.explain(case.loss, case.params, case.batch, method="ghost", rules=rules), "rule"
    )
    assert explain({"params['first']": "gram"})["params['first']"] == {"Gram"}
    assert explain({"*first*": "gram"})["params['last']"] == {"product, kept"}
    both = explain({"*": "gram", "*['last']": "materialize"})
    assert both["params['first']"] == {"Gram"} and both["params['last']"] == {"product, kept"}
    assert both["params['layers']['b']"] == {"elementwise"}
    for pattern in ("first", "params['firs?']", "params[first]", "params.*\\]"):
        with pytest.raises(ValueError, match="matches no parameter"):
            explain({pattern: "gram"})


@pytest.mark.quick
@pytest.mark.parametrize(
    ("rules", "method", "message"),
    [
        ({"params['embed']": "gram"}, "auto", "enters no matrix product.*enters gather"),
        ({"params['nothing']": "gram"}, "auto", r"matches no parameter.*params\['embed'\]"),
        ({"params['head']": "Gram"}, "auto", "use one of 'gram', 'materialize'"),
        ({"params['head']": "gram"}, "materialize", "stores all gradients"),
    ],
)
def test_rules_that_do_not_fit_are_refused(rules: dict, method: str, message: str) -> None:
    case = ZOO["scanned_checkpointed_transformer"]()
    with pytest.raises(ValueError, match=message):
        jaxdp.explain(case.loss, case.params, case.batch, rules=rules, method=method)
    with pytest.raises(ValueError, match=message):
        jaxdp.per_example_grad(case.loss, rules=rules, method=method)(case.params, case.batch).squared_norms()


@pytest.mark.quick
@pytest.mark.parametrize(
    ("sizes", "rule", "reuse"),
    [((1, 1, 512, 512), "Gram", False), ((1, 32, 512, 512), "Gram", False), ((1, 1024, 512, 512), "product", True)],
)
def test_short_sequences_use_gram_matrices_and_long_ones_the_product(sizes, rule: str, reuse: bool) -> None:
    assert exact_rule(*sizes) == rule
    assert prefers_reuse(*sizes) is reuse
    assert exact_rule(*sizes, "gram") == "Gram" and not prefers_reuse(*sizes, "gram")
    assert exact_rule(*sizes, "materialize") == "product" and prefers_reuse(*sizes, "materialize")


@pytest.mark.quick
def test_traffic_counts_beside_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """At T = 100 and C = P = 150 the product takes fewer operations and more traffic."""
    from jaxdp.norms import Machine

    sizes = (1, 100, 150, 150)
    for machine, rule in ((Machine(1e9, 1e15, 1e15), "product"), (Machine(1e15, 1e9, 1e9), "Gram")):
        monkeypatch.setattr("jaxdp.norms._exact.default_machine", lambda machine=machine: machine)
        assert exact_rule(*sizes) == rule


def largest(jaxpr) -> int:
    """Elements of the largest array of a program."""
    inner = [largest(sub) for eqn in jaxpr.eqns for sub in jax.extend.core.jaxprs_in_params(eqn.params)]
    return max([v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars] + inner)


@pytest.mark.parametrize(("room", "most"), [(1 << 24, 6 * 2 * 24 * 24), (2 * 2 * 24 * 24, 2 * 24 * 24), (300, 480)])
def test_gram_matrices_of_a_batch_are_few_at_a_time(room: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a, g = normal(1, 6, 2, 24, 5), normal(2, 6, 2, 24, 3)
    exact = jnp.sum(jnp.square(jnp.einsum("bktc,bktp->bkcp", a, g)), axis=(1, 2, 3))
    monkeypatch.setattr("jaxdp.norms._exact._ALIVE_ELEMENTS", room)
    run = jax.vmap(lambda a, g: outer_certificate(a, g, "gram")[0])
    assert np.allclose(jax.jit(run)(a, g), exact, rtol=1e-5)
    assert largest(jax.make_jaxpr(run)(a, g).jaxpr) <= max(most, a.size)


def test_explanations_are_values() -> None:
    case = ZOO["dense_net"]()
    plan = jaxdp.explain(case.loss, case.params, case.batch)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.method = "ghost"
    assert hash(plan) == hash(jaxdp.explain(case.loss, case.params, case.batch))


@pytest.mark.quick
@pytest.mark.parametrize(("rule", "name"), [("gram", "Gram"), ("materialize", "product")])
def test_rules_reach_norms_of_several_uses(rule: str, name: str, executed: set) -> None:
    case = ZOO["recurrent"]()
    rules = {"params['w*']": rule}
    plan = jaxdp.explain(case.loss, case.params, case.batch, rules=rules)
    jax.eval_shape(clipped(case, rules=rules), case.params, case.batch)
    assert executed == {(name, 8, 8)}
    assert by_row(plan, "rule")["params['wx']"] == by_row(plan, "rule")["params['wh']"] == {f"{name}, joint"}


@pytest.mark.quick
def test_the_cost_of_a_rank_is_that_of_projecting_the_matrices_of_the_loss() -> None:
    case = stack_of_layers()
    asked = {"noise_multiplier": 0.8, "expected_batch_size": 200.0}
    plan = jaxdp.explain(case.loss, case.params, case.batch, ranks=(2, 10), **asked)
    assert [(cost.rank, cost.mean_gradient) for cost in plan.ranks] == [(r, m) for r in (2, 10) for m in (1, 0.3, 0.1)]
    matrices = jaxdp.per_example_grad(case.loss)(case.params, case.batch).matrices()
    for cost in plan.ranks:
        expected = jaxdp.transforms.predicted_cosine(
            case.params, rank=cost.rank, mean_gradient=cost.mean_gradient, matrices=matrices, **asked
        )
        assert cost.prediction == expected and 0 < expected.loss < 1
        assert f"{expected.projected:.4f}, {expected.full:.4f} in the full space" in str(plan)
    # The last kernel is no wider than the rank, and is left as it is.
    sizes = {"layers": 3 * 40 * 40, "first": 6 * 40, "last": 40 * 3}
    total = sum(x.size for x in jax.tree.leaves(case.params))
    assert plan.ranks[0].prediction.width == pytest.approx(
        (sizes["layers"] * 41 + sizes["first"] * 7 + sizes["last"] * 4) / 2 / total
    )
    assert plan.ranks[3].prediction.width == pytest.approx(sizes["layers"] * 41 / 10 / total)
    usual = jaxdp.explain(case.loss, case.params, case.batch)
    assert usual.ranks == () and "Rank" not in str(usual)
    with pytest.raises(ValueError, match="noise_multiplier is missing"):
        jaxdp.explain(case.loss, case.params, case.batch, ranks=(2,))
    with pytest.raises(ValueError, match="ranks has 0"):
        jaxdp.explain(case.loss, case.params, case.batch, ranks=(0,), noise_multiplier=1.0)
