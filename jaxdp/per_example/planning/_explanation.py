"""The plan of a clipped sum, as data and as a table."""

import dataclasses
from collections.abc import Hashable

from jaxdp.per_example.planning._prediction import Prediction


@dataclasses.dataclass(frozen=True)
class PlannedUse:
    """One use of one parameter.

    Attributes:
      parameter: its path, e.g. `params['dense']['kernel']`.
      primitive: the equation that consumes it; `"value"` where it becomes an ordinary value, a loop's state, say.
      inside: loops and checkpoints around it, e.g. `"scan[12] checkpoint"`.
      rule: how the norm is found. `"Gram"`, `"product"` or `"tiled product"` of the factors; `"product, once"` for
        both the norm and the sum; `"Hutchinson"` or `"Hutch++"`, estimated from random probes; `"rows"` of a table,
        sorted; `"elementwise"`; `"one gradient at a time"`, by the equation's own derivative; `"own gradient (B x
        leaf)"`, stored for each example, or `"whole gradient"` where it is small beside the factors of several uses or
        runs that make it. `", joint"` where several runs or uses make one norm, whose cost stands in the
        row of the first.
      clipped: where the weight is known and the sum is made: `"in the use"`, `"in the loop step"`, `"end of pass"` or
        `"second pass"`.
      groups: the clipping groups of the parameter's entries.
      flops: floating-point operations of norm and sum, for the batch.
      bytes: memory traffic of norm and sum, for the batch.
      held_bytes: factors or gradients of the batch that are kept until they can be clipped (those of one step where
        they are clipped in it). Outside loops and checkpoints part of it is memory that the backward pass needs anyway.
    """

    parameter: str
    primitive: str
    inside: str
    rule: str
    clipped: str
    groups: tuple[Hashable, ...]
    flops: float
    bytes: float
    held_bytes: int


@dataclasses.dataclass(frozen=True)
class RankCost:
    """What a random subspace is predicted to cost.

    Attributes:
      rank: its dimension.
      mean_gradient: assumed length of the mean clipped gradient, in clipping norms.
      prediction: cosines of the first update with the gradient, with and without the projection.
    """

    rank: int
    mean_gradient: float
    prediction: Prediction


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a clipped sum does and costs; `str()` of it is a table.

    Attributes:
      method: as asked for.
      batch_size: the number B of examples that all numbers are for.
      rows: one for each use of each parameter.
      training_flops: matrix products of one gradient of the batch without privacy.
      second_pass_flops: what the second backward pass repeats of them, zero where there is one pass.
      params_bytes: the size of the parameters.
      advice: the one thing that would help most.
      ranks: what random subspaces would cost, where that was asked for.
    """

    method: str
    batch_size: int
    rows: tuple[PlannedUse, ...]
    training_flops: float
    second_pass_flops: float
    params_bytes: int
    advice: str
    ranks: tuple[RankCost, ...] = ()

    @property
    def flops(self) -> float:
        """Floating-point operations of all norms and sums."""
        return sum((row.flops for row in self.rows), 0.0)

    @property
    def bytes(self) -> float:
        """Memory traffic of all norms and sums."""
        return sum((row.bytes for row in self.rows), 0.0)

    @property
    def held_bytes(self) -> int:
        """Factors and gradients that wait to be clipped, were all of them alive at once."""
        return sum(row.held_bytes for row in self.rows)

    def __str__(self) -> str:
        head = ("parameter", "primitive", "inside", "norm", "clipped", "group", "GFLOP", "MB moved", "MB held")
        body = [
            (
                row.parameter,
                row.primitive,
                row.inside or "-",
                row.rule,
                row.clipped,
                str(row.groups[0]) if len(row.groups) == 1 else f"{len(row.groups)} groups",
                *_numbers(row.flops, row.bytes, row.held_bytes),
            )
            for row in self.rows
        ]
        total = ("total", "", "", "", "", "", *_numbers(self.flops, self.bytes, self.held_bytes))
        widths = [max(len(line[i]) for line in (head, *body, total)) for i in range(len(head))]

        def text(line: tuple[str, ...]) -> str:
            cells = [x.rjust(n) if i >= 6 else x.ljust(n) for i, (x, n) in enumerate(zip(line, widths, strict=True))]
            return "  ".join(cells).rstrip()

        rule = "-" * len(text(total))
        again = f", {_giga(self.second_pass_flops)} GFLOP in a second backward pass" if self.second_pass_flops else ""
        return "\n".join(
            (
                f"method {self.method!r}, batch of {self.batch_size}",
                text(head),
                rule,
                *map(text, body),
                rule,
                text(total),
                f"Training without privacy: {_giga(self.training_flops)} GFLOP in matrix products{again}.",
                self.advice,
                *map(_rank_line, self.ranks),
            )
        )


def _rank_line(cost: RankCost) -> str:
    found = cost.prediction
    return (
        f"Rank {cost.rank}, mean clipped gradient of {cost.mean_gradient:g} clipping norms: cosine of an update with "
        f"the gradient {found.projected:.4f}, {found.full:.4f} in the full space, {found.loss:.1%} lost."
    )


def _giga(flops: float) -> str:
    return f"{flops / 1e9:.3g}"


def _numbers(flops: float, moved: float, held: int) -> tuple[str, str, str]:
    return _giga(flops), f"{moved / 1e6:.3g}", f"{held / 1e6:.3g}"
