"""DP-GRAPE: clip, add noise and optimise in random subspaces of the matrices."""

import zlib
from typing import Any, Literal, NamedTuple

import dp_accounting
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from jaxdp._numbers import is_whole, takes_numbers
from jaxdp._shown import of_shapes, setting, shown
from jaxdp.per_example import Inert, PerExampleGrads
from jaxdp.transforms._clipped_sum import ClippedSum, check_key, describe, refuse_masked
from jaxdp.transforms._examples import check_examples
from jaxdp.transforms._subspace import Basis, Select, Side, Subspace, carry_over, choose, zeros_like_struct

PyTree = Any
OnRefresh = Literal["auto", "keep", "reset", "transport"]

# Folded into the caller's key, so that the same key given to the noise or to a sampler yields other bits.
_PROJECTION_TAG = zlib.crc32(b"jaxdp.transforms.grape")

# Bases that last so many steps make moments of earlier bases harmless.
_LONG_PERIOD = 50


class GrapeState(NamedTuple):
    """The projections' key, the number of updates so far, and the inner chain's state, in the subspace."""

    __repr__ = of_shapes

    key: PRNGKeyArray
    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    inner: PyTree


class FullSpace(Inert):
    """A parameter where only its coordinates in a subspace are at hand: it has a shape, and no value."""

    _what = (
        "the chain inside grape or zeroth_order reads the parameters (weight decay or a trust ratio), which have no "
        "value in a subspace"
    )
    _advice = "put optax.add_decayed_weights, and the learning rate after it, behind it in the chain"

    def __init__(self, struct: jax.ShapeDtypeStruct) -> None:
        self.shape, self.dtype, self.ndim, self.size = struct.shape, struct.dtype, struct.ndim, struct.size

    def __repr__(self) -> str:
        return f"FullSpace({shown(self)})"


class GRAPE(optax.GradientTransformation):
    """The transformation that `grape` and `zeroth_order` return: it carries the `chain` inside."""

    chain: optax.GradientTransformation

    def dp_event(self) -> dp_accounting.DpEvent:
        """The privacy event of one update: that of the chain inside, whatever the subspace is."""
        event = getattr(self.chain, "dp_event", None)
        if event is None:
            raise TypeError(
                "the chain inside does not know its privacy event: take it from the transformation in it that "
                "privatises, such as dpsgd(...).dp_event() or clip(...).dp_event(noise_multiplier)."
            )
        return event()


