"""Norms of one example's gradient, from the factors of one use."""

from jaxdp.norms._choice import (
    ANY_EXACT,
    NormChoice,
    NormRule,
    estimated_clipped_sum,
    factored_squared_norm,
    mixed_factored_squared_norm,
    norm_rule,
)
from jaxdp.norms._costs import (
    NOTHING,
    Cost,
    Machine,
    default_machine,
    estimate_cost,
    gram_cost,
    product_cost,
    reuse_cost,
    rows_norm_cost,
    rows_sum_cost,
    sum_cost,
)
from jaxdp.norms._estimators import EXACT, Exact, Hutchinson, HutchPP, Norm, Randomized, check_norm
from jaxdp.norms._exact import (
    Rule,
    clipped_outer_sum,
    outer_squared_norm,
    prefers_reuse,
    reuse_chunk,
    row_squared_norm,
)
from jaxdp.norms._sketches import probe_matrix

__all__ = [
    "ANY_EXACT",
    "EXACT",
    "NOTHING",
    "Cost",
    "Exact",
    "HutchPP",
    "Hutchinson",
    "Machine",
    "Norm",
    "NormChoice",
    "NormRule",
    "Randomized",
    "Rule",
    "check_norm",
    "clipped_outer_sum",
    "default_machine",
    "estimate_cost",
    "estimated_clipped_sum",
    "factored_squared_norm",
    "gram_cost",
    "mixed_factored_squared_norm",
    "norm_rule",
    "outer_squared_norm",
    "prefers_reuse",
    "probe_matrix",
    "product_cost",
    "reuse_chunk",
    "reuse_cost",
    "row_squared_norm",
    "rows_norm_cost",
    "rows_sum_cost",
    "sum_cost",
]
