"""Per-example gradients of any JAX model, without storing them."""

from jaxdp.per_example._api import per_example_grad
from jaxdp.per_example._blocks import Blocks
from jaxdp.per_example._explain import explain
from jaxdp.per_example._explanation import Explanation, PlannedUse
from jaxdp.per_example._grads import PerExampleGrads
from jaxdp.per_example._groups import Groups, resolve_groups
from jaxdp.per_example._inert import Inert, Private
from jaxdp.per_example._materialize import stacked_certificates, stacked_weighted_sum
from jaxdp.per_example._placement import Placement
from jaxdp.per_example._plan import FACTOR_ALLOWANCE
from jaxdp.per_example._projection import MatrixAxes, Projection
from jaxdp.per_example._slack import Slack, slack_of_arrays

__all__ = [
    "FACTOR_ALLOWANCE",
    "Blocks",
    "Explanation",
    "Groups",
    "Inert",
    "MatrixAxes",
    "PerExampleGrads",
    "Placement",
    "PlannedUse",
    "Private",
    "Projection",
    "Slack",
    "explain",
    "per_example_grad",
    "resolve_groups",
    "slack_of_arrays",
    "stacked_certificates",
    "stacked_weighted_sum",
]
