"""Differentially private training for any JAX model."""

from typing import TYPE_CHECKING

from jaxdp._lazy import lazily
from jaxdp._version import __version__

if TYPE_CHECKING:
    from jaxdp import accounting, parallel, per_example, sampling, transforms
    from jaxdp.lowering import target
    from jaxdp.per_example import Explanation, PerExampleGrads, explain, per_example_grad

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
    "target",
    "transforms",
]

__getattr__, __dir__ = lazily(
    __name__,
    {name: f"jaxdp.{name}" for name in ("accounting", "parallel", "per_example", "sampling", "transforms")}
    | {"target": "jaxdp.lowering"}
    | dict.fromkeys(("Explanation", "PerExampleGrads", "explain", "per_example_grad"), "jaxdp.per_example"),
)
