"""Per-example gradients of any JAX model, without storing them."""

from jaxdp.per_example._api import per_example_grad
from jaxdp.per_example._grads import PerExampleGrads
from jaxdp.per_example._private import Inert, Private
from jaxdp.per_example.grouping._blocks import Blocks
from jaxdp.per_example.grouping._groups import Groups, resolve_groups
from jaxdp.per_example.passes._materialize import stacked_certificates, stacked_weighted_sum
from jaxdp.per_example.passes._placement import Placement
from jaxdp.per_example.planning._explain import explain
from jaxdp.per_example.planning._explanation import Explanation, PlannedUse
from jaxdp.per_example.planning._plan import FACTOR_ALLOWANCE
from jaxdp.per_example.planning._slack import Slack, slack_of_arrays
from jaxdp.per_example.subspace._projection import MatrixAxes, Projection

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
