"""The state of a run, and the one jitted function that moves it forward."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from jaxdp import per_example_grad, sampling
from jaxdp._shown import of_shapes
from jaxdp.per_example import Placement
from jaxdp.transforms._told_slack import told_slack

PyTree = Any
Params = dict[str, Array]


class TrainState(NamedTuple):
    """Everything that a run needs to go on exactly as if it had never stopped.

    Attributes:
      params: every parameter that some phase trains, by path.
      opt_state: the state of the running phase's transformations, with the noise stream's key and count.
      key: the root of all randomness; every draw is a function of it and of the step.
      step: updates done so far, of all phases.
    """

    __repr__ = of_shapes

    params: Params
    opt_state: PyTree
    key: PRNGKeyArray
    step: Int[Array, ""]


@dataclasses.dataclass(frozen=True, eq=False)
class StepFunction:
    """A phase's training step.

    Attributes:
      run: `(state, frozen, data) -> (state, private)`; the given state's buffers are reused.
      traces: one entry for each time it was traced: the share of the clipping norm that the noise covers for rounding.
    """

    run: Callable[[TrainState, Params, PyTree], tuple[TrainState, dict[str, Array]]]
    traces: list[float]

    def rounding(self, state: TrainState, frozen: Params, data: PyTree) -> float:
        """That share, before anything is run."""
        jax.eval_shape(self.run, state, frozen, data)
        return max(self.traces)


def make_step(
    loss: Callable[[Params, Params, PyTree], Array],
    *,
    sampler: Any,
    transformation: optax.GradientTransformation,
    trained: tuple[str, ...],
    microbatch_size: int | None,
    dropout: bool = False,
    private_metrics_norm: float | None = None,
    placement: Placement | None = None,
    state_shardings: PyTree | None = None,
) -> StepFunction:
    r"""Sample a batch, privatise its gradients, update.

    $\theta_{t+1} = \theta_t + \mathrm{tx}\big(\{\nabla \ell(\theta_t, x_i)\}_{i \in B_t}\big)$ where the batch $B_t$
    is a function of the root key and of t.

    Args:
      loss: `loss(trained, frozen, example)`, of one example.
      sampler: draws indices and mask from a key and the step, in random order; of a full batch, the data themselves
        must lie in a secret and uniformly random order.
      transformation: from per-example gradients to updates.
      trained: the paths that this phase trains.
      microbatch_size: examples at a time; None for the whole batch.
      dropout: whether examples carry a key, as a field `key`.
      private_metrics_norm: if given, the step also returns the drawn batch's size, its mean loss, and the share of its
        gradients longer than this norm. They are **private**: no noise is added.
      placement: where batches and what is trained lie on a mesh; None on one device.
      state_shardings: how the state lies on it, before and after.

    Returns:
      The compiled step.
    """
    traces: list[float] = []

    def step(state: TrainState, frozen: Params, data: PyTree) -> tuple[TrainState, dict[str, Array]]:
        streams = sampling.streams(state.key)
        if isinstance(sampler, sampling.FullBatch) and placement is None:
            # A gather of all rows would be a copy of the whole data set.
            indices, batch, mask = jnp.arange(sampler.num_examples), data, None
        else:
            drawn = sampler.sample(streams.sampling, state.step)
            indices, mask = drawn.indices, drawn.mask
            here = lambda data, drawn: jax.tree.map(lambda rows: rows[drawn.indices], data)
            batch = (here if placement is None else sampler.take)(data, drawn)  # pyright: ignore[reportAttributeAccessIssue]
        if dropout:
            key = jax.random.fold_in(streams.dropout, state.step)
            batch = batch._replace(key=jax.vmap(lambda i: jax.random.fold_in(key, i))(indices))
        params = {path: state.params[path] for path in trained}
        fixed = frozen | {path: x for path, x in state.params.items() if path not in params}
        grads = per_example_grad(lambda p, example: loss(p, fixed, example))(
            params, batch, mask=mask, microbatch_size=microbatch_size, placement=placement, shuffled=True
        )
        with told_slack() as slacks:
            updates, opt_state = transformation.update(grads, state.opt_state, params)  # pyright: ignore
        traces.append(max(slacks, default=0.0))
        updated = state.params | optax.apply_updates(params, updates)  # pyright: ignore
        private = {} if private_metrics_norm is None else _private(grads, mask, private_metrics_norm)
        return TrainState(updated, opt_state, state.key, state.step + 1), private

    shardings: dict[str, Any] = {} if state_shardings is None else {"out_shardings": (state_shardings, None)}
    return StepFunction(jax.jit(step, donate_argnums=0, **shardings), traces)


def _private(grads: Any, mask: Array | None, norm: float) -> dict[str, Array]:
    """What the operator asked to see of the drawn batch."""
    real = jnp.ones(grads.batch_size, bool) if mask is None else mask
    count = jnp.maximum(jnp.sum(real), 1).astype(jnp.float32)
    clipped = real & (grads.squared_norms() > norm**2)
    return {
        "train_loss": jnp.sum(jnp.where(real, grads.values, 0.0)) / count,
        "batch_size": jnp.sum(real),
        "clipped_share": jnp.sum(clipped).astype(jnp.float32) / count,
    }
