"""Uses as kernels of convolutions."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxdp._wide import wide
from jaxdp.norms import outer_squared_norm, probe_matrix
from jaxdp.per_example._use import Operands, Outer, Use, product


class Convolved(Use):
    """`conv_general_dilated`, strided, dilated or grouped, in any number of dimensions."""

    @staticmethod
    def matches(eqn: Any, index: int) -> bool:
        """Whether the weight is the kernel of a convolution without batch groups."""
        return index == 1 and eqn.params["batch_group_count"] == 1

    def _patches(self, x: Array, ct: Array) -> tuple[Array, Array]:
        """Patches `[groups, T, C]` and cotangents `[groups, T, P]`, T being all output positions."""
        p = self.eqn.params
        dims, groups = p["dimension_numbers"], p["feature_group_count"]
        kernel = self.eqn.invars[1].aval.shape
        patches = jax.lax.conv_general_dilated_patches(
            wide(x),
            filter_shape=[kernel[d] for d in dims.rhs_spec[2:]],
            window_strides=p["window_strides"],
            padding=p["padding"],
            lhs_dilation=p["lhs_dilation"],
            rhs_dilation=p["rhs_dilation"],
            dimension_numbers=dims,
            precision=jax.lax.Precision.HIGHEST,
        )

        def canonical(y: Array) -> Array:
            batch, feature, *spatial = dims.out_spec
            y = y.transpose([feature, batch, *spatial])
            y = y.reshape(groups, y.shape[0] // groups, -1)
            return jnp.swapaxes(y, 1, 2)

        return canonical(patches), canonical(wide(ct))

    def squared_norm(
        self, operands: Operands, cts: Sequence[Array], key: PRNGKeyArray | None = None
    ) -> Float[Array, ""]:
        """A convolution is a matrix product with patches of its input."""
        norm = self.choice.estimator(*self.sizes(jnp.shape(cts[0])))
        if norm is not None:
            assert key is not None
            return self._sketched_squared_norm(operands[0], cts[0], key, norm.probes)
        return outer_squared_norm(*self._patches(operands[0], cts[0]), self.choice.rule)

    def _sketched_squared_norm(self, x: Array, ct: Array, key: PRNGKeyArray, probes: int) -> Float[Array, ""]:
        """The kernel's gradient with random combinations in place of its outputs: no patches are made."""
        dims = self.eqn.params["dimension_numbers"]
        feature = dims.out_spec[1]
        groups, _, _, outputs = self.sizes(jnp.shape(ct))
        grouped = jnp.moveaxis(wide(ct), feature, -1)
        grouped = grouped.reshape(*grouped.shape[:-1], groups, outputs)
        mixed = jnp.einsum(
            "...gp,gpm->...gm",
            grouped,
            probe_matrix(key, (groups, outputs, probes), grouped.dtype),
            precision="highest",
        )
        mixed = jnp.moveaxis(mixed.reshape(*mixed.shape[:-2], -1), -1, feature)
        sketch = self._kernel_gradient(x, mixed, mixed.shape[feature], jax.lax.Precision.HIGHEST)
        return jnp.sum(jnp.square(sketch))

    def sizes(self, ct_shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Groups, output positions, and the sizes of a group's patches and outputs."""
        groups, spec = self.eqn.params["feature_group_count"], self.eqn.params["dimension_numbers"].rhs_spec
        kernel = self.eqn.invars[1].aval.shape
        outputs = kernel[spec[0]]
        patch = product([kernel[d] for d in spec[1:]])
        return groups, product(ct_shape) // max(1, outputs), patch, outputs // groups

    def _kernel_gradient(self, x: Array, ct: Array, outputs: int | None = None, precision: Any = None) -> Array:
        """The gradient of a (folded) batch, of the kernel or of one like it with another number of outputs."""
        p, shape = self.eqn.params, list(self.eqn.invars[1].aval.shape)
        if outputs is not None:
            shape[p["dimension_numbers"].rhs_spec[0]] = outputs
        options = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers")

        def apply(w: Array) -> Array:
            return jax.lax.conv_general_dilated(
                wide(x),
                w,
                **{name: p[name] for name in options},
                feature_group_count=p["feature_group_count"],
                precision=p["precision"] if precision is None else precision,
            )

        struct = jax.ShapeDtypeStruct(tuple(shape), wide(x).dtype)
        return jax.linear_transpose(apply, struct)(wide(ct))[0]

    def gradient(self, operands: Operands, cts: Sequence[Array]) -> Array:
        """The kernel's gradient of one example."""
        return self._kernel_gradient(operands[0], cts[0])

    def weighted_sum(
        self,
        weights: Float[Array, " batch"],
        operands: Operands,
        batched: dict[int, bool],
        cts: Sequence[Array],
    ) -> Array:
        """The convolution's own backward pass over the whole batch, folded into its batch dimension."""
        dims = self.eqn.params["dimension_numbers"]
        x = operands[0] if batched[0] else jnp.broadcast_to(operands[0], (weights.shape[0], *operands[0].shape))

        def fold(y: Array, batch_dim: int) -> Array:
            y = jnp.moveaxis(y, 0, batch_dim)
            return y.reshape(*y.shape[:batch_dim], -1, *y.shape[batch_dim + 2 :])

        ct = wide(cts[0])
        ct = weights.astype(ct.dtype).reshape((-1,) + (1,) * (ct.ndim - 1)) * ct
        return self._kernel_gradient(fold(wide(x), dims.lhs_spec[0]), fold(ct, dims.out_spec[0]))

    @property
    def factor_operands(self) -> tuple[int, ...]:
        """The input."""
        return (0,)

    def factors(self, operands: Operands, cts: Sequence[Array]) -> Outer:
        """Runs of the equation follow each other along the output positions."""
        a, g = jax.vmap(self._patches)(operands[0], cts[0])
        along = lambda x: jnp.moveaxis(x, 1, 0).reshape(x.shape[1], -1, x.shape[3])
        return Outer(along(a), along(g))
