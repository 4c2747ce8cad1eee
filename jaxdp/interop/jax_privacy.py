"""For programs written against jax_privacy 2: its `clipped_grad` and its execution plan, on jaxdp's gradients."""

from jaxdp.interop._clipped_grad import AuxiliaryOutput, ClippedGrad, clipped_grad
from jaxdp.interop._execution_plan import execution_plan

__all__ = ["AuxiliaryOutput", "ClippedGrad", "clipped_grad", "execution_plan"]
