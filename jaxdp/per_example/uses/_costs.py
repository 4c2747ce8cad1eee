"""What the norm and the sum of one use's gradients cost one example: what rules have in common."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxdp.norms import Cost, NormChoice, estimate_cost, gram_cost, norm_rule, product_cost

WORD = 4.0  # bytes of a float32

# How a gradient is called from which both the norm and the sum are found: made once in the use, or held until later.
REUSED, HELD = "product, once", "product, kept"


class Priced(NamedTuple):
    """How something is found, and what it costs."""

    rule: str
    cost: Cost


def outer_norm(k: int, t: int, c: int, p: int, choice: NormChoice) -> Priced:
    """Squared norm of A_k^T G_k for each k."""
    how = norm_rule(k, t, c, p, choice)
    estimator = choice.estimator(k, t, c, p)
    if estimator is not None:
        return Priced(how, estimate_cost(k, t, c, p, estimator))
    return Priced(how, gram_cost(k, t, c, p) if how == "Gram" else product_cost(k, t, c, p))


def elements(use: Any, cts: Sequence[Any]) -> tuple[int, int]:
    """Entries of one example's gradient and of its cotangents."""
    size = math.prod(use.weight_shape(cts)) if cts else 0
    return size, sum(math.prod(jnp.shape(ct)) for ct in cts)
