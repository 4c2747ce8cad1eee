r"""How much rounding may add to the influence of one example, beyond its clipping norm.

Other examples' terms lie in the accumulators that one example's terms are added to, so that it changes how *they* are
rounded. An example may move those errors by $\mu R$ at most (its certified norm sees to that), so with B examples
in a batch the sums of two neighbouring data sets differ by at most $(1 + s) R$ with

$$s = 2 B \mu + 2 n u B,$$

the second term for adding up n microbatches. $\mu$ is chosen from public sizes: as large as keeps examples whose terms
cancel no more than those of random directions do from being clipped harder, and some times that where it costs little.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp

from jaxdp.norms import kappa, shared_array_unit, unit
from jaxdp.per_example._sites import Site
from jaxdp.per_example._traced import Traced

# Terms may measure so many times more than those of random directions ...
_ROOM = 8.0
# ... unless that costs more of the sensitivity than this.
_CHEAP = 2.0**-9


class Slack(NamedTuple):
    r"""What rounding is allowed, as shares of the clipping norm.

    Attributes:
      per_example: $\mu$, by which one example may move the rounding errors of a sum.
      total: s, which is added to the sensitivity.
    """

    per_example: float
    total: float


def slack_of_sum(traced: Traced, batch_size: int, microbatch_size: int | None) -> Slack:
    """The slack of a clipped sum of a traced loss."""
    dtypes = [site.cts[0].dtype for site in traced.sites.values() if site.cts]
    widest = max((unit(dtype) for dtype in dtypes), default=unit(jnp.float32))
    worst = max(_needed(list(traced.sites_of(leaf).values())) for leaf in range(len(traced.stacks)))
    pieces = 1 if microbatch_size is None else math.ceil(batch_size / microbatch_size)
    between = 2 * pieces * widest * batch_size if pieces > 1 else 0.0
    return _slack(worst, batch_size, between)


def slack_of_arrays(batch_size: int, dtypes: list) -> Slack:
    """The slack of a sum of gradients that are there as arrays."""
    return _slack(max(shared_array_unit(batch_size, dtype) for dtype in dtypes), batch_size, 0.0)


def _slack(needed: float, batch_size: int, between: float) -> Slack:
    cheap = min(_ROOM * needed, _CHEAP / (2 * batch_size))
    per_example = max(needed, cheap)
    return Slack(per_example, 2 * batch_size * per_example + between)


def _needed(sites: list[Site]) -> float:
    """Rounding that terms of random directions meet in the sum of one leaf."""
    runs = lambda site: math.prod(loop.length for loop in site.loops if not loop.cuts)
    terms = sum(site.use.terms(site.cts[0].shape) * runs(site) for site in sites if site.cts)
    units = [site.use.shared_unit(site.cts[0].shape, max(1, terms), site.cts[0].dtype) for site in sites if site.cts]
    return max(units) * kappa(max(1, terms))
