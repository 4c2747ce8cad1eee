r"""By how much one record's contribution can exceed the clipping norm when norms are estimated: the law of Z.

With $k$ Gaussian probes a squared norm is estimated as $Q$ times its value, and for every gradient
$P(Q \le x) \le P(\chi^2_k / k \le x)$ for $x \le 1$. A record clipped by its estimate at $R$ therefore contributes
at most $R Z$ with $Z$ stochastically below $\bar Z = \max(1, \sqrt{k / \chi^2_k})$. For groups with independent
probes the whole contribution is at most $S \sqrt{\sum_m s_m \bar Z_m^2}$ with shares $s_m$ that sum to one.

A law is kept as atoms at $1/r$ for $r$ on an even grid from 1 down to where a single estimate falls with
probability `_SMALLEST_TAIL`. Mass between two atoms counts for the larger Z; mass beyond the last one is `lost`,
a contribution without bound. Groups are added two nodes at a time, every sum rounded up to the grid again. All
terms are positive, so that far tails stay accurate (they would drown in the rounding of a Fourier transform), and
the shares of a node scale its error, so that M groups cost log2(M) roundings and not M.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from scipy import stats

# Probability with which a single estimate is smaller than any atom allows.
_SMALLEST_TAIL = 1e-16

# Atoms for one group, and for sums of groups, whose rounding adds up.
_ATOMS, _ATOMS_OF_SUMS = 1024, 2048

# Shares that differ by less are the same. A sum of this share of the spacing above an atom is rounded down to it;
# in the end the atoms are moved up for that.
_SAME = 1e-9

# Rows of the table of sums of two atoms that are in memory together.
_ROWS = 256


class Inflation(NamedTuple):
    """Atoms of Z, ascending, with their probabilities, and the probability that Z is larger than all of them."""

    factors: np.ndarray
    weights: np.ndarray
    lost: float


class _Node(NamedTuple):
    """A sum of groups, relative to its share of the whole: weights on the grid and what is beyond it."""

    share: float
    weights: np.ndarray
    lost: float


@functools.lru_cache(maxsize=64)
def inflation(probes: int, shares: tuple[float, ...]) -> Inflation:
    """An upper bound, in the stochastic order, on sqrt(sum of shares times Zbar^2), independent Zbar."""
    groups = _merged(shares)
    grid = _grid(probes, _ATOMS if len(shares) == 1 else _ATOMS_OF_SUMS)
    nodes = [_repeated(_single(probes, share, grid), count, grid) for share, count in groups]
    while len(nodes) > 1:
        # Huffman's order: it makes the shares of all sums, each rounded once, add up to the least.
        nodes.sort(key=lambda node: node.share)
        nodes = [_added(nodes[0], nodes[1], grid), *nodes[2:]]
    factors = math.sqrt(nodes[0].share) * (1 + len(shares) * _SAME) / grid
    kept = nodes[0].weights > 0
    return Inflation(factors[kept], nodes[0].weights[kept], nodes[0].lost)


def _merged(shares: tuple[float, ...]) -> list[tuple[float, int]]:
    """Every different share with its number; shares that are equal up to rounding become the largest of them."""
    merged: list[tuple[float, int]] = []
    for share in sorted(shares, reverse=True):
        if merged and share >= merged[-1][0] * (1 - _SAME):
            merged[-1] = (merged[-1][0], merged[-1][1] + 1)
        else:
            merged.append((share, 1))
    return merged


def _grid(probes: int, points: int) -> np.ndarray:
    """The values 1/Z of the atoms, descending from 1."""
    return np.linspace(1.0, math.sqrt(stats.chi2.ppf(_SMALLEST_TAIL, probes) / probes), points)


def _single(probes: int, share: float, grid: np.ndarray) -> _Node:
    """One group."""
    survival = stats.chi2.cdf(probes * grid**2, probes)
    weights = np.append(stats.chi2.sf(probes, probes), survival[:-1] - survival[1:])
    return _Node(share, weights, float(survival[-1]))


def _repeated(node: _Node, count: int, grid: np.ndarray) -> _Node:
    """The sum of independent copies, by doubling."""
    if count == 1:
        return node
    half = _repeated(node, count // 2, grid)
    twice = _added(half, half, grid)
    return _added(twice, node, grid) if count % 2 else twice


def _added(first: _Node, second: _Node, grid: np.ndarray) -> _Node:
    """The sum of two independent nodes, rounded up to the grid."""
    share = first.share + second.share
    squares, spacing = grid**-2.0, grid[0] - grid[1]
    weights = np.zeros(len(grid) + 1)  # The last is for sums that rounding pushes beyond the grid.
    columns = np.flatnonzero(second.weights)
    for start in range(0, len(grid), _ROWS):
        rows = start + np.flatnonzero(first.weights[start : start + _ROWS])
        sums = (first.share / share) * squares[rows, None] + (second.share / share) * squares[None, columns]
        places = np.ceil((1 - sums**-0.5) / spacing - _SAME).astype(np.int64)
        masses = first.weights[rows, None] * second.weights[None, columns]
        weights += np.bincount(places.ravel(), masses.ravel(), minlength=len(weights))
    lost = first.lost + second.lost + float(weights[-1])
    return _Node(share, weights[:-1], lost)
