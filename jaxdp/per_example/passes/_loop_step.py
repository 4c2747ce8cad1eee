"""Loop bodies that clip, in their own backward pass, the groups that are complete within one step."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdp.norms import TERMS
from jaxdp.numerics._wide import as_like, is_float
from jaxdp.per_example.grouping._families import Family, clip_family
from jaxdp.per_example.rewriting._operand_views import OperandViews
from jaxdp.per_example.rewriting._rewrite import Rewriter
from jaxdp.per_example.rewriting._taps import Report, UseKey
from jaxdp.per_example.tracing._values import Plain, Shadow, Value, Weight
from jaxdp.per_example.uses._batching import force_batched
from jaxdp.per_example.uses._clipping_weights import ClippingWeights


def clipping_step(families: Sequence[Family], weigh: ClippingWeights) -> Callable:
    """What wraps a loop body's step so that it clips these families; see `Rewriter.step_clippers`."""
    parts = [part for family in families for member in family.members for part in member.parts]
    keys = frozenset(part.key for part in parts)
    leaves = sorted({member.leaf for family in families for member in family.members})

    def wrap(
        step: Callable,
        rewriter: Rewriter,
        constants: Sequence[Value],
        cut: Sequence[Value],
        state_moves: Sequence[bool],
    ) -> Callable:
        views = OperandViews(
            modes={}, stacks=rewriter.stacks, sites=dict(rewriter.sites), wanted=keys, tables=rewriter.tables
        )
        where = {leaf: i for i, x in enumerate(cut) if isinstance(x, Weight) for leaf in x.shadows if leaf in leaves}

        def shadow_of(args: Any, leaf: int) -> Shadow:
            return args[3][where[leaf]][1][leaf]

        def with_totals(args: Any, totals: dict[int, Array]) -> Any:
            slices = list(args[3])
            for leaf, total in totals.items():
                value, shadows = slices[where[leaf]]
                slices[where[leaf]] = value, shadows | {leaf: shadows[leaf]._replace(total=total)}
            return (*args[:3], slices)

        def closed(*args: Any) -> Any:
            merge, moving, still = _split(args, constants, cut, state_moves)

            def run(local: dict[UseKey, Report], moving: list[Array], still: list[Any]) -> tuple[Any, Any]:
                reports, *rest = merge(moving, still)
                state, ys, emitted = step(rewriter, reports | local, *rest)
                integers = {key: emitted[key].kept for key in keys}
                return (state, ys, {key: x for key, x in emitted.items() if key not in keys}), integers

            @jax.custom_vjp
            def scope(moving: list[Array], still: list[Any], consts: list[Array]) -> Any:
                del consts
                return forward(moving, still)[0]

            def forward(moving: list[Array], still: list[Any]) -> Any:
                zero = shadow_of(merge(moving, still), leaves[0]).certificate.reshape(-1)[0]
                local = {part.key: jax.tree.map(lambda x: force_batched(x, zero), part.zeros()) for part in parts}
                return jax.vjp(lambda local, moving: run(local, moving, still), local, moving, has_aux=True)

            def fwd(moving: list[Array], still: list[Any], consts: list[Array]) -> tuple[Any, Any]:
                outs, pull, integers = forward(moving, still)
                args = merge(moving, still)
                totals = {leaf: shadow_of(args, leaf).total for leaf in leaves}

                def view(totals: dict[int, Array]) -> dict[UseKey, Array]:
                    _, *rest = with_totals(args, totals)
                    return step(views, {}, *rest)[2]

                found, pull_views = jax.vjp(view, totals)
                kinds = {key: jnp.zeros((), x.dtype) for key, x in found.items()}
                shared_entries = {leaf: total.reshape(-1)[:1] for leaf, total in totals.items()}
                thresholds = {leaf: shadow_of(args, leaf).threshold for leaf in leaves}
                every = {leaf: shadow_of(args, leaf).key for leaf in leaves}
                keys = {leaf: key for leaf, key in every.items() if key is not None}
                return outs, (pull, pull_views, kinds, integers, shared_entries, thresholds, keys, consts)

            def bwd(residuals: Any, cts: Any) -> tuple[list[Array], None, None]:
                pull, pull_views, kinds, integers, shared_entries, thresholds, keys, consts = residuals
                local, moving_cts = pull(cts)
                reports = {key: Report(report.kept | integers[key], report.cts) for key, report in local.items()}
                norms, totals = {}, {}
                inner, nothing = weigh.with_consts(consts), jnp.zeros((TERMS, 1), jnp.float32)
                for family in families:
                    first = family.members[0].leaf
                    threshold = None if thresholds[first] is None else thresholds[first][None]
                    mine = {part.key: reports[part.key] for m in family.members for part in m.parts}
                    norm, found = clip_family(family, inner, threshold, nothing, mine, shared_entries, keys)
                    norms[first] = norm[:, 0]
                    totals.update(found)
                (leaf_totals,) = pull_views({key: as_like(total, kinds[key]) for key, total in totals.items()})
                for leaf, at in positions(leaves).items():
                    moving_cts[at.total] = leaf_totals[leaf].astype(moving_cts[at.total].dtype)
                    if leaf in norms:
                        moving_cts[at.certificate] = moving_cts[at.certificate] + norms[leaf]
                return moving_cts, None, None

            def positions(leaves: Sequence[int]) -> dict[int, Shadow]:
                numbered = merge([*range(len(moving))], [None] * len(still))
                return {leaf: shadow_of(numbered, leaf) for leaf in leaves}

            scope.defvjp(fwd, bwd)
            return scope(moving, still, list(weigh.consts))

        return closed

    return wrap


def _split(
    args: Any, constants: Sequence[Value], cut: Sequence[Value], state_moves: Sequence[bool]
) -> tuple[Callable, list[Any], list[Any]]:
    """The step's arguments as two lists, those with and those without a gradient, and what merges them again."""
    reports, held, state, slices = args

    def moves(entry: Value, arrays: Any) -> Any:
        if isinstance(entry, Plain):
            return is_float(arrays) and entry.active
        return False, {
            leaf: jax.tree.map(lambda _: True, s._replace(threshold=None, key=None, basis=None))
            for leaf, s in arrays[1].items()
        }

    def no_constants(entry: Value, flags: Any, arrays: Any) -> Any:
        if isinstance(entry, Plain):
            return flags
        value, shadows = flags
        still = lambda x: None if x is None else False
        return value, {
            leaf: s._replace(**{name: still(getattr(arrays[1][leaf], name)) for name in ("threshold", "key", "basis")})
            for leaf, s in shadows.items()
        }

    flags = (
        jax.tree.map(lambda _: True, reports),
        [no_constants(x, moves(x, a), a) for x, a in zip(constants, held, strict=True)],
        [is_float(x) and flag for x, flag in zip(state, state_moves, strict=True)],
        [no_constants(x, moves(x, a), a) for x, a in zip(cut, slices, strict=True)],
    )
    leaves, treedef = jax.tree.flatten(args)
    moving = [x for x, flag in zip(leaves, jax.tree.leaves(flags), strict=True) if flag]
    still = [x for x, flag in zip(leaves, jax.tree.leaves(flags), strict=True) if not flag]

    def merge(moving: Sequence[Any], still: Sequence[Any]) -> Any:
        first, second = iter(moving), iter(still)
        return treedef.unflatten([next(first) if flag else next(second) for flag in jax.tree.leaves(flags)])

    return merge, moving, still
