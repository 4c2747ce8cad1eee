"""A convolution as a matrix product with patches of its input, cut out of it without another convolution."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

# Patches are put together from one slice for each place in the kernel, up to this many; beyond, axis by axis.
_SLICES = 32


class Window:
    """Where a convolution's kernel meets its input.

    Attributes:
      groups: feature groups.
      kernel: the kernel's lengths along the spatial axes.
    """

    def __init__(self, params: dict[str, Any], kernel_shape: tuple[int, ...]):
        self._params, self._shape = params, kernel_shape
        self.groups: int = params["feature_group_count"]
        self.kernel = tuple(kernel_shape[d] for d in params["dimension_numbers"].rhs_spec[2:])

    def outputs(self, ct: Array) -> Array:
        """One example's cotangents `[*groups, T, P]`, T being all output positions; one group has no axis."""
        return self._by_group(ct, self._params["dimension_numbers"].out_spec, 0)

    def patches(self, x: Array, ct_shape: tuple[int, ...]) -> Array:
        """One example's patches `[*groups, T, C]`, C running over places in the kernel, then over features."""
        p = self._params
        sizes = [ct_shape[d] for d in p["dimension_numbers"].out_spec[2:]]
        x = self._by_group(x, p["dimension_numbers"].lhs_spec, len(sizes))
        lead = x.ndim - 1 - len(sizes)
        edges = [(lo, hi, step - 1) for (lo, hi), step in zip(p["padding"], p["lhs_dilation"], strict=True)]
        padded = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0)] * lead + edges + [(0, 0, 0)])

        def cut(y: Array, place: dict[int, int]) -> Array:
            """What the kernel's elements at these places (by spatial axis) meet."""
            starts, limits, strides = [0] * y.ndim, list(y.shape), [1] * y.ndim
            for axis, at in place.items():
                start, stride = at * p["rhs_dilation"][axis], p["window_strides"][axis]
                starts[lead + axis], strides[lead + axis] = start, stride
                limits[lead + axis] = start + (sizes[axis] - 1) * stride + 1
            return jax.lax.slice(y, starts, limits, strides)

        places = list(itertools.product(*map(range, self.kernel)))
        if 0 in sizes:
            # A slice must not end before it begins.
            return jnp.zeros((*x.shape[: lead - 1], 0, len(places) * x.shape[-1]), x.dtype)
        if len(places) <= _SLICES:
            found = jnp.concatenate([cut(padded, dict(enumerate(place))) for place in places], axis=-1)
        else:
            found = padded
            for axis in reversed(range(len(sizes))):
                found = jnp.concatenate([cut(found, {axis: at}) for at in range(self.kernel[axis])], axis=-1)
        return found.reshape(*found.shape[: lead - 1], -1, found.shape[-1])

    def unfold(self, product: Array) -> Array:
        """A gradient `[*groups, P, C]`, in the kernel's own layout."""
        spec = self._params["dimension_numbers"].rhs_spec
        found = product.reshape(self._shape[spec[0]], *self.kernel, self._shape[spec[1]])
        found = jnp.moveaxis(found, -1, 1)
        return found.transpose([spec.index(d) for d in range(len(spec))])

    def _by_group(self, x: Array, spec: tuple[int, ...], spatial: int) -> Array:
        """`[*groups, batch, *spatial, features]`, with the batch and `spatial` axes kept; all in one for none."""
        batch, feature, *space = spec
        x = x.transpose([batch, *space, feature])
        if self.groups > 1:
            x = jnp.moveaxis(x.reshape(*x.shape[:-1], self.groups, -1), -2, 0)
        if spatial:
            return x
        lead = 1 if self.groups > 1 else 0
        return x.reshape(*x.shape[:lead], -1, x.shape[-1])
