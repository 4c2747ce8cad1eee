"""Differentially private training for any JAX model."""

from jaxdp import accounting, per_example, sampling, transforms
from jaxdp.per_example import PerExampleGrads, per_example_grad

__version__ = "0.1.0"
__all__ = [
    "PerExampleGrads",
    "__version__",
    "accounting",
    "per_example",
    "per_example_grad",
    "sampling",
    "transforms",
]
