"""Norms of one example's gradient, from the factors of one use."""

from jaxdp.norms._exact import outer_squared_norm, row_squared_norm

__all__ = ["outer_squared_norm", "row_squared_norm"]
