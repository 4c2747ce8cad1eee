"""Differentially private training for any JAX model."""

from jaxdp import accounting, parallel, per_example, sampling, transforms
from jaxdp.per_example import Explanation, PerExampleGrads, explain, per_example_grad

__version__ = "0.1.0"
__all__ = [
    "Explanation",
    "PerExampleGrads",
    "__version__",
    "accounting",
    "explain",
    "parallel",
    "per_example",
    "per_example_grad",
    "sampling",
    "transforms",
]
