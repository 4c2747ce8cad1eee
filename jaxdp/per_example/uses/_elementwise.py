"""Uses whose gradient is as large as the equation's output."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxdp.lowering._weighted import weighted_total
from jaxdp.norms import Accumulation, Cost, meeting_of_arrays, of_array
from jaxdp.numerics._wide import as_real, is_complex, wide
from jaxdp.per_example.uses._costs import WORD, Priced, elements
from jaxdp.per_example.uses._use import Operands, Use


def unbroadcast(x: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which an elementwise operand of this shape was repeated."""
    lead = x.ndim - len(shape)
    repeated = [lead + i for i, n in enumerate(shape) if n == 1 and x.shape[lead + i] != 1]
    return jnp.sum(x, axis=(*range(lead), *repeated), keepdims=True).reshape(shape) if lead or repeated else x


class Elementwise(Use):
    """Uses whose gradient is no larger than the output: one vectorised reduction over the batch."""

    enlarges = False

    def norm_cost(self, cts: Sequence[Any]) -> Priced:
        """One gradient, squared."""
        size, output = elements(self, cts)
        return Priced("elementwise", Cost(float(output + 2 * size), WORD * output))

    def meeting(self, ct_shape: tuple[int, ...], terms: int, dtype: Any) -> Accumulation:
        """One array for each example."""
        del ct_shape, terms
        return meeting_of_arrays(self.choice.examples, dtype)

    def certificate(
        self, operands: Operands, cts: Sequence[Array], key: PRNGKeyArray | None = None
    ) -> Float[Array, "4"]:
        """What is known of the norm of `gradient`."""
        del key
        return of_array(self.gradient(operands, cts), self.choice.examples)

    def weighted_sum(
        self,
        weights: Float[Array, " batch"],
        operands: Operands,
        batched: dict[int, bool],
        cts: Sequence[Array],
    ) -> Array:
        """One reduction over the batch."""
        axes = {i: 0 if b else None for i, b in batched.items()}
        grads = jax.vmap(self.gradient, in_axes=(axes, 0))(operands, list(cts))
        return weighted_total(weights, grads)


class Escaped(Elementwise):
    """A parameter that becomes an ordinary value (a loop's initial state, say): the gradient is the cotangent."""

    saved = ()
    bilinear = True

    def weight_shape(self, cts: Sequence[Any]) -> tuple[int, ...]:
        """The cotangent's shape."""
        if self.eqn is not None:
            return super().weight_shape(cts)
        return (*jnp.shape(cts[0]), 2) if is_complex(cts[0]) else jnp.shape(cts[0])

    def gradient(self, operands: Operands, cts: Sequence[Array]) -> Array:
        """The cotangent."""
        return as_real(wide(cts[0]))


class Added(Escaped):
    """`add` and `sub`: the gradient is the output's cotangent, negated for a subtrahend."""

    def _sign(self, index: int, ct: Array) -> Array:
        return -ct if self.eqn.primitive.name == "sub" and index == 1 else ct

    def gradient(self, operands: Operands, cts: Sequence[Array]) -> Array:
        """The signed cotangent."""
        return unbroadcast(self._sign(self.index, wide(cts[0])), self.eqn.invars[self.index].aval.shape)

    def pull_back(self, operands: Operands, wanted: Sequence[int], cts: Sequence[Array]) -> list[Array]:
        """The signed cotangents: no operand's value is needed, so none is kept for the backward pass."""
        avals = [self.eqn.invars[i].aval for i in wanted]
        return [
            unbroadcast(self._sign(i, cts[0]), aval.shape).astype(aval.dtype)
            for i, aval in zip(wanted, avals, strict=True)
        ]


class Multiplied(Elementwise):
    """`mul`: the gradient is the output's cotangent times the other factor."""

    bilinear = True

    def gradient(self, operands: Operands, cts: Sequence[Array]) -> Array:
        """Elementwise product."""
        return unbroadcast(wide(cts[0]) * wide(operands[1 - self.index]), self.eqn.invars[self.index].aval.shape)
