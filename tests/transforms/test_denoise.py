"""Singular-value shrinkage against float64 numpy, its symmetries, and what it must leave alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp import transforms
from jaxdp.transforms._denoise_numerics import noise_level, optimal_shrinkage

M, N = 24, 40
FORMS = {
    "keep_bulk": {},
    "shrink": {"mode": "shrink"},
    "published": {"mode": "shrink", "gate": "tracy_widom"},
    "uncorrected": {"mode": "shrink", "gate": 1.1, "norm_correct": False},
}


@functools.lru_cache
def low_rank(rank: int = 2, snr: float = 0.7, m: int = M, n: int = N, seed: int = 0):
    """Signal of this rank and signal-to-noise ratio, and the signal in white noise of std 1; float32 values."""
    draw = np.random.default_rng(seed)
    signal = draw.normal(size=(m, rank)) @ draw.normal(size=(rank, n))
    signal *= snr * np.sqrt(m * n) / np.linalg.norm(signal)
    return signal, (signal + draw.normal(size=(m, n))).astype(np.float32)


def spectrum_like(values, snr: float, n: int = N, seed: int = 0):
    draw = np.random.default_rng(seed)
    values = np.asarray(values)
    left, right = (np.linalg.qr(draw.normal(size=(size, len(values))))[0] for size in (len(values), n))
    signal = (left * values) @ right.T
    signal *= snr * np.sqrt(len(values) * n) / np.linalg.norm(signal)
    return signal, (signal + draw.normal(size=signal.shape)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=(2,))
def compiled(noisy, stddev, options):
    tx = transforms.rmt_denoise(stddev, **dict(options))
    return tx.update(noisy, tx.init(noisy))


def denoise(noisy, stddev=1.0, **options):
    result, state = compiled(jnp.asarray(noisy), jnp.float32(stddev), tuple(options.items()))
    return np.asarray(result), state


def as_matrices(path, shape):
    return "matrix"


def cosine(a, b):
    return np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)


def reference(noisy, s, *, mode="keep_bulk", gate="cosine", norm_correct=True):
    """The method once more in float64, from its definition."""
    y_matrix = np.asarray(noisy, np.float64)
    m, n = y_matrix.shape
    u, y, vt = np.linalg.svd(y_matrix, full_matrices=False)
    e, lower = s * (np.sqrt(m) + np.sqrt(n)), s * abs(np.sqrt(m) - np.sqrt(n))
    a = np.sqrt(m) + np.sqrt(n)
    kappa = 1 + 3 * 1.27 * a * (m**-0.5 + n**-0.5) ** (1 / 3) / (2 * a**2) if isinstance(gate, str) else gate
    if y[0] <= kappa * e:
        return y_matrix
    eta = np.where(y > e, np.sqrt(np.maximum((y**2 - e**2) * (y**2 - lower**2), 0)) / y, 0)
    squared = max(np.sum(y**2) - s**2 * m * n, 0)
    if mode == "shrink":
        result = (u * eta) @ vt
        if gate == "cosine" and np.linalg.norm(result) * np.linalg.norm(y_matrix) <= squared:
            return y_matrix
    else:
        kept = np.where(y > kappa * e, 1.0, 0.0)
        rest = y_matrix - (u * y * kept) @ vt
        w = np.clip((squared - np.sum(kept * y * eta)) / np.linalg.norm(rest) ** 2, 0, 1)
        result = (u * eta * kept) @ vt + w * rest
    return result * (np.linalg.norm(y_matrix) / np.linalg.norm(result) if norm_correct else 1)


def test_the_shrinkage_undoes_what_noise_does_to_a_singular_value():
    """eta(y(x)) = x cos(u) cos(v) above the threshold of detection, and 0 at the edge of the noise and below."""
    m, n = 30.0, 70.0
    x = np.linspace(1.0001, 20, 50) * (m * n) ** 0.25
    y = np.sqrt((x**2 + m) * (x**2 + n)) / x
    cosines = (x**4 - m * n) ** 2 / (x**4 * (x**2 + m) * (x**2 + n))
    with jax.enable_x64(True):
        shrunk = np.asarray(optimal_shrinkage(jnp.asarray(y), 30, 70))
        below = np.asarray(optimal_shrinkage(jnp.linspace(0.0, np.sqrt(m) + np.sqrt(n), 20), 30, 70))
    np.testing.assert_allclose(shrunk, x * np.sqrt(cosines), rtol=1e-8)
    assert np.all(below == 0)


@pytest.mark.quick
@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_method_in_float64(form):
    _, noisy = low_rank()
    for matrix, stddev in ((noisy, 1.0), (noisy.T.copy(), 0.9)):
        expected = reference(matrix, stddev, **FORMS[form])
        assert cosine(expected, matrix) < 0.99
        np.testing.assert_allclose(denoise(matrix, stddev, **FORMS[form])[0], expected, atol=2e-5)


def test_the_noise_level_is_that_of_the_largest_singular_value():
    """About 1.014 and 1.04 for a square and a flat matrix, as computed from the law."""
    assert noise_level(768, 768) == pytest.approx(1.0143, abs=2e-4)
    assert noise_level(16, 768) == pytest.approx(1.040, abs=2e-3)


@pytest.mark.parametrize("form", ["keep_bulk", "published"])
def test_pure_noise_stays_as_it_is(form):
    noise = jax.random.normal(jax.random.key(0), (300, M, N))
    result, state = denoise(noise, select=as_matrices, **FORMS[form])
    np.testing.assert_array_equal(result, noise)
    ratios = np.asarray(state.leading_ratio[""])
    assert np.all(np.asarray(state.rank[""]) == 0)
    assert ratios.min() > 0.8 and 0.9 < np.mean(ratios) < 1.0 and ratios.max() < 1.1


@pytest.mark.parametrize("form", FORMS)
def test_a_low_rank_signal_comes_out_cleaner(form):
    signal, noisy = low_rank()
    result, state = denoise(noisy, **FORMS[form])
    assert cosine(result, signal) > 0.87 > 0.6 > cosine(noisy, signal)
    assert int(state.rank[""][0]) in (2, 3) and float(state.leading_ratio[""][0]) > 1.2


def test_a_signal_of_full_rank_is_not_harmed_but_by_the_published_form():
    signal, noisy = spectrum_like(np.ones(48), 1.0, 48)
    raw = cosine(noisy, signal)
    assert cosine(denoise(noisy, **FORMS["published"])[0], signal) < raw - 0.1
    assert cosine(denoise(noisy, **FORMS["shrink"])[0], signal) == pytest.approx(raw, abs=1e-4)
    assert cosine(denoise(noisy)[0], signal) > raw - 0.02


def test_slowly_falling_spectra_keep_their_bulk():
    signal, noisy = spectrum_like(1 / np.sqrt(np.arange(1, 49)), 1.0, 48)
    assert cosine(denoise(noisy)[0], signal) > cosine(noisy, signal) + 0.02
    assert cosine(denoise(noisy)[0], signal) > cosine(denoise(noisy, **FORMS["published"])[0], signal) + 0.01


@pytest.mark.parametrize("method", ["gram", "subspace"])
def test_scaling_transposing_and_rotating(method):
    _, noisy = low_rank()
    options = {"method": method, "width": M}
    expected, _ = denoise(noisy, **options)
    for factor in (1e-6, 1e5):
        scaled, _ = denoise(np.float32(factor) * noisy, factor, **options)
        np.testing.assert_allclose(scaled / factor, expected, atol=1e-4)
    transposed, _ = denoise(noisy.T.copy(), **options)
    np.testing.assert_allclose(transposed.T, expected, atol=1e-4)
    left, right = (np.linalg.qr(np.random.default_rng(1).normal(size=(k, k)))[0] for k in (M, N))
    turned, _ = denoise((left @ noisy @ right).astype(np.float32), **options)
    np.testing.assert_allclose(turned, left @ expected @ right, atol=1e-4)


def test_methods_agree():
    """With as many triplets as there are; and with few, cold at the first step and warm at the next."""
    signal, noisy = low_rank(3, 1.0, 64, 96)
    exact, _ = denoise(noisy, method="gram")
    whole, _ = denoise(noisy, method="subspace", width=64)
    np.testing.assert_allclose(whole, exact, atol=1e-4)
    tx = transforms.rmt_denoise(1.0, method="subspace", width=8)
    step = jax.jit(tx.update)
    state = tx.init(jnp.asarray(noisy))
    for seed in range(4):
        # The signal stays, the noise is new.
        fresh = signal + np.random.default_rng(seed).normal(size=signal.shape)
        result, state = step(jnp.asarray(fresh, jnp.float32), state)
        exact, _ = denoise(fresh.astype(np.float32), method="gram")
        assert cosine(result, signal) > cosine(exact, signal) - 0.006
        assert state.rank[""].tolist() == [3]
    basis = state.bases[""][0]
    np.testing.assert_allclose(basis.T @ basis, np.eye(8), atol=1e-4)


def test_the_norm_is_that_of_the_noisy_matrix_unless_told_otherwise():
    _, noisy = low_rank()
    for options in ({}, {"method": "subspace"}):
        corrected = np.linalg.norm(denoise(noisy, **options)[0])
        assert corrected == pytest.approx(np.linalg.norm(noisy), rel=1e-5)
        plain = np.linalg.norm(denoise(noisy, norm_correct=False, **options)[0])
        assert plain < 0.9 * corrected


@pytest.mark.parametrize("method", ["gram", "subspace"])
def test_without_noise_and_without_gradient_nothing_changes(method):
    _, noisy = low_rank()
    np.testing.assert_array_equal(denoise(noisy, 0.0, method=method)[0], noisy)
    zero, state = denoise(0 * noisy, method=method)
    assert np.all(zero == 0) and all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))


@pytest.mark.quick
def test_half_precision_is_computed_in_float32():
    _, noisy = low_rank()
    half = jnp.asarray(noisy, jnp.bfloat16)
    result, _ = denoise(half)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_array_equal(result, jnp.asarray(denoise(half.astype(jnp.float32))[0], jnp.bfloat16))


def test_a_stack_is_its_layers_with_the_noise_of_each():
    layers = np.stack([low_rank(seed=seed)[1] * scale for seed, scale in ((0, 1), (1, 10), (2, 0.1))])
    scales = jnp.array([1.0, 10.0, 0.1])
    tx = transforms.rmt_denoise({"w": scales[:, None, None]})
    result, state = jax.jit(tx.update)({"w": jnp.asarray(layers)}, tx.init({"w": layers}))
    for i in range(3):
        alone, own = denoise(layers[i], float(scales[i]))
        np.testing.assert_allclose(result["w"][i], alone, rtol=1e-5, atol=1e-4)
        assert int(state.rank["['w']"][i]) == int(own.rank[""][0]) == 2


def test_leaves_are_seen_as_the_matrices_that_they_are():
    """Convolutions and projections onto heads on request; what is no linear map stays."""
    _, noisy = low_rank(m=72, n=16)
    tree = {
        "conv": jnp.asarray(noisy.reshape(3, 3, 8, 16)),
        "query": jnp.asarray(noisy.T.reshape(16, 8, 9)),
        "dense": jnp.asarray(noisy),
        "embedding": jnp.asarray(noisy),
        "thin": jnp.asarray(noisy[:, :7]),
        "bias": jnp.asarray(noisy[0]),
        "stddev differs": jnp.asarray(noisy),
    }
    stddev = {name: jnp.float32(1.0) for name in tree}
    stddev["stddev differs"] = jnp.ones((72, 1))
    layouts = {"conv": "conv", "query": "first_axis"}

    def select(path, shape):
        name = path[2:-2]
        return layouts.get(name) or transforms.linear_layers(path, shape)

    tx = transforms.rmt_denoise(stddev, select=select)
    result, state = jax.jit(tx.update)(tree, tx.init(tree))
    expected = denoise(noisy)[0]
    np.testing.assert_allclose(result["dense"], expected, atol=1e-4)
    np.testing.assert_allclose(result["conv"].reshape(72, 16), expected, atol=1e-4)
    np.testing.assert_allclose(result["query"].reshape(16, 72).T, expected, atol=1e-4)
    for name in ("embedding", "thin", "bias", "stddev differs"):
        np.testing.assert_array_equal(result[name], tree[name])
    assert int(state.rank["['conv']"][0]) == 2 and "['thin']" not in state.rank
    by_default = {p: transforms.linear_layers(p, s) for p, s in (("w", (3, 3, 8, 16)), ("q", (64, 4, 16)))}
    assert by_default == {"w": None, "q": None}
    assert transforms.linear_layers("lora_a", (24, 1024, 16)) == "matrix"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "svd"}, 'method is \'svd\': use "auto", "gram" or "subspace"'),
        ({"mode": "hard"}, "mode is 'hard'"),
        ({"gate": 0.5}, "gate is 0.5: below 1 it would open on noise alone"),
        ({"gate": "kappa"}, "gate is 'kappa'"),
        ({"width": 0}, "width is 0"),
        ({"noise_stddev": -1.0}, "noise_stddev is -1.0"),
        ({"noise_stddev": float("nan")}, "noise_stddev is nan"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_impossible_arguments_are_named(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        transforms.rmt_denoise(**options)


@pytest.mark.usefixtures("without_type_checks")
def test_layouts_that_do_not_fit_are_named():
    for select, sentence in ((lambda *_: "matrix", "whose shape is"), (lambda *_: "cube", "select gave 'cube'")):
        with pytest.raises(ValueError, match=sentence):
            transforms.rmt_denoise(1.0, select=select).init(jnp.zeros(9))
