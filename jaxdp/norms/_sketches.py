"""Squared norms estimated from random probes: linear sketches of the gradient, added up and then squared."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxdp.norms import _rounding
from jaxdp.norms._certificate import of_product
from jaxdp.norms._estimators import HutchPP, Randomized
from jaxdp.numerics._normals import standard_normal


def probe_matrix(key: PRNGKeyArray, shape: tuple[int, ...], dtype: jnp.dtype) -> Float[Array, "*batch n probes"]:
    r"""Independent $\mathcal N(0, 1/k)$ entries, k being the last axis' length."""
    return standard_normal(key, shape, dtype) / math.sqrt(shape[-1])


def estimated_certificate(
    a: Float[Array, "k t c"],
    g: Float[Array, "k t p"],
    key: PRNGKeyArray,
    norm: Randomized,
    *,
    precision: Any = None,
    examples: int = 1,
) -> Float[Array, "4"]:
    r"""Of $\sum_k \|A_k^\top G_k\|_F^2$, estimated: rounding is bounded, what the probes do is left to accounting."""
    (_, t, c), p = a.shape, g.shape[2]
    squared = estimated_squared_norm(a, g, key, norm)
    return of_product(squared, _rounding.magnitude(a, g), (a.shape[0], t, c, p), a.dtype, precision, examples, True)


def estimated_squared_norm(
    a: Float[Array, "k t c"], g: Float[Array, "k t p"], key: PRNGKeyArray, norm: Randomized
) -> Float[Array, ""]:
    r"""Estimate of $\sum_k \|A_k^\top G_k\|_F^2$; the probes of each k are independent."""
    if isinstance(norm, HutchPP):
        return _hutchpp(a, g, key, norm.probes, norm.sketch)
    return _hutchinson(a, g, key, norm.probes)


def _hutchinson(a: Float[Array, "k t c"], g: Float[Array, "k t p"], key: PRNGKeyArray, probes: int) -> Array:
    # Both orders have the same law; the sketch shall be of the smaller side.
    a, g = (a, g) if a.shape[2] <= g.shape[2] else (g, a)
    sketched = _times(g, probe_matrix(key, (g.shape[0], g.shape[2], probes), g.dtype))
    return jnp.sum(jnp.square(_transposed_times(a, sketched)))


def _hutchpp(a: Float[Array, "k t c"], g: Float[Array, "k t p"], key: PRNGKeyArray, probes: int, sketch: int) -> Array:
    # The factorisation shall be of the smaller side.
    a, g = (a, g) if a.shape[2] >= g.shape[2] else (g, a)
    k, _, p = g.shape
    sketch_key, probe_key = jax.random.split(key)
    image = _transposed_times(a, _times(g, probe_matrix(sketch_key, (k, p, sketch), g.dtype)))
    # Only directions matter, and unscaled the fourth power of the gradient could leave the range of float32.
    largest = jnp.max(jnp.abs(image), axis=(1, 2), keepdims=True)
    image = image / jnp.where(largest > 0, largest, 1)
    basis = jnp.linalg.qr(_transposed_times(g, _times(a, image)))[0]
    head = _times(g, basis)
    tail_probes = probe_matrix(probe_key, (k, p, probes), g.dtype)
    tail = _times(g, tail_probes) - _times(head, _transposed_times(basis, tail_probes))
    both = jnp.concatenate([head, tail], axis=2)
    return jnp.sum(jnp.square(_transposed_times(a, both)))


def estimated_mixed_squared_norm(
    a: Float[Array, "t v"],
    g: Float[Array, "t p"],
    ids: Int[Array, " s"],
    rows: Float[Array, "s p"],
    key: PRNGKeyArray,
    norm: Randomized,
) -> Float[Array, ""]:
    r"""Estimate of $\|A^\top G + \sum_s e_{ids_s} rows_s^\top\|_F^2$ by probes on the table's first axis."""
    probes = probe_matrix(key, (a.shape[1], norm.probes), a.dtype)
    multiplied = jnp.einsum("tm,tp->mp", _times(a, probes), g, precision="highest")
    looked_up = jnp.einsum("sm,sp->mp", probes[ids], rows, precision="highest")
    return jnp.sum(jnp.square(multiplied + looked_up))


def estimated_mixed_certificate(
    a: Float[Array, "t v"],
    g: Float[Array, "t p"],
    ids: Int[Array, " s"],
    rows: Float[Array, "s p"],
    key: PRNGKeyArray,
    norm: Randomized,
    *,
    precision: Any = None,
    examples: int = 1,
) -> Float[Array, "4"]:
    """Likewise, of a table that is looked up and multiplied with."""
    magnitudes = _rounding.magnitude(a, g) + jnp.sum(_rounding.row_norms(rows))
    (t, v), (s, p) = a.shape, rows.shape
    squared = estimated_mixed_squared_norm(a, g, ids, rows, key, norm)
    return of_product(squared, magnitudes[None], (1, t + s, v, p), a.dtype, precision, examples, True)


def _times(x: Float[Array, "*k t p"], y: Float[Array, "*k p m"]) -> Float[Array, "*k t m"]:
    if x.ndim == 3 and x.shape[0] == 1:
        # Over a batch that shares its probes, a batched product would first copy the factor to bring its axes in order.
        return jnp.matmul(x[0], y[0], precision="highest")[None]
    return jnp.matmul(x, y, precision="highest")


def _transposed_times(x: Float[Array, "k t c"], y: Float[Array, "k t m"]) -> Float[Array, "k c m"]:
    return jnp.einsum("ktc,ktm->kcm", x, y, precision="highest")
