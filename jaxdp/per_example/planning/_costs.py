"""What the norm and the sum of one use's gradients cost one example, from the shapes seen while tracing."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jaxdp.norms import (
    NOTHING,
    Cost,
    NormChoice,
    NormRule,
    estimate_cost,
    gram_cost,
    norm_rule,
    product_cost,
    reuse_chunk,
    reuse_cost,
    rows_norm_cost,
    rows_sum_cost,
    sum_cost,
)
from jaxdp.per_example.grouping._families import ReportedUse
from jaxdp.per_example.rewriting._sites import Loop, Site
from jaxdp.per_example.uses._convolution_costs import (
    convolution_kept_cost,
    convolution_norm,
    convolution_reuse_cost,
    convolution_sum_cost,
)
from jaxdp.per_example.uses._convolved import Convolved
from jaxdp.per_example.uses._gathered import Gathered
from jaxdp.per_example.uses._use import Elementwise

_WORD = 4.0  # bytes of a float32


class Priced(NamedTuple):
    """How something is found, and what it costs."""

    rule: str
    cost: Cost


def runs(loops: Iterable[Loop]) -> int:
    """How often a use inside these loops runs."""
    return math.prod(loop.length for loop in loops)


def norm_of_use(site: Site) -> Priced:
    """Squared norm of one run's gradient."""
    if site.sizes is not None and isinstance(site.use, Convolved):
        return Priced(*convolution_norm(*site.sizes, site.use.choice))
    if site.sizes is not None:
        return outer_norm(*site.sizes, site.use.choice)
    if isinstance(site.use, Gathered):
        return Priced("rows", rows_norm_cost(*_rows(site)))
    size, output = _size(site), _output(site)
    if isinstance(site.use, Elementwise):
        return Priced("elementwise", Cost(float(output + 2 * size), _WORD * output))
    return Priced("one gradient at a time", Cost(2.0 * (output + size), _WORD * (output + 3 * size)))


def outer_norm(k: int, t: int, c: int, p: int, choice: NormChoice) -> Priced:
    """Squared norm of A_k^T G_k for each k."""
    how: NormRule = norm_rule(k, t, c, p, choice)
    estimator = choice.estimator(k, t, c, p)
    if estimator is not None:
        return Priced(how, estimate_cost(k, t, c, p, estimator))
    return Priced(how, gram_cost(k, t, c, p) if how == "Gram" else product_cost(k, t, c, p))


def joint_norm(parts: Sequence[ReportedUse]) -> Priced:
    """Squared norm of the sum of several runs' and uses' factored gradients, cross terms included."""
    tables = [part for part in parts if isinstance(part.use, Gathered)]
    products = [part for part in parts if part.site.sizes is not None]
    found, cost, looked_up, width = [], NOTHING, 0, 0
    if tables:
        looked_up, width = sum(part.steps * _rows(part.site)[0] for part in tables), _rows(tables[0].site)[1]
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
        cross = Cost(2.0 * t * looked_up * (width + 1), _WORD * 3 * t * looked_up)
        cost = cost + outer.cost + cross
    return Priced(" + ".join(found) + ", joint", cost)


def sum_of_use(site: Site) -> Cost:
    """One run's share of the weighted sum over the batch."""
    if site.sizes is not None and isinstance(site.use, Convolved):
        return convolution_sum_cost(*site.sizes)
    if site.sizes is not None:
        return sum_cost(*site.sizes)
    if isinstance(site.use, Gathered):
        return rows_sum_cost(*_rows(site))
    return Cost(2.0 * _output(site), _WORD * _output(site))


def reuse_of_use(site: Site) -> Priced:
    """Norm and share of the sum of one run, from a gradient that is made once."""
    k, t, c, p = site.sizes or (1, 1, 1, 1)
    if isinstance(site.use, Convolved):
        return Priced("product, once", convolution_reuse_cost(k, t, c, p))
    return Priced("product, once", reuse_cost(k, t, c, p, reuse_chunk(k, c, p)))


def kept_product(site: Site) -> Priced:
    """Norm and share of the sum of one run, from a gradient that is kept until the clipping weight is known."""
    k, t, c, p = site.sizes or (1, 1, 1, 1)
    if isinstance(site.use, Convolved):
        return Priced("product, kept", convolution_kept_cost(k, t, c, p))
    # Made and squared; read again, weighted and added up.
    return Priced("product, kept", product_cost(k, t, c, p) + Cost(2.0 * k * c * p, _WORD * k * c * p))


def gradient_of_use(site: Site) -> Cost:
    """One run's gradient as it is."""
    if site.sizes is not None:
        k, t, c, p = site.sizes
        return Cost(2.0 * k * t * c * p, _WORD * k * (t * (c + p) + c * p))
    return Cost(float(_output(site)), _WORD * (_output(site) + _size(site)))


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


def _rows(site: Site) -> tuple[int, int]:
    """How many rows one run looks up, and their width."""
    width = math.prod(site.use.weight_shape(site.cts)[1:])
    return _output(site) // max(1, width), width


def _size(site: Site) -> int:
    return math.prod(site.use.weight_shape(site.cts)) if site.cts else 0


def _output(site: Site) -> int:
    return sum(math.prod(ct.shape) for ct in site.cts)