@takes_numbers
def grape(
    inner: optax.GradientTransformation,
    *,
    rank: int,
    refresh_every: int,
    key: PRNGKeyArray,
    side: Side = "smaller",
    projection: Basis = "gaussian",
    on_refresh: OnRefresh = "auto",
    select: Select | None = None,
    matrices: PyTree | None = None,
) -> GRAPE:
    r"""Clip, privatise and optimise in random subspaces: DP-Adam with the memory of its projections.

    For a matrix W (m x n) with per-example gradients $G_i$ and a random P (k x r) on one side, $k = \min(m, n)$,

    $$R_i = G_i P, \qquad Z = \text{inner}\big(R_1, \dots, R_B\big), \qquad W \leftarrow W + Z P^\top,$$

    where `inner` clips, adds noise and runs any optimiser on $R_i$: its moments have m r entries, and $R_i$ is found as
    $x^\top(dy\,P)$ or $(xP)^\top dy$, so that no gradient of W is ever made. Parameters that are not projected keep
    their ordinary gradients; all are clipped together. A new P is drawn every `refresh_every` steps, from the key and
    the step: it is never stored, and is the same in all microbatches and on all devices.

    **Privacy.** P does not depend on the data, so given all P each step is the mechanism that `inner` is: its
    sensitivity is that of the clipping, which happens after the projection. Epsilon depends on neither rank,
    refresh_every nor the scale of P. Clip before projecting, noise outside, or a chain without either is refused.

    | wiring | what happens |
    |---|---|
    | clip or noise before grape | refused: its input must be per-example gradients |
    | an inner chain without clip or without noise | refused: its result is not a plain pytree |
    | weight decay in the inner chain (`optax.adamw`) | refused: put `add_decayed_weights` and the rate behind grape |
    | inside `optax.masked` or `optax.multi_transform` | refused |
    | a matrix no wider than the rank, a vector | not projected |
    | a chosen parameter that the loss uses as something else than matrices | refused, named |

    | `on_refresh` | first moments and momenta | second moments |
    |---|---|---|
    | `"keep"` | as they are | as they are |
    | `"reset"` | zero | each row's mean over the subspace |
    | `"transport"` | $M (P_\text{old}^\top P_\text{new})\, r/k$ | each row's mean over the subspace |
    | `"auto"` | `"keep"` if P lasts 50 steps or more, otherwise `"transport"` | |

    Args:
      inner: from per-example gradients to updates, such as `optax.chain(dpsgd(...), optax.scale_by_adam())`.
      rank: r. Projection costs accuracy while $(k+1)/r$ is not small against the noise: see `predicted_cosine`.
      refresh_every: F, the number of steps that one P lasts.
      key: a typed PRNG key; it may be the one given to the noise, whose stream is another one. P may be public.
      side: which side is projected: the `"smaller"` (for a square one the columns), the `"larger"`, `"rows"` or
        `"columns"`.
      projection: `"gaussian"` with variance 1/r; `"orthonormal"` columns scaled by $\sqrt{k/r}$, better for a large r;
        `"released"`, the std 1/r of the authors' code, which gives projected parameters a smaller share of the clipping
        norm: only to reproduce its results.
      on_refresh: what becomes of the optimiser's state when P changes.
      select: `select(path, shape) -> bool` on paths such as `"['dense']['kernel']"`: which parameters may be
        projected; by default all matrices.
      matrices: `per_example_grad(loss)(params, batch).matrices()`, which says how the loss uses its parameters. Needed
        for kernels with more than two axes (attention heads, experts, the layers of a `scan`, of which each gets a P of
        its own) and to leave lookup tables out by themselves; without it each parameter with two axes is a matrix.

    Returns:
      An `optax.GradientTransformation` from `PerExampleGrads` (or a pytree with a leading batch axis, together with
      `params`) to updates of the parameters' own shapes.

    Raises:
      ValueError: an impossible argument, named; at init, a parameter with more than two axes where `matrices` is not
        given; at update, a parameter that is used as something else than matrices.
      TypeError: an argument of another kind; at update, a chain wired as in the table above.

    Example:
      >>> import jax, jax.numpy as jnp, jaxdp, optax
      >>> params = {"w": jnp.ones((8, 6)), "b": jnp.zeros(6)}
      >>> loss = lambda p, x: jnp.sum(jnp.tanh(x @ p["w"] + p["b"]))
      >>> private = jaxdp.transforms.dpsgd(
      ...     max_norm=1.0, noise_multiplier=0.8, expected_batch_size=4.0, key=jax.random.key(0)
      ... )
      >>> inner = optax.chain(private, optax.scale_by_adam())
      >>> tx = jaxdp.transforms.grape(inner, rank=2, refresh_every=100, key=jax.random.key(1))
      >>> tx = optax.chain(tx, optax.add_decayed_weights(0.01), optax.scale_by_learning_rate(1e-3))
      >>> state = tx.init(params)
      >>> state[0].inner[1].mu["w"].shape
      (8, 2)
      >>> grads = jaxdp.per_example_grad(loss)(params, jnp.ones((4, 8)))
      >>> updates, state = tx.update(grads, state, params)
      >>> updates["w"].shape
      (8, 6)

    References:
      DP-GRAPE, arXiv 2506.15588. Zhao et al., GaLore, arXiv 2403.03507.
    """
    _check_arguments(rank, refresh_every, side, projection, on_refresh)
    check_key(key)
    keeps = on_refresh == "keep" or (on_refresh == "auto" and refresh_every >= _LONG_PERIOD)
    how = "reset" if on_refresh == "reset" else "transport"

    def init(params: PyTree) -> GrapeState:
        refuse_masked(params, "grape")
        subspace = choose(params, rank, side, select, matrices)
        inside = subspace.inside(params, zeros_like_struct)
        return GrapeState(jax.random.clone(key), jnp.zeros((), jnp.int32), inner.init(inside))

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        check_input("grape", updates, params)
        full = updates.params if isinstance(updates, PerExampleGrads) else params
        subspace = choose(full, rank, side, select, matrices)
        period = state.count // refresh_every
        stream = jax.random.fold_in(state.key, _PROJECTION_TAG)
        bases = subspace.bases(projection, jax.random.fold_in(stream, period))

        def after_refresh(before: PyTree) -> PyTree:
            old = subspace.bases(projection, jax.random.fold_in(stream, period - 1))
            return carry_over(before, subspace, old, bases, how)

        inner_state = state.inner
        if not keeps:
            refreshed = (state.count % refresh_every == 0) & (state.count > 0)
            inner_state = jax.lax.cond(refreshed, after_refresh, lambda before: before, inner_state)
        projected: Any
        if isinstance(updates, PerExampleGrads):
            projected = updates.project(bases)
        else:
            projected = subspace.project_stacked(updates, bases)
        hidden = subspace.inside(full, FullSpace)
        steps, inner_state = inner.update(projected, inner_state, hidden)
        check_output("grape", steps, subspace)
        return subspace.back(steps, bases), GrapeState(state.key, state.count + 1, inner_state)

    transformation = GRAPE(init, update)
    transformation.chain = inner
    return transformation


