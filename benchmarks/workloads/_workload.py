"""What a workload is: the loss of one example, its parameters and one batch."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax

Scale = Literal["full", "tiny"]


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model to be trained for one step.

    Attributes:
      name: as on the command line.
      title: one line for tables and figures.
      loss: `loss(params, example) -> scalar`, of one example.
      make_params: fresh float32 parameters at every call, since a step may reuse the buffers of those it is given.
      make_batch: the batch, with a leading axis of `batch_size`.
      batch_size: number of examples B.
      facts: more numbers for the report (sequence length, width, ...).
    """

    name: str
    title: str
    loss: Callable[[Any, Any], jax.Array]
    make_params: Callable[[], Any]
    make_batch: Callable[[], Any]
    batch_size: int
    facts: dict[str, Any]
