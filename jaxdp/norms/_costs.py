"""What norms and sums of one use's gradient cost, from shapes alone: floating-point operations and memory traffic."""

import dataclasses

from jaxdp.lowering import _target
from jaxdp.norms._estimators import HutchPP, Randomized

_DRAW_FLOPS = 300.0  # what a normal number costs, in operations of a matrix product
_WORD = 4.0  # bytes of a float32, in which norms and sums are made whatever the model's dtype


@dataclasses.dataclass(frozen=True)
class Cost:
    """Floating-point operations, and bytes moved; `cached` of these are in a cache when they are read again."""

    flops: float
    bytes: float
    cached: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes, self.cached + other.cached)

    def times(self, count: int | float) -> "Cost":
        """The cost of doing it again and again."""
        return Cost(count * self.flops, count * self.bytes, count * self.cached)


NOTHING = Cost(0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Machine:
    """Rates at which float32 products of full precision, large arrays, and arrays in a cache are worked through.

    Only their ratios decide between rules.
    """

    flops_per_second: float
    bytes_per_second: float
    cached_bytes_per_second: float

    def seconds(self, cost: Cost) -> float:
        """Arithmetic plus traffic, not the larger of the two.

        The passes that read a product come after the product, so that the two hardly overlap; and a sum is never more
        than twice the larger.
        """
        moved = (cost.bytes - cost.cached) / self.bytes_per_second + cost.cached / self.cached_bytes_per_second
        return cost.flops / self.flops_per_second + moved


# CPU: set by hand to about 80 timings (Gram, product, sum and reuse; T from 4 to 1024, widths 64 to 8192) on two server
# cores.
# GPU, TPU: data sheets of an H100 SXM (67 TFLOP/s of float32 outside the tensor cores, 3.35 TB/s) and a TPU v4
# (275 TFLOP/s of bfloat16 in the six passes of a full-precision product, 1.2 TB/s), at nine tenths; that their caches
# are any faster is not counted on.
_MACHINES = {
    "cpu": Machine(1.1e11, 1.5e10, 1.0e11),
    "gpu": Machine(6.0e13, 3.0e12, 3.0e12),
    "tpu": Machine(4.1e13, 1.1e12, 1.1e12),
}


def default_machine() -> Machine:
    """The rates of the platform that is traced for."""
    return _MACHINES.get(_target.current(), _MACHINES["gpu"])


def gram_cost(k: int, t: int, c: int, p: int) -> Cost:
    """Squared norm of A_k^T G_k for each k by two matrices over t, for one example."""
    squares = 2 * t * t if t > 1 else 0  # where t is one they are two numbers
    return Cost(2.0 * k * t * t * (c + p + 1), _WORD * k * (t * (c + p) + 2.0 * squares))


def product_cost(k: int, t: int, c: int, p: int) -> Cost:
    """Squared norm of A_k^T G_k for each k by the product itself, written once and read once, for one example."""
    return Cost(2.0 * k * (t + 1) * c * p, _WORD * k * (t * (c + p) + 2.0 * c * p))


def estimate_cost(k: int, t: int, c: int, p: int, norm: Randomized) -> Cost:
    """Squared norm of A_k^T G_k for each k estimated from random probes, for one example."""
    small, large = min(c, p), max(c, p)
    if isinstance(norm, HutchPP):
        # The sketch goes through both factors and back, the basis and the probes through both.
        columns = 3 * norm.sketch + norm.probes
        products = Cost(4.0 * k * small * norm.sketch * (norm.sketch + norm.probes), 0.0)
        drawn, passes = small * (norm.sketch + norm.probes), 3
    else:
        columns, products, drawn, passes = norm.probes, NOTHING, large * norm.probes, 1
    flops = 2.0 * k * columns * (t * (c + p) + small)
    moved = _WORD * k * (passes * t * (c + p) + 2 * columns * (t + small))
    # Probes of the whole batch are drawn once; those of each example count.
    draws = Cost(_DRAW_FLOPS * k * drawn, _WORD * k * drawn) if norm.sharing == "example" else NOTHING
    return Cost(flops, moved) + products + draws


def sum_cost(k: int, t: int, c: int, p: int) -> Cost:
    """One example's share of the weighted sum over the batch, whose result stays where it is."""
    return Cost(2.0 * k * t * c * p, _WORD * k * t * (c + p))


def reuse_cost(k: int, t: int, c: int, p: int, chunk: int) -> Cost:
    """Norm and share of the sum from one product, `chunk` examples at a time, for one example."""
    # The product is written, read for its norm and read for the sum; the sum is read and written once per chunk.
    again = _WORD * k * (3.0 + 2.0 / chunk) * c * p
    return Cost(2.0 * k * (t + 2) * c * p, _WORD * k * t * (c + p) + again, again)


def rows_norm_cost(t: int, p: int) -> Cost:
    """Squared norm of t rows of a table of which some are the same, by sorting: read, sorted, summed and squared."""
    return Cost(3.0 * t * p, _WORD * 4.0 * t * p)


def rows_sum_cost(t: int, p: int) -> Cost:
    """One example's share of a scatter-add: rows are read, and their places are read and written."""
    return Cost(2.0 * t * p, _WORD * 3.0 * t * p)
