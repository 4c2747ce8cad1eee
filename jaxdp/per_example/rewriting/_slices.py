"""What the bodies of loops and checkpoints see of values and parameters around them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxdp.numerics._wide import is_float
from jaxdp.per_example.rewriting._taps import Report, UseKey
from jaxdp.per_example.tracing._values import Path, Plain, Shadow, Value, Weight


def inside(reports: dict[UseKey, Report], path: Path) -> dict[UseKey, Report]:
    """The reports of taps at or below a position."""
    return {key: report for key, report in reports.items() if key[0][: len(path)] == path}


def cut_by(entry: Value, body: Path) -> Value:
    """What a loop's body sees of one of its `xs`; the arrays are filled in by `with_arrays`."""
    if isinstance(entry, Plain):
        return entry
    depth = len(entry.stack)
    whole = entry.aligned and entry.region[0] == (0, entry.leaf_shape[depth]) and len(entry.cuts) == depth
    leads = entry.axes is not None and entry.axes[0] == 0
    return dataclasses.replace(
        entry,
        region=entry.region[1:] if whole else entry.region,
        aligned=whole,
        axes=tuple(a - 1 for a in entry.axes[1:]) if entry.axes is not None and leads else None,
        stack=(*entry.stack, entry.leaf_shape[depth]) if whole else entry.stack,
        cuts=(*entry.cuts, body),
        spans=None,
        parts=None,
    )


def rows(before: Value, after: Value, stacks: dict[int, tuple[int, ...]]) -> Any:
    """What a loop slices of one of its `xs`: certificates too, where they have an entry for each entry of the stack."""
    if isinstance(before, Plain) or isinstance(after, Plain):
        return before.value

    deeper = len(before.stack) < len(after.stack)

    def cut(leaf: int, shadow: Shadow) -> Shadow:
        if not deeper or len(after.stack) > len(stacks.get(leaf, ())):
            shadow = shadow._replace(certificate=None, threshold=None)
        # Keys and bases tell the entries of a stack apart even where these share a group.
        if not deeper:
            return shadow._replace(key=None, basis=None)
        return shadow if shadow.key is not None and shadow.key.shape else shadow._replace(key=None)

    return before.value, {leaf: cut(leaf, shadow) for leaf, shadow in before.shadows.items()}


def with_uncut(before: Value, row: Any) -> Any:
    """One step's slices together with the certificates that are not sliced."""
    if isinstance(before, Plain):
        return row
    value, shadows = row

    def whole(leaf: int, shadow: Shadow) -> Shadow:
        outer = before.shadows[leaf]
        if shadow.certificate is None:
            shadow = shadow._replace(certificate=outer.certificate, threshold=outer.threshold)
        if shadow.basis is None:
            shadow = shadow._replace(basis=outer.basis)
        return shadow._replace(key=outer.key) if shadow.key is None else shadow

    return value, {leaf: whole(leaf, shadow) for leaf, shadow in shadows.items()}


def arrays_of(entries: Sequence[Value]) -> list[Any]:
    """The arrays of entries, as a pytree that loops can slice and checkpoints can trace."""
    return [(x.value, x.shadows) if isinstance(x, Weight) else x.value for x in entries]


def with_arrays(entries: Sequence[Value], arrays: Sequence[Any]) -> list[Value]:
    """Entries like the given ones on other arrays."""
    return [
        dataclasses.replace(x, value=a[0], shadows=a[1], parts=None)
        if isinstance(x, Weight)
        else dataclasses.replace(x, value=a)
        for x, a in zip(entries, arrays, strict=True)
    ]


def entering(entry: Value, chosen: Bool[Array, ""]) -> Value:
    """What a branch sees of a value: no cotangent of it leaves a branch that the example does not take.

    Beyond the branch, NaN that comes of 0 * inf inside could not be told from a gradient.
    """
    still = lambda x: jnp.where(chosen, x, jax.lax.stop_gradient(x))
    if isinstance(entry, Plain):
        return entry if entry.fixed or not is_float(entry.value) else Plain(still(entry.value), fixed=False)
    # Sums over the batch cannot be selected here, nor need norms be: taps select what they are made of.
    wholes = lambda s: s if s.whole is None else s._replace(whole=still(s.whole))
    return dataclasses.replace(entry, shadows={leaf: wholes(shadow) for leaf, shadow in entry.shadows.items()})
