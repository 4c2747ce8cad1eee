r"""How much rounding may add to the influence of one example, beyond its clipping norm.

Other examples' terms lie in the accumulators that one example's terms are added to, so that it changes how *they* are
rounded. An example may move the errors of an accumulator by $\mu R$ at most (its certified norm sees to that). If any
of the B examples of a batch may then be rounded otherwise, the sums of two neighbouring data sets differ by at most
$(1 + s) R$ with

$$s = 2 B \mu + 2 u\, l B,$$

where l sums of accumulators are added up one after the other (or, in pairs of pairs, the logarithm of their number).

Where examples lie in a secret and uniformly random order, two neighbours' orders can be matched so that they differ in
two places only: one is taken by another example, and one at the end is empty. Then only the accumulators of two places
are rounded otherwise, and with m examples in each of them and b in a microbatch

$$s = 4 m \mu + 4 u\, l b + 4 u B.$$

$\mu$ is chosen from public sizes: as large as keeps examples whose terms cancel no more than those of random
directions do from being clipped harder, and some times that where it costs little. Proofs: docs/floating_point.md.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxdp.norms import Accumulation, kappa, meeting_of_arrays, unit
from jaxdp.per_example.planning._plan import holds_gradients
from jaxdp.per_example.rewriting._traced import TracedLoss

# What an example is found to bring is rounded up, by less than this.
_ABOVE = 1 + 2.0**-8
# Terms may measure so many times more than those of random directions ...
_ROOM = 8.0
# ... unless that costs more of the sensitivity than this.
_CHEAP = 2.0**-9


class Slack(NamedTuple):
    r"""What rounding is allowed, as shares of the clipping norm.

    Attributes:
      per_example: $\mu$, by which one example may move the rounding errors of an accumulator.
      total: s, which is added to the sensitivity.
    """

    per_example: float
    total: float


def slack_of_sum(traced: TracedLoss, batch_size: int, microbatch_size: int | None, shuffled: bool) -> Slack:
    """The slack of a clipped sum of a traced loss."""
    found = [x for leaf in range(len(traced.stacks)) for x in _meetings(traced, leaf)]
    u = max((unit(site.cts[0].dtype) for site in traced.sites.values() if site.cts), default=unit(jnp.float32))
    micro = batch_size if microbatch_size is None else min(microbatch_size, batch_size)
    return _slack(found, u, batch_size, micro, shuffled)


def slack_of_arrays(batch_size: int, dtypes: Sequence[Any]) -> Slack:
    """The slack of a sum of gradients that are there as arrays."""
    found = [(meeting_of_arrays(batch_size, dtype), 1) for dtype in dtypes]
    return _slack(found, max(map(unit, dtypes)), batch_size, batch_size, False)


def _slack(
    found: Sequence[tuple[Accumulation, int]], u: float, batch_size: int, microbatch_size: int, shuffled: bool
) -> Slack:
    needed = max(x.unit * kappa(terms) for x, terms in found) * _ABOVE
    # A single term measures what its sum does, and needs no room.
    several = max((x.unit * kappa(terms) for x, terms in found if terms > 1), default=0.0)
    rows = max(x.rows for x, _ in found)
    in_order = 2 * batch_size
    met = min(4 * rows, in_order) if shuffled else in_order
    per_example = max(needed, min(_ROOM * several, _CHEAP / met))
    pieces = math.ceil(batch_size / microbatch_size)
    depth = lambda x: math.ceil(math.log2(x.links + 1)) if x.tree else x.links
    one_by_one = 2 * u * batch_size * max(depth(x) for x, _ in found)
    on_the_paths = 4 * u * microbatch_size * max(2 if x.tree else x.links for x, _ in found)
    links = min(on_the_paths, one_by_one) if shuffled else one_by_one
    between = 2 * u * batch_size * between_microbatches(pieces, batch_size) if pieces > 1 else 0.0
    return Slack(per_example, met * per_example + links + between)


def between_microbatches(pieces: int, batch_size: int) -> int:
    """How many roundings of a whole sum adding up so many microbatches comes to."""
    return 2 if is_compensated(pieces, batch_size) else pieces


def is_compensated(pieces: int, batch_size: int) -> bool:
    """Whether microbatches are added up with a second sum of what rounding takes from the first."""
    return 2 * unit(jnp.float32) * pieces * batch_size > 2 * _CHEAP


def _meetings(traced: TracedLoss, leaf: int) -> list[tuple[Accumulation, int]]:
    """How the terms of one leaf's uses meet, with their number: they may all meet in one accumulator."""
    sites = [site for site in traced.sites_of(leaf).values() if site.cts]
    whole = [(meeting_of_arrays(traced.examples, site.cts[0].dtype), 1) for site in sites[:1]]
    whole = whole if holds_gradients(traced, leaf) else []
    runs = lambda site: math.prod(loop.length for loop in site.loops if not loop.cuts)
    terms = max(1, sum(site.use.terms(site.cts[0].shape) * runs(site) for site in sites))
    return [*whole, *((site.use.meeting(site.cts[0].shape, terms, site.cts[0].dtype), terms) for site in sites)]
