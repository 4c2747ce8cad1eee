"""Norms of one example's gradient, from the factors of one use."""

from jaxdp.norms._costs import (
    NOTHING,
    Cost,
    Machine,
    default_machine,
    gram_cost,
    product_cost,
    reuse_cost,
    rows_norm_cost,
    rows_sum_cost,
    sum_cost,
)
from jaxdp.norms._exact import (
    NormRule,
    Rule,
    clipped_outer_sum,
    mixed_squared_norm,
    norm_rule,
    outer_squared_norm,
    prefers_reuse,
    reuse_chunk,
    row_squared_norm,
)

__all__ = [
    "NOTHING",
    "Cost",
    "Machine",
    "NormRule",
    "Rule",
    "clipped_outer_sum",
    "default_machine",
    "gram_cost",
    "mixed_squared_norm",
    "norm_rule",
    "outer_squared_norm",
    "prefers_reuse",
    "product_cost",
    "reuse_chunk",
    "reuse_cost",
    "row_squared_norm",
    "rows_norm_cost",
    "rows_sum_cost",
    "sum_cost",
]
