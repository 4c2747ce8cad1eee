"""Groups of one pattern are clipped by one program, so the pattern must hold all that makes a difference."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp.norms import NormChoice
from jaxdp.per_example import resolve_groups
from jaxdp.per_example.grouping import _patterns
from jaxdp.per_example.grouping._families import Family
from jaxdp.per_example.grouping._patterns import FamilyClipper, pattern
from jaxdp.per_example.planning._plan import make_plan
from jaxdp.per_example.rewriting._sites import Loop
from jaxdp.per_example.rewriting._taps import Report
from jaxdp.per_example.rewriting._traced import trace
from jaxdp.per_example.uses._clipping_weights import clipping_weights
from tests.per_example.model_zoo import BATCH, ZOO, Case, normal

WEIGH = clipping_weights(lambda sq: jnp.minimum(1.0, jax.lax.rsqrt(sq)), False)


def nearly_alike() -> Case:
    """Parameters of one shape, used in ways that differ by one setting each, and some that differ by none."""

    def loss(params: Any, x: jax.Array) -> jax.Array:
        dot = lambda name, **options: jnp.tanh(jnp.dot(x, params[name], **options))
        conv = lambda name, **options: jax.lax.conv_general_dilated(x[None, None], params[name], **options)
        total = jnp.sum(dot("a")) + jnp.sum(dot("b")) + jnp.sum(dot("c", precision="default"))
        total += jnp.sum(jnp.tanh(jnp.dot(params["d"], x)))
        for name, mode in (("e", "clip"), ("f", "clip"), ("g", "fill")):
            total += jnp.sum(jnp.sin(jnp.take(params[name], jnp.asarray([1, 3]), axis=0, mode=mode)))
        total += jnp.sum(jnp.cos(2.0 * params["h"])) + jnp.sum(jnp.cos(3.0 * params["i"]))
        total += jnp.sum(jnp.cos(params["j"] - x)) + jnp.sum(jnp.cos(x - params["k"]))
        for name, dilation in (("l", 1), ("m", 1), ("n", 2)):
            options = {"window_strides": (1, 1), "padding": "SAME", "rhs_dilation": (dilation, dilation)}
            total += jnp.sum(jnp.square(conv(name, **options)))
        return total

    params = {name: normal(i, *((1, 1, 3, 3) if name in "lmn" else (4, 4))) for i, name in enumerate("abcdefghijklmn")}
    return Case(loss, params, normal(20, BATCH, 4, 4))


CASES = {
    name: ZOO[name]
    for name in ("transformer", "stacked_but_unrolled", "experts", "convolutions", "odd_primitives", "lora")
} | {"nearly_alike": nearly_alike}


def families_of(case: Case, groups: str, method: str) -> Iterator[Family]:
    traced = trace(lambda p, x: (case.loss(p, x), ()), case.params, case.batch)
    found = make_plan(traced, resolve_groups(groups, case.params, traced.stacks), method, BATCH)
    return (family for family, _ in found.families if family.members)


def program_text(family: Family, params: Any) -> str:
    """What would be compiled for this family if it were the first of its pattern."""
    batched = lambda tree: jax.tree.map(lambda x: jnp.zeros((BATCH, *x.shape), x.dtype), tree)
    # A leaf's whole gradient has no use whose cotangents would tell its shape.
    own = lambda member: Report({}, [jax.tree.leaves(params)[member.leaf]])
    reports = [
        batched(part.zeros() if part.site.cts else own(member)) for member in family.members for part in member.parts
    ]
    # Integer factors are kept by the forward pass, not reported.
    for part, report in zip((p for m in family.members for p in m.parts), reports, strict=True):
        if part.in_factors:
            report.kept.update(batched({i: s for i, s in part.site.operands.items() if i not in report.kept}))
    others = jnp.zeros((BATCH, 4, family.num_groups))
    program = FamilyClipper(WEIGH, None)._program(family)
    text = str(jax.make_jaxpr(program)([], None, others, reports, [None] * len(family.members)))
    return re.sub(r"0x[0-9a-f]+", "", text)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("groups", "method"), [("layer", "bookkeeping"), ("param", "bookkeeping")])
def test_groups_of_one_pattern_are_clipped_by_equal_programs(case: str, groups: str, method: str) -> None:
    by_pattern: dict[Any, list[Family]] = {}
    built = CASES[case]()
    for family in families_of(built, groups, method):
        # A program may be used for gradients of several shapes, each of which it is traced for.
        whole = tuple(jax.tree.leaves(built.params)[m.leaf].shape for m in family.members if not m.parts[0].site.cts)
        by_pattern.setdefault((pattern(family), whole), []).append(family)
    if case == "transformer" or (case, groups) == ("nearly_alike", "param"):
        assert any(len(families) > 1 for families in by_pattern.values())
    for families in by_pattern.values():
        assert len({program_text(family, built.params) for family in families}) == 1


def test_what_differs_by_one_setting_is_of_another_pattern() -> None:
    families = {family.members[0].leaf: family for family in families_of(nearly_alike(), "param", "bookkeeping")}
    found = {name: pattern(families[i]) for i, name in enumerate("abcdefghijklmn")}
    for alike in ("ab", "ef", "lm"):
        assert found[alike[0]] == found[alike[1]]
    for first, second in ("ac", "ad", "eg", "jk", "ln", "cd", "ae"):
        assert found[first] != found[second], (first, second)


def test_all_that_decides_how_a_group_is_clipped_is_in_its_pattern() -> None:
    family = next(families_of(nearly_alike(), "param", "bookkeeping"))
    (member,) = family.members
    (part,) = member.parts

    def with_part(**changes: Any) -> Any:
        site = dataclasses.replace(part.site, **{k: v for k, v in changes.items() if hasattr(part.site, k)})
        own = {k: v for k, v in changes.items() if k in ("product", "loops")}
        parts = (dataclasses.replace(part, site=site, **own),)
        return dataclasses.replace(family, members=(dataclasses.replace(member, parts=parts),))

    loop = Loop((3,), 2, True)
    others = [
        with_part(product=not part.product),
        *(with_part(loops=(x,)) for x in (loop, Loop((3,), 5, True), Loop((3,), 2, False))),
        with_part(isometric=not part.site.isometric),
        with_part(steady=not part.site.steady),
        with_part(region=((0, 2), (0, 4))),
        with_part(axes=(7, 8)),
        with_part(stack=(77,)),
        with_part(cts=(jax.ShapeDtypeStruct((4, 4), jnp.bfloat16),)),
        with_part(use=dataclasses.replace(part.site.use, choice=NormChoice("gram"))),
        with_part(use=dataclasses.replace(part.site.use, index=0)),
        dataclasses.replace(family, num_groups=2),
        dataclasses.replace(family, members=(dataclasses.replace(member, groups=(1,)),)),
        dataclasses.replace(family, members=(member, member)),
    ]
    patterns = [pattern(other) for other in [family, *others]]
    assert not [(i, j) for j, x in enumerate(patterns) for i, y in enumerate(patterns[:j]) if x == y]
    # Names make none: neither the leaf's, nor the use's, nor those of the loops around it.
    renamed = dataclasses.replace(part, key=((9,), part.key[1]), loops=(Loop((7,), 2, True),))
    renamed = dataclasses.replace(member, leaf=99, parts=(renamed,))
    assert pattern(dataclasses.replace(family, members=(renamed,))) == pattern(with_part(loops=(loop,)))


def test_layers_of_one_pattern_are_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, calls = 6, []
    params = [{"kernel": normal(i, 5, 5), "bias": jnp.zeros(5)} for i in range(layers)]

    def loss(params: Any, x: jax.Array) -> jax.Array:
        for layer in params:
            x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
        return jnp.sum(x)

    counted = lambda *args: (calls.append(1), _finish(*args))[1]
    _finish = _patterns.clip_family
    monkeypatch.setattr(_patterns, "clip_family", counted)
    batch, weight_fn = normal(9, BATCH, 5), lambda sq: jnp.minimum(1.0, 0.1 * jax.lax.rsqrt(sq))

    def clipped(method: Any) -> Any:
        grads = jaxdp.per_example_grad(loss, method=method)(params, batch)
        return grads.clipped_sum_and_norms(weight_fn, "layer")

    found = jax.jit(lambda: clipped("bookkeeping"))()
    assert len(calls) == 1
    for ours, reference in zip(jax.tree.leaves(found), jax.tree.leaves(clipped("materialize")), strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-5, atol=1e-6)
