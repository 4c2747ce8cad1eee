"""`nnx.Optimizer` for per-example gradients."""

from typing import Any

import jax
import optax
from flax import nnx

from jaxdp.per_example import PerExampleGrads


class Optimizer(nnx.Optimizer):
    """`nnx.Optimizer`, whose transformation may begin with clipping and noise.

    It is made and saved as Flax's, and its `update` takes what `jaxdp.nnx.per_example_grad` returns.

    Args:
      model: the module.
      tx: a chain such as `optax.chain(jaxdp.transforms.dpsgd(...), optax.adamw(1e-3))`.
      wrt: which variables are trained, the same filter as for `jaxdp.nnx.per_example_grad`.

    Raises:
      ValueError: (by `update`) gradients of other variables than these.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxdp, jaxdp.nnx
      >>> from flax import nnx
      >>> model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
      >>> keys = jaxdp.sampling.streams(jax.random.key(1))
      >>> noise = jaxdp.transforms.add_gaussian_noise(1.0, keys.noise)
      >>> tx = optax.chain(jaxdp.transforms.clip(1.0), noise, optax.scale(1 / 4), optax.adamw(1e-3))
      >>> optimizer = jaxdp.nnx.Optimizer(model, tx, wrt=nnx.Param)
      >>> @nnx.jit
      ... def step(model, optimizer, batch):
      ...     grads = jaxdp.nnx.per_example_grad(lambda model, x: jnp.sum(model(x) ** 2))(model, batch)
      ...     optimizer.update(model, grads)
      >>> step(model, optimizer, jnp.ones((4, 3)))
    """

    def update(self, model: Any, grads: Any, /, **kwargs: Any) -> Any:
        """Update the model's variables and the optimiser's state with a batch's per-example gradients."""
        if not isinstance(grads, PerExampleGrads):
            return super().update(model, grads, **kwargs)
        tx: Any = self.tx

        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
            del updates
            if jax.tree.structure(params) != jax.tree.structure(grads.params):
                raise ValueError(
                    "grads are of other variables than those that the optimiser was made for: give the same wrt to "
                    "jaxdp.nnx.per_example_grad and to jaxdp.nnx.Optimizer."
                )
            inner: Any = optax.with_extra_args_support(tx).update
            return inner(grads, state, params, **extra)

        # Flax takes gradients apart as if they were a module: it is given the variables, and they are not looked at.
        self.tx = optax.GradientTransformationExtraArgs(tx.init, update)
        try:
            return super().update(model, nnx.state(model, self.wrt), **kwargs)
        finally:
            self.tx = tx
