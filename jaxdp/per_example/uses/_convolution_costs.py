"""What norms and sums of a convolution's gradient cost, from shapes alone, and which way is the cheapest."""

from jaxdp.lowering import _target
from jaxdp.norms import Cost, NormChoice, NormRule, default_machine, estimate_cost, norm_rule

_WORD = 4.0  # bytes of a float32

# Patches (or gradients) of few examples that are alive at a time, in elements. On a CPU one example's stay in a cache;
# elsewhere the products of several keep the device busy.
_ALIVE_ELEMENTS = {"cpu": 1 << 18}
_ALIVE_ELSEWHERE = 1 << 24
# What moving a word costs there while so few are alive, of what it costs from memory. Set to 25 timings of 3x3 kernels
# (4 to 32 places along an axis, 32 to 256 features) on one server core.
_CACHED = {"cpu": 0.25}


def alive_elements() -> int:
    """How many elements of patches may be alive at a time on the platform that is traced for."""
    return _ALIVE_ELEMENTS.get(_target.current(), _ALIVE_ELSEWHERE)


def convolution_norm(k: int, t: int, c: int, p: int, choice: NormChoice) -> tuple[NormRule, Cost]:
    """How the squared norm of a kernel's gradient is found, and what that costs one example."""
    estimator = choice.estimator(k, t, c, p)
    if estimator is not None:
        return norm_rule(k, t, c, p, choice), estimate_cost(k, t, c, p, estimator)
    seconds = default_machine().seconds
    # Both matrices over t are written and read; so is the product.
    gram = Cost(2.0 * k * t * t * (c + p + 1), _factors_bytes(k, t, c, p) + 4.0 * _bytes(k * t * t))
    product = Cost(2.0 * k * (t + 1) * c * p, _factors_bytes(k, t, c, p) + 2.0 * _bytes(k * c * p))
    if choice.rule == "gram" or (choice.rule is None and seconds(gram) <= seconds(product)):
        return "Gram", gram
    return "product", product


def convolution_sum_cost(k: int, t: int, c: int, p: int) -> Cost:
    """One example's share of the weighted sum over the batch, whose result stays where it is."""
    return Cost(2.0 * k * t * c * p, _factors_bytes(k, t, c, p))


def convolution_reuse_cost(k: int, t: int, c: int, p: int) -> Cost:
    """Norm and share of the sum from one gradient, few examples at a time."""
    chunk = max(1, alive_elements() // (k * c * max(t, p)))
    # Written, read for its norm and read for the sum, which is read and written once for all that are alive.
    passes = 3.0 + 2.0 / chunk
    return Cost(2.0 * k * (t + 2) * c * p, _factors_bytes(k, t, c, p) + passes * _bytes(k * c * p))


def convolution_kept_cost(k: int, t: int, c: int, p: int) -> Cost:
    """Norm and share of the sum from one gradient that is held until the weight is known."""
    held = _WORD * k * c * p
    return Cost(2.0 * k * (t + 2) * c * p, _factors_bytes(k, t, c, p) + 3.0 * held)


def convolution_prefers_reuse(k: int, t: int, c: int, p: int, choice: NormChoice) -> bool:
    """Whether to make an example's gradient once, for norm and sum, instead of a norm and a sum."""
    if choice.estimator(k, t, c, p) is not None or choice.rule == "gram":
        return False
    if choice.rule == "materialize":
        return True
    seconds = default_machine().seconds
    apart = seconds(convolution_norm(k, t, c, p, choice)[1]) + seconds(convolution_sum_cost(k, t, c, p))
    return seconds(convolution_reuse_cost(k, t, c, p)) < apart


def _factors_bytes(k: int, t: int, c: int, p: int) -> float:
    """Cotangents are read; patches are cut out, written and read."""
    return _WORD * k * t * p + 2.0 * _bytes(k * t * c)


def _bytes(elements: int) -> float:
    """What going once through an array of one example costs, in bytes moved to or from memory."""
    cached = _CACHED.get(_target.current(), 1.0) if elements <= alive_elements() else 1.0
    return cached * _WORD * elements
