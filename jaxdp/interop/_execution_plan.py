"""jax_privacy's execution plan with jaxdp's gradients in it."""

import dataclasses
import functools
from typing import Any

from jaxdp.interop._clipped_grad import ClippedGrad, clipped_grad
from jaxdp.per_example._api import Method


def execution_plan(config: Any, *, groups: Any = "all", method: Method = "auto") -> Any:
    r"""The plan of a jax_privacy configuration, with `clipped_grad` replaced by jaxdp's.

    Batch selection, (matrix-factorisation) noise and the `DpEvent` are the configuration's own, as is what the sum is
    clipped to; so the plan is used just as before, and its privacy is the same.

    Args:
      config: `jax_privacy.experimental.execution_plan.BandMFExecutionPlanConfig`, or anything with its `plan`,
        `accountant` and fields of clipping.
      groups: what is clipped together, as for `clipped_grad`.
      method: as for `jaxdp.per_example_grad`.

    Returns:
      A `DPExecutionPlan`. Its `clipped_grad(loss, ...)` takes the keywords of
      `jaxdp.interop.jax_privacy.clipped_grad` that the configuration does not fix.

    Raises:
      ValueError: the sensitivity is not that which the configuration's noise was made for, or the configuration asks
        for something that `clipped_grad` refuses (a `dtype` below 32 bits).

    References:
      Choquette-Choo et al., (Amplified) Banded Matrix Factorization, arXiv 2306.08153.
    """
    plan = config.plan

    @functools.wraps(clipped_grad)
    def transform(*args: Any, **kwargs: Any) -> ClippedGrad:
        return clipped_grad(
            *args,
            **kwargs,
            l2_clip_norm=config.l2_clip_norm,
            rescale_to_unit_norm=config.rescale_to_unit_norm,
            normalize_by=config.normalize_by,
            dtype=config.dtype,
            groups=groups,
            method=method,
        )

    relation = config.accountant.neighboring_relation
    ours, theirs = (make(_nothing).sensitivity(relation) for make in (transform, plan.clipped_grad))
    if ours != theirs:
        raise ValueError(
            f"config has a sensitivity of {theirs} under {relation.name} where jaxdp's sum has {ours}: this kind of "
            "configuration clips in a way that jaxdp does not know, so use its own clipped_grad."
        )
    return dataclasses.replace(plan, clipped_grad=transform)


def _nothing(*_: Any) -> None:
    """A loss that is never called: the sensitivity is known without one."""