def check_input(name: str, updates: PyTree, params: PyTree | None) -> None:
    """Refuse what is clipped, noisy or averaged already."""
    if isinstance(updates, ClippedSum):
        raise TypeError(
            f"{name} was given a sum that is already clipped, in another space than the noise would be added in: put "
            f"clip, add_gaussian_noise and the optimiser inside, as {name}(optax.chain(clip, noise, optimiser), ...)."
        )
    try:
        check_examples(name, updates, params)
    except TypeError as error:
        raise TypeError(
            f"{error} {name} comes first in a chain: put clip, add_gaussian_noise and the optimiser inside it."
        ) from error


def check_output(name: str, steps: PyTree, subspace: Subspace) -> None:
    """Refuse an inner chain whose result is still private, or not of the subspace."""
    if isinstance(steps, PerExampleGrads | ClippedSum):
        raise TypeError(
            f"the chain inside {name} returned {describe(steps)}, which is private data: put both clip and "
            f"add_gaussian_noise (or dpsgd) inside, as {name}(optax.chain(clip, noise, optimiser), ...)."
        )
    if not subspace.fits(steps):
        raise TypeError(
            f"the chain inside {name} returned something else than one array of the subspace's shape for each "
            "parameter: put clip and add_gaussian_noise (or dpsgd) first in it, then an optimiser."
        )


def _check_arguments(rank: Any, refresh_every: Any, side: Any, projection: Any, on_refresh: Any) -> None:
    for name, value in (("rank", rank), ("refresh_every", refresh_every)):
        if not is_whole(value):
            raise TypeError(f"{name} is {setting(value)}: give a whole number.")
        if value < 1:
            raise ValueError(f"{name} is {value}: it must be at least 1.")
    for name, value, allowed in (
        ("side", side, ("smaller", "larger", "rows", "columns")),
        ("projection", projection, ("gaussian", "orthonormal", "released")),
        ("on_refresh", on_refresh, ("auto", "keep", "reset", "transport")),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}: use one of {', '.join(map(repr, allowed))}.")
