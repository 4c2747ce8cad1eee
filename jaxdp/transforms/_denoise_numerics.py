"""Singular values of a low-rank signal in white noise: what to keep of them, and how to apply that to a matrix.

Matrices come as stacks `[stack, m, n]`, each with a noise std of its own. Everything is float32 or better; singular
values y are in units of that std.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Mode = Literal["keep_bulk", "shrink"]
Gate = Any  # "cosine", "tracy_widom", or a number kappa >= 1

# Passes of the subspace iteration where nothing is known of the subspace yet.
COLD_PASSES = 4

# Sd of the Tracy-Widom law of real matrices.
_TRACY_WIDOM_SD = 1.27


class Denoised(NamedTuple):
    """Matrices like the noisy ones, and what may be shown of how they came about."""

    matrices: Float[Array, "stack m n"]
    leading_ratio: Float[Array, " stack"]
    rank: Int[Array, " stack"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """What becomes of the singular values.

    Attributes:
      mode: what is kept of the rest of the matrix.
      gate: from where on a singular value counts as signal.
      norm_correct: whether the result is scaled to the norm of the noisy matrix.
    """

    mode: Mode
    gate: Gate
    norm_correct: bool

    def level(self, m: int, n: int) -> float:
        """Kappa, the ratio to the edge above which a leading singular value is not noise."""
        return noise_level(m, n) if isinstance(self.gate, str) else float(self.gate)

    def coefficients(
        self, y: Float[Array, "stack k"], squared_norm: Float[Array, " stack"], m: int, n: int
    ) -> tuple[Float[Array, " stack"], Float[Array, "stack k"], Bool[Array, "stack k"]]:
        r"""w, f and which of the y are kept, so that the result is $wY + \sum_i f_i y_i u_i v_i^T$.

        The y are some of the singular values, the largest among them; the squared norm is that of the whole matrix.
        """
        largest = jnp.max(y, axis=-1)
        edge, level = math.sqrt(m) + math.sqrt(n), self.level(m, n)
        opened = largest > level * edge
        eta = optimal_shrinkage(y, m, n)
        kept = (y > (level if self.mode == "keep_bulk" else 1.0) * edge) & opened[:, None]
        eta, energy = jnp.where(kept, eta, 0.0), jnp.where(kept, jnp.square(y), 0.0)
        signal = jnp.maximum(squared_norm - m * n, 0.0)
        if self.mode == "keep_bulk":
            rest = squared_norm - jnp.sum(energy, axis=-1)
            share = (signal - jnp.sum(y * eta, axis=-1)) / jnp.where(rest > 0, rest, 1.0)
            w = jnp.clip(jnp.where(rest > 0, share, 0.0), 0.0, 1.0)
        else:
            w = jnp.zeros_like(squared_norm)
            if self.gate == "cosine":
                # The cosines to the signal are |G|/|X| after and |X|/|Y| before, with |X|^2 estimated by `signal`.
                after = jnp.sqrt(jnp.sum(jnp.square(eta), axis=-1) * squared_norm)
                opened = opened & (after > signal)
        safe = jnp.where(kept, y, 1.0)
        f = jnp.where(kept, eta / safe - w[:, None], 0.0)
        if self.norm_correct:
            inside = jnp.square(w[:, None] + f) - jnp.square(w)[:, None]
            squared = jnp.sum(inside * energy, axis=-1) + jnp.square(w) * squared_norm
            scale = jnp.sqrt(squared_norm / jnp.where(opened & (squared > 0), squared, 1.0))
            w, f = w * scale, f * scale[:, None]
        kept = kept & opened[:, None]
        return jnp.where(opened, w, 1.0), jnp.where(kept, f, 0.0), kept


def noise_level(m: int, n: int) -> float:
    """One plus three sd of the largest singular value of white noise over its edge (Tracy-Widom)."""
    a = math.sqrt(m) + math.sqrt(n)
    return 1 + 3 * _TRACY_WIDOM_SD * a * (m**-0.5 + n**-0.5) ** (1 / 3) / (2 * a * a)


def optimal_shrinkage(y: Float[Array, "*shape"], m: int, n: int) -> Float[Array, "*shape"]:
    """The singular values that bring an m x n matrix in unit white noise closest to the signal in Frobenius norm."""
    edge, lower = math.sqrt(m) + math.sqrt(n), abs(math.sqrt(m) - math.sqrt(n))
    safe = jnp.where(y > edge, y, edge)
    # As factors: the difference of squares would cancel near the edge.
    product = (safe - edge) * (safe + edge) * (safe - lower) * (safe + lower)
    return jnp.where(y > edge, jnp.sqrt(jnp.maximum(product, 0.0)) / safe, 0.0)


def denoise_by_gram(noisy: Float[Array, "stack m n"], stddev: Float[Array, " stack"], rule: Rule) -> Denoised:
    """Exact, from the eigenvectors of the smaller Gram matrix."""
    m, n = noisy.shape[1:]
    scaled = noisy / _unit(stddev)[:, None, None]
    wide = m <= n
    spec = "lmn,lkn->lmk" if wide else "lmn,lmk->lnk"
    values, vectors = jnp.linalg.eigh(_einsum(spec, scaled, scaled))
    y = jnp.sqrt(jnp.maximum(values, 0.0))
    w, f, kept = rule.coefficients(y, _squared_norm(scaled), m, n)
    # Y -> Y + U diag(f) U' Y, on the side whose vectors are known.
    if wide:
        change = _einsum("lmk,lkn->lmn", vectors * f[:, None, :], _einsum("lmk,lmn->lkn", vectors, noisy))
    else:
        change = _einsum("lmk,lnk->lmn", _einsum("lmn,lnk->lmk", noisy, vectors), vectors * f[:, None, :])
    return _finished(noisy, stddev, y, w, change, kept)


def denoise_by_subspace(
    noisy: Float[Array, "stack m n"],
    stddev: Float[Array, " stack"],
    rule: Rule,
    basis: Float[Array, "stack n k"],
    passes: Int[Array, ""],
) -> tuple[Denoised, Float[Array, "stack n k"]]:
    """From the leading right singular vectors of the last step's matrix, and this step's for the next."""
    m, n = noisy.shape[1:]
    unit = _unit(stddev)[:, None, None]

    def one_pass(basis: Any) -> tuple[Any, Any, Any, Any]:
        # Only what is k wide is scaled: a scaled copy of Y would cost more than the products.
        left, _ = jnp.linalg.qr(_einsum("lmn,lnk->lmk", noisy, basis / unit))
        core = _einsum("lmk,lmn->lkn", left, noisy) / unit
        values, vectors = jnp.linalg.eigh(_einsum("lkn,ljn->lkj", core, core))
        y = jnp.sqrt(jnp.maximum(values, 0.0))
        right = _einsum("lkn,lkj->lnj", core, vectors) / jnp.where(y > 0, y, 1.0)[:, None, :]
        return left, y, vectors, right

    basis = jax.lax.fori_loop(0, passes - 1, lambda _, basis: one_pass(basis)[3], basis)
    left, y, vectors, right = one_pass(basis)
    w, f, kept = rule.coefficients(y, _squared_norm(noisy / unit), m, n)
    coefficients = f * y * _unit(stddev)[:, None]
    change = _einsum("lmj,lnj->lmn", _einsum("lmk,lkj->lmj", left, vectors) * coefficients[:, None, :], right)
    return _finished(noisy, stddev, y, w, change, kept), right


def _finished(noisy: Array, stddev: Array, y: Array, w: Array, change: Array, kept: Array) -> Denoised:
    """Without noise there is nothing to do."""
    m, n = noisy.shape[1:]
    noisy_at_all = stddev > 0
    denoised = jnp.where(noisy_at_all[:, None, None], w[:, None, None] * noisy + change, noisy)
    ratio = jnp.max(y, axis=-1) / (math.sqrt(m) + math.sqrt(n))
    rank = jnp.where(noisy_at_all, jnp.sum(kept, axis=-1), min(m, n)).astype(jnp.int32)
    return Denoised(denoised, jnp.where(noisy_at_all, ratio, jnp.inf).astype(jnp.float32), rank)


def _unit(stddev: Array) -> Array:
    return jnp.where(stddev > 0, stddev, 1.0)


def _squared_norm(matrices: Array) -> Array:
    return jnp.sum(jnp.square(matrices), axis=(1, 2))


def _einsum(spec: str, *operands: Array) -> Array:
    # A reduced-precision product would lose more than the shrinkage gains.
    return jnp.einsum(spec, *operands, precision=jax.lax.Precision.HIGHEST)
