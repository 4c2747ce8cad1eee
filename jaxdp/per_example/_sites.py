"""Where a parameter is used, as found while tracing."""

import dataclasses

import jax

from jaxdp.per_example._use import Use
from jaxdp.per_example._values import Path


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
    box: tuple[tuple[int, int], ...]
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
