"""Zeroth-order training: differences of two losses along shared random directions, with no backward pass."""

import math
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from jaxdp._numbers import is_number, is_whole, takes_numbers
from jaxdp._shown import of_shapes, setting
from jaxdp.numerics._normals import standard_normal
from jaxdp.numerics._wide import as_like, as_real, wide_dtype
from jaxdp.per_example import PerExampleGrads, Placement, per_example_grad
from jaxdp.transforms._clipped_sum import ClippedSum, check_key, describe, refuse_masked
from jaxdp.transforms._grape import GRAPE, FullSpace, check_output
from jaxdp.transforms._subspace import Subspace

PyTree = Any

# Folded into the caller's key, so that the same key given to the noise or to a sampler yields other bits.
_DIRECTION_TAG = zlib.crc32(b"jaxdp.transforms.zeroth_order")


class ZerothOrderState(NamedTuple):
    """The directions' key, the number of updates so far, and the inner chain's state."""

    __repr__ = of_shapes

    key: PRNGKeyArray
    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    inner: PyTree


@takes_numbers
def zeroth_order(
    inner: optax.GradientTransformation,
    *,
    key: PRNGKeyArray,
    directions: int = 1,
    scale: float | int = 1e-3,
) -> GRAPE:
    r"""Privatise differences of losses along random directions: two forward passes each, no backward pass.

    With $z_1, \dots, z_q \sim \mathcal N(0, I)$ shared by the batch, drawn anew at each step,

    $$d_{ij} = \frac{\ell_i(\theta + \lambda z_j) - \ell_i(\theta - \lambda z_j)}{2\lambda}, \qquad
      c = \text{inner}(d_1, \dots, d_B) \in R^q, \qquad \text{update} = \frac1q \sum_j c_j z_j.$$

    The memory is that of inference, and of one perturbed copy of the parameters. Directions are made again from the key
    for the update, never stored.

    **Privacy.** The directions do not depend on the data, so a step releases what `inner` does: example i's vector
    $d_i$ is clipped to C in $R^q$ and the sum's sensitivity is C under adding or removing an example. All q directions
    of a step are one release. A loss that is not finite contributes zero.

    Args:
      inner: from per-example gradients to updates without an optimiser's state, such as `dpsgd(...)`: its coordinates
        mean other directions at every step, so put momentum or Adam behind `zeroth_order`.
      key: a typed PRNG key for the directions, which may be public; other than the noise's stream even if it is the
        key given there.
      directions: q, the number of directions of a step.
      scale: $\lambda > 0$, the length of the finite difference in units of the parameters. The losses' rounding error
        is divided by it: parameters in half precision need about 1e-2.

    Returns:
      An `optax.GradientTransformation` from `PerExampleGrads` to updates like the parameters, in float32 or better.

    Raises:
      ValueError: an impossible argument, named; at init, an optimiser with moments inside.
      TypeError: an argument of another kind; at update, something else than `PerExampleGrads`, or a chain without clip
        and noise.

    Example:
      >>> import jax, jax.numpy as jnp, jaxdp, optax
      >>> private = jaxdp.transforms.dpsgd(
      ...     max_norm=1.0, noise_multiplier=0.8, expected_batch_size=2.0, key=jax.random.key(0)
      ... )
      >>> tx = optax.chain(jaxdp.transforms.zeroth_order(private, key=jax.random.key(1)), optax.sgd(1e-3))
      >>> params = jnp.ones(2)
      >>> grads = jaxdp.per_example_grad(lambda w, x: w @ x)(params, jnp.array([[3.0, 4.0], [0.0, 0.5]]))
      >>> updates, state = tx.update(grads, tx.init(params), params)

    References:
      Zhang et al., DPZero, arXiv 2310.09639. Tang et al., Private Fine-tuning with Zeroth-order Optimization, arXiv
      2401.04343.
    """
    if not is_whole(directions):
        raise TypeError(f"directions is {setting(directions)}: give a whole number.")
    if directions < 1:
        raise ValueError(f"directions is {directions}: it must be at least 1.")
    if not is_number(scale):
        raise TypeError(f"scale is {setting(scale)}: give a Python number.")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale is {scale}: it must be positive and finite.")
    check_key(key)
    # A second axis, so that no other vector in a state (thresholds by group, say) looks like a moment.
    coordinates = jax.ShapeDtypeStruct((directions, 1), jnp.float32)
    line = Subspace(jax.tree.structure(0), (None,), (coordinates,))

    def init(params: PyTree) -> ZerothOrderState:
        refuse_masked(params, "zeroth_order")
        state = inner.init(jnp.zeros(coordinates.shape, coordinates.dtype))
        if any(map(line.fits, jax.tree.leaves(state))):
            raise ValueError(
                "the chain inside zeroth_order keeps moments of coordinates that mean other directions at every step: "
                "put the optimiser behind it, as optax.chain(zeroth_order(dpsgd(...), ...), optimiser)."
            )
        return ZerothOrderState(jax.random.clone(key), jnp.zeros((), jnp.int32), state)

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        if not isinstance(updates, PerExampleGrads):
            what = describe(updates) if isinstance(updates, ClippedSum) else "gradients that are computed already"
            raise TypeError(
                f"zeroth_order was given {what}, where it needs the loss itself: put it first in the chain, with clip "
                "and add_gaussian_noise inside, and pass jaxdp.per_example_grad(loss)(params, batch)."
            )
        step_key = jax.random.fold_in(jax.random.fold_in(state.key, _DIRECTION_TAG), state.count)
        batch_only = None if updates.placement is None else Placement(updates.placement.batch)

        def drawn(number: Array) -> PyTree:
            direction = _direction(updates.params, jax.random.fold_in(step_key, number))
            shardings = updates.sum_shardings(direction)
            return (
                direction if shardings is None else jax.tree.map(jax.lax.with_sharding_constraint, direction, shardings)
            )

        def slope(number: Array) -> Array:
            direction = drawn(number)
            ahead, behind = (
                updates.values_at(_moved(updates.params, direction, sign * scale)).astype(jnp.float32)
                for sign in (1.0, -1.0)
            )
            return (ahead - behind) / (2.0 * scale)

        # One direction at a time, so that one perturbed copy of the parameters is alive.
        slopes = jax.lax.map(slope, jnp.arange(directions)).T[..., None]
        # The gradient of <c, d_i> is d_i: clipping, masks and groups are those of any other gradient.
        scalars: Any = per_example_grad(lambda c, d: jnp.sum(c * d))(
            jnp.zeros(coordinates.shape, coordinates.dtype), slopes, mask=updates.mask, placement=batch_only
        )
        nowhere: Any = FullSpace(coordinates)
        outcome, inner_state = inner.update(scalars, state.inner, nowhere)
        check_output("zeroth_order", outcome, line)
        found: Any = outcome

        def add(total: PyTree, number: Array) -> tuple[PyTree, None]:
            direction = drawn(number)
            share = found[number, 0] / directions
            # As `jax.grad` has it: the gradient of a complex parameter is the conjugate of the direction it rises in.
            return jax.tree.map(lambda t, z: t + share.astype(z.dtype) * jnp.conj(z), total, direction), None

        zeros = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), wide_dtype(x.dtype)), updates.params)
        total, _ = jax.lax.scan(add, zeros, jnp.arange(directions))
        return total, ZerothOrderState(state.key, state.count + 1, inner_state)

    transformation = GRAPE(init, update)
    transformation.chain = inner
    return transformation


def _direction(params: PyTree, key: PRNGKeyArray) -> PyTree:
    """A standard normal direction, every parameter from a key of its own."""
    leaves, treedef = jax.tree.flatten(params)

    def draw(i: int, x: Array) -> Array:
        wide = jax.ShapeDtypeStruct(jnp.shape(x), wide_dtype(x.dtype))
        parts = jax.eval_shape(as_real, wide)
        return as_like(standard_normal(jax.random.fold_in(key, i), parts.shape, parts.dtype), wide)

    return treedef.unflatten([draw(i, x) for i, x in enumerate(leaves)])


def _moved(params: PyTree, direction: PyTree, by: float) -> PyTree:
    return jax.tree.map(lambda x, z: (x.astype(z.dtype) + by * z).astype(x.dtype), params, direction)
