"""How much nearer the denoised matrix is to the signal, for spectra and sizes that occur."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdp import transforms

SIZES = ((768, 768), (384, 1536), (16, 1024))
SPECTRA: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "1/i": lambda i: 1 / i,
    "1/sqrt(i)": lambda i: 1 / np.sqrt(i),
    "rank 5": lambda i: (i <= 5).astype(float),
    "flat": np.ones_like,
}
SNRS = (0.1, 0.3, 1.0)
# Both are measured without the norm correction, which has no part in a direction and would spoil the error.
METHODS: dict[str, dict[str, Any]] = {
    "published": {"mode": "shrink", "gate": "tracy_widom", "method": "gram"},
    "shrink, cosine gate": {"mode": "shrink", "gate": "cosine", "method": "gram"},
    "keep_bulk": {"method": "gram"},
    "keep_bulk, subspace": {"method": "subspace"},
}
# New noise on the same signal, so that the subspace method is measured warm.
STEPS = 4


def measure(sizes: tuple[tuple[int, int], ...], repeats: int, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """One row for each size, spectrum and signal-to-noise ratio |X| / (s sqrt(mn)); means over the repeats."""
    for m, n in sizes:
        steps = {name: _compiled(options) for name, options in METHODS.items()}
        for name, spectrum in SPECTRA.items():
            for snr in SNRS:
                found = [_one(m, n, spectrum, snr, seed, steps) for seed in range(repeats)]
                row = {"m": m, "n": n, "spectrum": name, "snr": snr, "repeats": repeats}
                for key in found[0]:
                    cosines, errors = zip(*(result[key] for result in found), strict=True)
                    sd = float(np.std(cosines, ddof=1)) if repeats > 1 else 0.0
                    row[key] = {"cosine": float(np.mean(cosines)), "sd": sd, "error": float(np.mean(errors))}
                say(f"{m} x {n}, {name}, SNR {snr}: keep_bulk {row['keep_bulk']['cosine']:.3f}")
                yield row


def _compiled(options: dict[str, Any]) -> Any:
    tx = transforms.rmt_denoise(1.0, norm_correct=False, **options)
    return tx, jax.jit(tx.update)


def _one(m: int, n: int, spectrum: Any, snr: float, seed: int, steps: dict[str, Any]) -> dict[str, tuple[float, float]]:
    # Bases and noise from streams of their own.
    draw = np.random.default_rng([seed, 1])
    values = spectrum(np.arange(1, min(m, n) + 1, dtype=float))
    left, right = (_orthonormal(seed + shift, size, len(values)) for shift, size in ((0, m), (1 << 20, n)))
    signal = (left * values) @ right.T
    signal *= snr * np.sqrt(m * n) / np.linalg.norm(signal)
    noisy = [jnp.asarray(signal + draw.normal(size=(m, n)), jnp.float32) for _ in range(STEPS)]
    found = {"raw": _compare(np.asarray(noisy[-1]), signal)}
    for name, (tx, step) in steps.items():
        state = tx.init(noisy[0])
        # Without a state from the step before, only the last matrix matters.
        for matrix in noisy if METHODS[name]["method"] == "subspace" else noisy[-1:]:
            denoised, state = step(matrix, state)
        found[name] = _compare(np.asarray(denoised), signal)
    return found


@functools.lru_cache(32)
def _orthonormal(seed: int, size: int, count: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, count)))[0]


def _compare(found: np.ndarray, signal: np.ndarray) -> tuple[float, float]:
    """Cosine to the signal, and the error's norm over the signal's."""
    cosine = np.sum(found * signal) / (np.linalg.norm(found) * np.linalg.norm(signal))
    return float(cosine), float(np.linalg.norm(found - signal) / np.linalg.norm(signal))
