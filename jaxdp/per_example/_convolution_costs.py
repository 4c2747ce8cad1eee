"""What norms and sums of a convolution's gradient cost, from shapes alone, and which way is the cheapest."""

import jax

from jaxdp.norms import (
    Cost,
    NormChoice,
    NormRule,
    default_machine,
    estimate_cost,
    gram_cost,
    norm_rule,
    product_cost,
    reuse_cost,
    sum_cost,
)

_WORD = 4.0  # bytes of a float32

# Patches (or gradients) of few examples that are alive at a time, in elements. On a CPU one example's stay in a cache;
# elsewhere the products of several keep the device busy.
_ALIVE_ELEMENTS = {"cpu": 1 << 18}
_ALIVE_ELSEWHERE = 1 << 24


def alive_elements() -> int:
    """How many elements of patches may be alive at a time on the default backend."""
    return _ALIVE_ELEMENTS.get(jax.default_backend(), _ALIVE_ELSEWHERE)


def convolution_norm(k: int, t: int, c: int, p: int, choice: NormChoice) -> tuple[NormRule, Cost]:
    """How the squared norm of a kernel's gradient is found, and at what cost: by patches, cut out and read again."""
    how = norm_rule(k, t, c, p, choice)
    estimator = choice.estimator(k, t, c, p)
    if estimator is not None:
        return how, estimate_cost(k, t, c, p, estimator)
    found = gram_cost(k, t, c, p) if how == "Gram" else product_cost(k, t, c, p)
    return "Gram" if how == "Gram" else "product", found + cut_cost(k, t, c)


def convolution_sum_cost(k: int, t: int, c: int, p: int) -> Cost:
    """One example's share of the weighted sum over the batch."""
    return sum_cost(k, t, c, p) + cut_cost(k, t, c)


def convolution_reuse_cost(k: int, t: int, c: int, p: int) -> Cost:
    """Norm and share of the sum from one gradient."""
    chunk = max(1, alive_elements() // (k * c * max(t, p)))
    return reuse_cost(k, t, c, p, chunk) + cut_cost(k, t, c)


def cut_cost(k: int, t: int, c: int) -> Cost:
    """Patches of one example, written."""
    return Cost(0.0, _WORD * k * t * c)


def convolution_prefers_reuse(k: int, t: int, c: int, p: int, choice: NormChoice) -> bool:
    """Whether to make an example's gradient once, for norm and sum, instead of a norm and a sum."""
    if choice.estimator(k, t, c, p) is not None or choice.rule == "gram":
        return False
    if choice.rule == "materialize":
        return True
    seconds = default_machine().seconds
    apart = seconds(convolution_norm(k, t, c, p, choice)[1]) + seconds(convolution_sum_cost(k, t, c, p))
    return seconds(convolution_reuse_cost(k, t, c, p)) < apart
