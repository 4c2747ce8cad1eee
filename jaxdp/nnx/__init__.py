"""Flax NNX models in private training: gradients of a module's loss, and an optimiser that takes them."""

from jaxdp.nnx._grads import per_example_grad
from jaxdp.nnx._optimizer import Optimizer

__all__ = ["Optimizer", "per_example_grad"]
