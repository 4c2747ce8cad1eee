"""What jax_privacy's keywords mean: which argument plays which part, and what is refused."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdp._numbers import is_number
from jaxdp._shown import setting

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Roles:
    """Which positional argument of the user's function plays which part.

    Attributes:
      argnums: what is differentiated, as given: an integer stands for that argument, a sequence for a tuple of them.
      batch_argnums: those with a leading batch axis.
      keep_batch_dim: whether the function sees an example with a batch axis of size 1.
      prng_argnum: a key, which is split into one for each example.
    """

    argnums: int | tuple[int, ...]
    batch_argnums: tuple[int, ...]
    keep_batch_dim: bool
    prng_argnum: int | None

    @property
    def trained(self) -> tuple[int, ...]:
        """`argnums` as a tuple."""
        return _as_tuple(self.argnums)

    def params(self, args: Sequence[Any]) -> PyTree:
        """What is differentiated; numbers and NumPy arrays become JAX's."""
        chosen = tuple(jax.tree.map(_as_array, args[i]) for i in self.trained)
        return chosen[0] if isinstance(self.argnums, int) else chosen

    def batch(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Everything with a batch axis: batch arguments, keyword arguments, and one key for each example."""
        needed = max(self.trained + self.batch_argnums + (() if self.prng_argnum is None else (self.prng_argnum,)))
        if len(args) <= needed:
            raise ValueError(f"argument {needed} is missing: the call has {len(args)} positional arguments.")
        own = {"args": {i: args[i] for i in self.batch_argnums}, "kwargs": kwargs}
        batch: dict[str, Any] = jax.tree.map(_as_array, own) | {"keys": {}}
        if self.prng_argnum is not None:
            size = batch_size(batch)
            split = lambda key: jax.random.split(key, size)
            batch["keys"][self.prng_argnum] = jax.tree.map(split, args[self.prng_argnum])
        return batch

    def loss(self, fun: Callable, args: Sequence[Any]) -> Callable[[PyTree, dict[str, Any]], Any]:
        """The user's function as one of the parameters and of one example; other arguments are shared."""

        def loss(params: PyTree, example: dict[str, Any]) -> Any:
            own = (params,) if isinstance(self.argnums, int) else params
            given = dict(enumerate(args)) | dict(zip(self.trained, own, strict=True)) | example["keys"]
            for i, x in example["args"].items():
                given[i] = jax.tree.map(lambda leaf: leaf[None], x) if self.keep_batch_dim else x
            return fun(*given.values(), **example["kwargs"])

        return loss


def roles(argnums: Any, batch_argnums: Any, keep_batch_dim: bool, prng_argnum: int | None) -> Roles:
    """Refuse parts that overlap."""
    trained, batched = _as_tuple(argnums), _as_tuple(batch_argnums)
    for name, indices in (("argnums", trained), ("batch_argnums", batched)):
        if not indices or min(indices) < 0 or len(set(indices)) != len(indices):
            raise ValueError(f"{name} is {indices}: give different argument numbers from 0 on, at least one.")
    if set(trained) & set(batched):
        raise ValueError(
            f"argnums is {trained} and batch_argnums is {batched}: what is differentiated is shared by all examples, "
            "so no argument can be in both."
        )
    if prng_argnum is not None and (prng_argnum < 0 or prng_argnum in trained + batched):
        raise ValueError(
            f"prng_argnum is {prng_argnum}: give the number of an argument that holds one key and is neither in "
            "argnums nor in batch_argnums."
        )
    return Roles(argnums if isinstance(argnums, int) else trained, batched, keep_batch_dim, prng_argnum)


def batch_size(batch: dict[str, Any]) -> int:
    """The leading axis of the first batch argument."""
    leaves = jax.tree.leaves(batch["args"])
    if not leaves or not np.shape(leaves[0]):
        raise ValueError("batch_argnums names an argument without a batch axis: give arrays with a leading batch axis.")
    return np.shape(leaves[0])[0]


def example_mask(is_padding_example: Any, size: int) -> jax.Array:
    """True where a row is an example."""
    if is_padding_example is None:
        return jnp.ones(size, bool)
    padding = jnp.asarray(is_padding_example)
    if padding.shape != (size,):
        raise ValueError(f"is_padding_example has shape {padding.shape} where the batch needs ({size},).")
    if padding.dtype != jnp.bool_:
        raise TypeError(f"is_padding_example has dtype {padding.dtype}: give booleans, True for padding.")
    return ~padding


def check_clipping(l2_clip_norm: Any, normalize_by: Any) -> None:
    """Refuse what bounds nothing."""
    if isinstance(l2_clip_norm, jax.Array):
        if l2_clip_norm.shape != () or not jnp.issubdtype(l2_clip_norm.dtype, jnp.floating):
            raise TypeError("l2_clip_norm is an array that is no floating-point scalar: give one clipping norm.")
    elif not is_number(l2_clip_norm):
        raise TypeError(f"l2_clip_norm is {setting(l2_clip_norm)}: give the clipping norm as a number.")
    elif not l2_clip_norm >= 0:
        raise ValueError(f"l2_clip_norm is {l2_clip_norm}: it must be 0 or more.")
    if not is_number(normalize_by):
        raise TypeError(
            f"normalize_by is {setting(normalize_by)}: give a public number, such as the expected batch size."
        )
    if not (math.isfinite(normalize_by) and normalize_by > 0):
        raise ValueError(f"normalize_by is {normalize_by}: it must be positive and finite.")


def refuse_unserved(pre_clipping_transform: Any, nan_safe: Any, dtype: Any, spmd_axis_name: Any) -> None:
    """One sentence for each argument that jax_privacy serves and jaxdp does not."""
    if pre_clipping_transform is not None:
        raise ValueError(
            "pre_clipping_transform is given, but no example's gradient is ever formed here that it could be applied "
            "to: to clip in other coordinates, scale the parameters inside the loss, or use jax_privacy's clipped_grad."
        )
    if nan_safe is not True:
        raise ValueError(
            f"nan_safe is {nan_safe!r}: without it one NaN voids the sensitivity, and jaxdp has no such mode; leave it "
            "at True."
        )
    if spmd_axis_name is not None:
        raise ValueError(
            f"spmd_axis_name is {spmd_axis_name!r}: jaxdp's sums are programs on global arrays, so shard the batch "
            "with jax.sharding and leave it at None."
        )
    if dtype is not None and not (jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits >= 32):
        raise ValueError(
            f"dtype is {jnp.dtype(dtype).name}: rounding the clipped sum to it can move the sum by more than its "
            "sensitivity, so use float32 or wider here and cast after the noise."
        )


def _as_tuple(indices: Any) -> tuple[int, ...]:
    return (indices,) if isinstance(indices, int) else tuple(indices)


def _as_array(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
