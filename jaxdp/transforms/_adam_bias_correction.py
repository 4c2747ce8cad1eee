"""Adam whose second moment is rid of the known variance of the noise."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxdp._numbers import is_number
from jaxdp._shown import setting
from jaxdp.numerics._wide import is_complex, real_dtype, wide_dtype
from jaxdp.transforms._known_noise import check_stddev, known_noise

PyTree = Any


class CorrectedAdamState(NamedTuple):
    """The number of updates, the first moment, and the second moment less that of the noise."""

    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: PyTree
    nu: PyTree


def scale_by_corrected_adam(
    noise_stddev: Any = None,
    *,
    b1: float | int = 0.9,
    b2: float | int = 0.999,
    eps: float | int = 1e-8,
    floor: float | int = 0.05,
) -> optax.GradientTransformation:
    r"""Adam's scaling by the second moment of the gradient itself, without that of the noise.

    The noise of std s adds its variance to Adam's second moment, which then hardly differs between coordinates. With
    the usual unbiased averages $\hat m$ of g and $\hat v$ of $g^2 - s^2$ (each step's own s),

    $$u = \hat m \Big/ \Big(\sqrt{\max(\hat v,\ \text{floor}\cdot s^2)} + \text{eps}\Big).$$

    For constant noise $\hat v$ is the second moment less $s^2$. Without noise this is `optax.scale_by_adam`.

    Of complex entries $g^2$ is $|g|^2$, and $s^2$ the noise's variance in both parts together, as in optax's Adam.
    s comes with the gradient, as in `rmt_denoise`: see `with_stddev` of `dpsgd`. What `rmt_denoise` returns does not
    have noise of a known variance any more, so that the two cannot be used together.

    Args:
      noise_stddev: s, only for a gradient that does not carry it: a number, or a pytree like the gradient.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root.
      floor: the least second moment, as a share of the noise's variance, so that it does not depend on the gradient's
        unit. In coordinates of pure noise $\hat v$ is about 0, and a lower floor lets them move further:
        with 0.05 up to 4.5 times as far as under Adam.

    Returns:
      An `optax.GradientTransformation` from a `NoisyGradient` (or, with `noise_stddev`, a plain pytree) to a plain
      pytree; put `optax.scale_by_learning_rate` behind it.

    Raises:
      ValueError: an impossible argument, named; at update, a std that is given twice.
      TypeError: an argument of another kind; at update, a gradient whose noise is unknown, or private values.

    Example:
      >>> import jax, jax.numpy as jnp, jaxdp, optax
      >>> private = jaxdp.transforms.dpsgd(
      ...     max_norm=1.0, noise_multiplier=0.8, expected_batch_size=2.0, key=jax.random.key(0), with_stddev=True
      ... )
      >>> corrected = jaxdp.transforms.scale_by_corrected_adam()
      >>> tx = optax.chain(private, corrected, optax.scale_by_learning_rate(1e-3))
      >>> params = jnp.ones(2)
      >>> grads = jaxdp.per_example_grad(lambda w, x: w @ x)(params, jnp.array([[3.0, 4.0], [0.0, 0.5]]))
      >>> updates, state = tx.update(grads, tx.init(params), params)

    References:
      Tang et al., DP-AdamBC: Your DP-Adam Is Actually DP-SGD (Unless You Apply Bias Correction), arXiv 2312.14334.
    """
    check_stddev(noise_stddev)
    _check(b1, b2, eps, floor)

    def init(params: PyTree) -> CorrectedAdamState:
        mu = jax.tree.map(lambda p: jnp.zeros(p.shape, wide_dtype(p.dtype)), params)
        nu = jax.tree.map(lambda p: jnp.zeros(p.shape, wide_dtype(real_dtype(p.dtype))), params)
        return CorrectedAdamState(jnp.zeros((), jnp.int32), mu, nu)

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        del params
        noisy = known_noise("scale_by_corrected_adam", updates, noise_stddev)
        count = state.count + 1
        steps = count.astype(jnp.float32)
        first, second = 1 - jnp.float32(b1) ** steps, 1 - jnp.float32(b2) ** steps

        def moment(decay: float, new: Any, old: Any) -> Any:
            return decay * old + (1 - decay) * new

        def second_moment(g: Any, s: Any, v: Any) -> Any:
            return moment(b2, jnp.sum(jnp.square(_parts(g).astype(v.dtype)), axis=0) - _variance(g, s, v), v)

        mu = jax.tree.map(lambda g, m: moment(b1, g.astype(m.dtype), m), noisy.tree, state.mu)
        nu = jax.tree.map(second_moment, noisy.tree, noisy.noise_stddev, state.nu)

        def scaled(g: Any, s: Any, m: Any, v: Any) -> Any:
            # Without noise v is not negative, so that the floor of zero changes nothing.
            second_root = jnp.sqrt(jnp.maximum(v / second.astype(v.dtype), floor * _variance(g, s, v)))
            return (m / first.astype(m.dtype) / (second_root + eps).astype(m.dtype)).astype(g.dtype)

        return jax.tree.map(scaled, noisy.tree, noisy.noise_stddev, mu, nu), CorrectedAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _parts(g: Array) -> Array:
    """The numbers whose squares are the second moment, along a new first axis."""
    return jnp.stack([g.real, g.imag]) if is_complex(g) else g[None]


def _variance(g: Array, stddev: Any, like: Any) -> Any:
    """That of the noise in an entry, which in a complex one is in either part."""
    return jnp.broadcast_to((1 + is_complex(g)) * jnp.square(stddev.astype(like.dtype)), like.shape)


def _check(b1: Any, b2: Any, eps: Any, floor: Any) -> None:
    for name, value in (("b1", b1), ("b2", b2), ("eps", eps), ("floor", floor)):
        if not is_number(value):
            raise TypeError(f"{name} is {setting(value)}: give a Python number.")
    for name, value in (("b1", b1), ("b2", b2)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} is {value}: it must lie from 0 to below 1.")
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps is {eps}: it must be finite and not negative.")
    if not 0 < floor < math.inf:
        raise ValueError(
            f"floor is {floor}: it must be positive and finite, or coordinates of pure noise are divided by zero."
        )
