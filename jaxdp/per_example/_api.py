"""`per_example_grad`: the entrance to per-example gradients of any JAX model."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdp.per_example._grads import PerExampleGrads
from jaxdp.per_example.passes._placement import Placement, check_sizes
from jaxdp.per_example.planning._method import Method, check_method
from jaxdp.per_example.rewriting._overrides import check_rules
from jaxdp.per_example.tracing import _check
from jaxdp.per_example.tracing._ragged import teach_jax

PyTree = Any


def per_example_grad(
    loss: Callable, *, has_aux: bool = False, method: Method = "auto", rules: Mapping[str, Any] | None = None
) -> Callable[..., PerExampleGrads]:
    r"""Per-example gradients $g_i = \nabla_\theta\, \ell(\theta, x_i)$ of any JAX model, without storing them.

    The loss is written for one example, so nothing in it can mix examples. It is traced once; every equation that
    consumes a parameter is rewritten to report, beside its ordinary cotangents, what this example's gradient of that
    parameter looks like (its squared norm, or its share of a weighted sum).

    Args:
      loss: `loss(params, example) -> scalar`, or `(scalar, aux)` with `has_aux`. `params` is any pytree of
        real or complex floating-point arrays (of a complex one the sum is what `jax.grad` returns, and the norm that
        of both parts). Randomness such as dropout takes its key from the example: carry one key per
        example in the batch, so that every pass of a step sees the same gradient.
      has_aux: whether the loss returns a pair.
      method: `"ghost"` finds the norms in one backward pass and the clipped sum in a second one, with the memory of
        ordinary training; `"bookkeeping"` takes one pass and keeps what a group's clipped sum is made of until the
        group's norm is complete; `"fused"` does the same, but clips a group that lives in one use within that use's
        backward pass; `"materialize"` is the reference, `vmap(grad)`; `"auto"` is `"fused"`, but takes a second pass
        for groups that are complete only at the end, where keeping factors of loops and checkpoints for them would
        need more memory than `jaxdp.per_example.FACTOR_ALLOWANCE` (1) times the parameters. In small enough
        microbatches they do not; `jaxdp.explain` says how small.
      rules: for parameters whose norm is found from matrix products, `"gram"` or `"materialize"` instead of what a cost
        model chooses, by path as `jaxdp.explain` prints it: `{"params['head']": "gram"}`. A `*` stands for any
        characters, everything else for itself, and of several patterns that match a path the last one counts.

    Returns:
      `f(params, batch, *, mask=None, microbatch_size=None, placement=None, shuffled=False) -> PerExampleGrads`, to be
      called under `jax.jit`. `batch` is a pytree with a leading batch axis; `mask` (`[batch]` booleans) marks the real
      examples of a padded batch; with `microbatch_size` the batch is worked through in pieces of that many examples, by
      a loop that stops after the last real one, so one compilation serves every batch that a sampler draws. `placement`
      says how batch and parameters lie on a mesh of devices (`jaxdp.parallel`); a microbatch then takes as many rows
      from each shard. `shuffled` promises that the real examples come first, in a secret and uniformly random order, as
      those of `jaxdp.sampling.PoissonSampling` do: the slack that rounding takes of the sensitivity
      (`PerExampleGrads.slack`) then grows with the microbatch instead of the batch.

    Raises:
      TypeError: a leaf of `params` has no gradient, or the loss is not a real floating-point scalar.
      ValueError: the batch's leaves differ in their leading axis, a parameter does not reach the loss, or a rule
        matches no parameter or has nothing to choose there.

    Example:
      >>> import jax.numpy as jnp, jaxdp
      >>> def loss(params, example):
      ...     return 0.5 * jnp.square(example["x"] @ params["w"] - example["y"])
      >>> params = {"w": jnp.zeros(2)}
      >>> batch = {"x": jnp.array([[3.0, 4.0], [1.0, 0.0]]), "y": jnp.array([1.0, 2.0])}
      >>> [f"{sq:.2f}" for sq in jaxdp.per_example_grad(loss)(params, batch).squared_norms()]
      ['25.00', '4.00']

    References:
      Li et al., Large Language Models Can Be Strong Differentially Private Learners, arXiv 2110.05679.
    """
    check_method(method)
    check_rules(rules, method)
    teach_jax()
    checked = _check.call_loss(loss, has_aux)

    def f(
        params: PyTree,
        batch: PyTree,
        *,
        mask: Array | None = None,
        microbatch_size: int | None = None,
        placement: Placement | None = None,
        shuffled: bool = False,
    ) -> PerExampleGrads:
        _check.check_params(params)
        size = _check.check_batch(batch, mask)
        micro = _check.check_microbatch_size(microbatch_size, size)
        if placement is not None:
            check_sizes(placement, size, micro)
        full = jnp.ones(size, bool) if mask is None else jnp.asarray(mask)
        # Rows are picked by traced numbers, which NumPy's arrays do not take.
        batch = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray | np.generic) else x, batch)
        return PerExampleGrads(
            checked, params, batch, full, micro, method, rules, size, placement=placement, shuffled=shuffled
        )

    return f
