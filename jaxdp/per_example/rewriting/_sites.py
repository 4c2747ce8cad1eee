"""Where a parameter is used, as found while tracing."""

import dataclasses
from collections.abc import Sequence

import jax

from jaxdp.per_example.tracing._values import Path
from jaxdp.per_example.uses._use import Use


@dataclasses.dataclass(frozen=True)
class Loop:
    """A scan around a use."""

    body: Path
    length: int
    cuts: bool  # whether it slices the weight: otherwise the same entries are used in every step


@dataclasses.dataclass(frozen=True)
class Site:
    """A tap seen while tracing: what decides how its leaf is reported, and what it costs."""

    leaf: int
    use: Use
    isometric: bool
    region: tuple[tuple[int, int], ...]
    axes: tuple[int, ...] | None
    stack: tuple[int, ...]
    steady: bool
    loops: tuple[Loop, ...]
    operands: dict[int, jax.ShapeDtypeStruct]  # the factors of the forward pass
    cts: tuple[jax.ShapeDtypeStruct, ...]
    remat: bool = False  # whether it lies in a checkpoint, so that its values are made again on the way back
    whole: bool = False  # whether the weight is the leaf itself, or what loops slice of it

    @property
    def sizes(self) -> tuple[int, int, int, int] | None:
        """K, T, C and P of one example's factors A_k^T G_k, where the gradient is made of such."""
        return self.use.sizes(self.cts[0].shape) if self.cts else None


def adds_up(sites: Sequence[Site], steps: Sequence[int]) -> bool:
    """Whether the squared norms found at uses of one leaf sum to its own: no two touch the same entries."""

    def disjoint(a: Site, b: Site) -> bool:
        if len(a.region) != len(b.region):
            return False
        return any(a_hi <= b_lo or b_hi <= a_lo for (a_lo, a_hi), (b_lo, b_hi) in zip(a.region, b.region, strict=True))

    pairs = ((a, b) for i, a in enumerate(sites) for b in sites[:i])
    return all(s.isometric for s in sites) and all(n == 1 for n in steps) and all(disjoint(a, b) for a, b in pairs)


def joins(sites: Sequence[Site]) -> bool:
    """Whether the norm of a leaf that is used several times follows from the factors of its uses."""
    if not all(site.steady or all(loop.cuts for loop in site.loops) for site in sites):
        return False
    if len(sites) == 1:
        return sites[0].isometric
    if not all(site.isometric and site.use.factor_operands for site in sites):
        return False
    cuts = {tuple(loop for loop in site.loops if loop.cuts) for site in sites}
    layouts = [site.use.layout(site.axes) if site.axes is not None else None for site in sites]
    if len(cuts) > 1 or None in layouts:
        return False
    known = [layout for layout in layouts if layout is not None]
    same_axes = {(x.batch, frozenset((x.first, x.second))) for x in known}
    tables = any(site.use.rows(site.cts) is not None for site in sites)
    return len(same_axes) == 1 and not (tables and known[0].batch)


def after(loops: Sequence[Loop], body: Path | None) -> tuple[Loop, ...]:
    """The loops inside a body; all of them for the whole program."""
    if body is None:
        return tuple(loops)
    at = [loop.body for loop in loops].index(body)
    return tuple(loops[at + 1 :])
