"""What several uses together cost one example: joint norms, and the passes themselves."""

import math
from collections.abc import Iterable, Sequence

from jaxdp.norms import NOTHING, Cost, estimate_cost, rows_norm_cost
from jaxdp.per_example.grouping._families import ReportedUse
from jaxdp.per_example.rewriting._sites import Loop, Site
from jaxdp.per_example.uses._costs import WORD, Priced, outer_norm


def runs(loops: Iterable[Loop]) -> int:
    """How often a use inside these loops runs."""
    return math.prod(loop.length for loop in loops)


def joint_norm(parts: Sequence[ReportedUse]) -> Priced:
    """Squared norm of the sum of several runs' and uses' factored gradients, cross terms included."""
    tables = [(part.steps, found) for part in parts if (found := part.site.use.rows(part.site.cts)) is not None]
    products = [part for part in parts if part.site.sizes is not None]
    found, cost, looked_up, width = [], NOTHING, 0, 0
    if tables:
        looked_up, width = sum(steps * count for steps, (count, _) in tables), tables[0][1][1]
        found.append("rows")
        cost = rows_norm_cost(looked_up, width)
    if products:
        k, _, c, p = products[0].site.sizes or (1, 1, 1, 1)
        t = sum(part.steps * (part.site.sizes or (1, 1, 1, 1))[1] for part in products)
        choice = parts[0].use.choice.plain() if tables else parts[0].use.choice
        estimator = choice.estimator(k, t, c, p)
        outer = outer_norm(k, t, c, p, choice)
        if estimator is not None:
            # Lookups only lengthen the sequence: sketches add up.
            return Priced(f"{outer.rule}, joint", estimate_cost(k, t + looked_up, c, p, estimator))
        found.append(outer.rule)
        # Inner products of each looked-up row with each output cotangent.
        cross = Cost(2.0 * t * looked_up * (width + 1), WORD * 3 * t * looked_up)
        cost = cost + outer.cost + cross
    return Priced(" + ".join(found) + ", joint", cost)


def training_flops(sites: Iterable[Site]) -> float:
    """Matrix products of one example's forward and backward pass without privacy: three for each use, one more in a
    checkpoint."""
    return sum((_product_flops(site) * (4 if site.remat else 3) for site in sites), 0.0)


def second_pass_flops(sites: Iterable[Site]) -> float:
    """What a second backward pass repeats: the cotangents of inputs, and the forward pass inside a checkpoint.

    Outside loops and checkpoints XLA finds the equations of both passes to be the same and runs them once.
    """
    again = (site for site in sites if site.loops or site.remat)
    return sum((_product_flops(site) * (2 if site.remat else 1) for site in again), 0.0)


def _product_flops(site: Site) -> float:
    return runs(site.loops) * (2.0 * math.prod(site.sizes) if site.sizes is not None else 0.0)
