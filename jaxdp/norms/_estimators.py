"""What norms may be: exact, or estimated from random probes."""

import dataclasses
from typing import Any, Literal

from jaxdp._numbers import is_whole

Sharing = Literal["batch", "example"]

# Fewer probes than this underestimate a norm so often that no reasonable amount of noise covers it.
SMALLEST_PROBES = 8


@dataclasses.dataclass(frozen=True)
class Exact:
    """Exact norms: nothing is random, and the clipped sum has a constant sensitivity."""


@dataclasses.dataclass(frozen=True)
class Hutchinson:
    r"""Norms estimated by $n = \|A^\top (G P)\|_F^2$ with Gaussian probes $P_{jl} \sim \mathcal N(0, 1/k)$.

    Here $A^\top G$ is one example's gradient of one weight, $A \in R^{T \times d}$, $G \in R^{T \times p}$. Memory is
    $k (T + d + p)$ instead of $\min(T^2, d p)$. Uses that are cheaper to do exactly stay exact; `jaxdp.explain` says
    which.

    Attributes:
      probes: k, at least 8. The noise that a budget asks for grows as k falls: little from 64 on, much below 32.
      sharing: `"batch"`, one set of probes for all examples of a step; or `"example"`, one for each, which draws more
        numbers and asks for a little less noise. The two have different privacy analyses.
      distribution: `"gaussian"`; nothing else is covered by the analysis.
      dtype: `"float32"`, whatever the model's dtype; nothing else is covered by the analysis.

    Raises:
      ValueError: fewer than 8 probes, or another distribution, dtype or sharing.
      TypeError: a number of probes that is no integer.

    Example:
      >>> Hutchinson(probes=128).probes
      128

    References:
      Ullah, Aketi, Gupta, Zhang and Razaviyayn, Efficient DP-SGD for LLMs with Randomized Clipping, ICML 2026,
      arXiv 2605.24879.
    """

    probes: int = 64
    sharing: Sharing = "batch"
    distribution: str = "gaussian"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _check(self)


@dataclasses.dataclass(frozen=True)
class HutchPP:
    r"""Norms estimated in two parts: exactly in a subspace found by a sketch, by probes in the rest (Hutch++).

    With a Gaussian sketch S of `sketch` columns, $W = A^\top G$ and $Q = \mathrm{qr}(W^\top W S)$, the estimate is
    $n = \|W Q\|_F^2 + \|W (I - Q Q^\top) P\|_F^2$: exact where the gradient's rank is at most `sketch`, and nearly so
    where few directions carry it. It takes about four times the operations of `Hutchinson` at the same width. Tables
    that are looked up and multiplied with, and convolutions, take the plain form with the same probes.

    Attributes:
      probes: k of the tail, at least 8: what the privacy analysis counts.
      sketch: columns of the sketch, at least 1.
      sharing: as for `Hutchinson`.
      distribution: as for `Hutchinson`.
      dtype: as for `Hutchinson`.

    Raises:
      ValueError: fewer than 8 probes, no sketch, or another distribution, dtype or sharing.
      TypeError: a number of probes or columns that is no integer.

    Example:
      >>> HutchPP(probes=64, sketch=16).sketch
      16

    References:
      Meyer et al., Hutch++: Optimal Stochastic Trace Estimation, arXiv 2010.09649.
      Ullah, Aketi, Gupta, Zhang and Razaviyayn, Efficient DP-SGD for LLMs with Randomized Clipping, ICML 2026,
      arXiv 2605.24879.
    """

    probes: int = 64
    sketch: int = 16
    sharing: Sharing = "batch"
    distribution: str = "gaussian"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _check(self)
        if not is_whole(self.sketch):
            raise TypeError(f"sketch is {self.sketch!r}: give a whole number of columns.")
        if self.sketch < 1:
            raise ValueError(f"sketch is {self.sketch}: give at least 1 column, or use Hutchinson.")


EXACT = Exact()
Randomized = Hutchinson | HutchPP
Norm = Exact | Hutchinson | HutchPP


def check_norm(norm: Any) -> None:
    """Refuse what is no way to find norms."""
    if not isinstance(norm, Exact | Hutchinson | HutchPP):
        raise TypeError(
            f"norm is {norm!r}: use jaxdp.norms.Exact(), jaxdp.norms.Hutchinson(probes) or jaxdp.norms.HutchPP(probes, "
            "sketch)."
        )


def _check(norm: Any) -> None:
    if not is_whole(norm.probes):
        raise TypeError(f"probes is {norm.probes!r}: give a whole number of probes.")
    if norm.probes < SMALLEST_PROBES:
        raise ValueError(
            f"probes is {norm.probes}: give at least {SMALLEST_PROBES} (64 is a good number), since fewer "
            "underestimate norms so often that no reasonable noise covers it."
        )
    if norm.sharing not in ("batch", "example"):
        raise ValueError(f'sharing is {norm.sharing!r}: use "batch" or "example".')
    if norm.distribution != "gaussian":
        raise ValueError(
            f'distribution is {norm.distribution!r}: use "gaussian". Random signs, say, give a gradient on two '
            "coordinates a norm of zero with probability 2^-probes, and the privacy analysis does not hold."
        )
    if norm.dtype != "float32":
        raise ValueError(
            f'dtype is {norm.dtype!r}: use "float32". Rounded probes are not Gaussian, and the privacy analysis does '
            "not hold; the model itself may have any dtype."
        )
