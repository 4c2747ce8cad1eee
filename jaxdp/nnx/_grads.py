"""Per-example gradients of a module's loss, with random streams that belong to the example."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, PRNGKeyArray

from jaxdp.per_example import PerExampleGrads, Placement
from jaxdp.per_example import per_example_grad as of_function
from jaxdp.per_example._api import Method
from jaxdp.per_example.tracing._check import check_batch

PyTree = Any


def per_example_grad(
    loss: Callable,
    *,
    wrt: Any = nnx.Param,
    has_aux: bool = False,
    method: Method = "auto",
    rules: Mapping[str, Any] | None = None,
) -> Callable[..., PerExampleGrads]:
    r"""Per-example gradients $g_i = \nabla_\theta\, \ell(m_\theta, x_i)$ of an NNX module, read as `nnx.grad`.

    Inside the loss the model's random streams (`nnx.Rngs`) are the example's own: each of them starts from a key made
    of `key` and the example's place in the batch, so that two examples never share a dropout mask and every pass of a
    step sees the same one. What the loss writes to the model (counters, statistics) is left behind.

    Args:
      loss: `loss(model, example) -> scalar` of one example, or `(scalar, aux)` with `has_aux`.
      wrt: which variables are trained, a filter as for `nnx.grad`; it is `nnx.Optimizer`'s, too.
      has_aux: whether the loss returns a pair.
      method: as for `jaxdp.per_example_grad`.
      rules: as for `jaxdp.per_example_grad`, by the paths of the model's variables.

    Returns:
      `f(model, batch, *, key=None, mask=None, microbatch_size=None, placement=None) -> PerExampleGrads`, for
      `Optimizer.update` or any chain. `key` is a typed PRNG key that is new in every step; a model that draws random
      numbers needs it.

    Raises:
      ValueError: the model draws random numbers and there is no key.
      TypeError: the key is no single typed PRNG key.

    Example:
      >>> import jax, jax.numpy as jnp, jaxdp.nnx
      >>> from flax import nnx
      >>> model = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
      >>> loss = lambda model, x: jnp.sum(model(x) ** 2)
      >>> grads = jaxdp.nnx.per_example_grad(loss)(model, jnp.ones((4, 3)), key=jax.random.key(2))
      >>> grads.squared_norms().shape
      (4,)
    """

    def f(
        model: nnx.Module,
        batch: PyTree,
        *,
        key: PRNGKeyArray | None = None,
        mask: Array | None = None,
        microbatch_size: int | None = None,
        placement: Placement | None = None,
    ) -> PerExampleGrads:
        size = check_batch(batch, mask)
        graph, params, keys, rest = nnx.split(model, wrt, nnx.RngKey, ...)
        params, keys, rest = nnx.as_pure(params), nnx.as_pure(keys), nnx.as_pure(rest)

        def of_example(params: PyTree, example: tuple[PyTree, PRNGKeyArray | None]) -> Any:
            x, own = example
            own_keys = keys if own is None else _streams(keys, own)
            mine = nnx.merge(graph, params, own_keys, rest, copy=True)
            found = loss(mine, x)
            _check_writes(mine, wrt, rest, has_key=own is not None)
            return found

        each = None if key is None else jax.random.split(_checked(key), size)
        run = of_function(of_example, has_aux=has_aux, method=method, rules=rules)
        return run(params, (batch, each), mask=mask, microbatch_size=microbatch_size, placement=placement)

    return f


def _checked(key: Any) -> PRNGKeyArray:
    typed = isinstance(key, jax.Array) and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed or key.shape != ():
        raise TypeError(
            f"key is {type(key).__name__} of shape {jax.numpy.shape(key)}: give one typed PRNG key for each step, such "
            "as jax.random.fold_in(jax.random.key(seed), step)."
        )
    return key


def _streams(keys: PyTree, own: PRNGKeyArray) -> PyTree:
    """The model's keys, replaced by as many of the example's."""
    leaves, treedef = jax.tree.flatten(keys)
    return treedef.unflatten([jax.random.fold_in(own, i) for i in range(len(leaves))])


def _check_writes(model: nnx.Module, wrt: Any, before: PyTree, *, has_key: bool) -> None:
    """Refuse random numbers that all examples share, and warn of what is written in vain."""
    _, _, _, after = nnx.split(model, wrt, nnx.RngKey, ...)
    was = dict(jax.tree_util.tree_leaves_with_path(before))
    is_variable = lambda x: isinstance(x, nnx.Variable)
    for path, variable in jax.tree_util.tree_leaves_with_path(after, is_leaf=is_variable):
        if not is_variable(variable) or path not in was or variable.get_value() is was[path]:
            continue
        name = "model" + jax.tree_util.keystr(path)
        if isinstance(variable, nnx.RngCount):
            if not has_key:
                raise ValueError(
                    f"{name} counts random numbers that the loss draws, and there is no key: give key=, a typed PRNG "
                    "key that is new in every step, or call model.eval() first."
                )
        else:
            warnings.warn(
                f"{name} ({type(variable).__name__}) is written inside the loss of one example, where it is lost and "
                "describes that example alone: use a layer without statistics of a batch (GroupNorm, LayerNorm), or "
                "call model.eval() first.",
                stacklevel=2,
            )
