"""Estimated norms against explicit gradients and against the laws that the privacy analysis rests on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdp.norms import Hutchinson, HutchPP, NormChoice, estimate_cost, gram_cost, norm_rule, probe_matrix
from jaxdp.norms._sketches import estimated_mixed_squared_norm, estimated_squared_norm

PROBES = 8


def factors(spectrum: np.ndarray, t: int = 24, c: int = 12, p: int = 16) -> tuple[jax.Array, jax.Array]:
    """Factors of a gradient with these singular values."""
    rng = np.random.default_rng(0)
    r = len(spectrum)
    u, v, w = (np.linalg.qr(rng.normal(size=(n, r)))[0] for n in (c, p, t))
    return jnp.asarray((w * spectrum) @ u.T, jnp.float32)[None], jnp.asarray(w @ v.T, jnp.float32)[None]


SPECTRA = {
    "rank 1": np.array([3.0]),
    "flat": np.ones(12),
    "power law": 1.0 / np.arange(1, 13),
    "one above many": np.array([5.0, *[0.5] * 10]),
}


def estimates(a: jax.Array, g: jax.Array, norm: Hutchinson | HutchPP, count: int) -> np.ndarray:
    """Ratios of estimated to true squared norms, with fresh probes each."""
    keys = jax.random.split(jax.random.key(1), count)
    found = jax.jit(jax.vmap(lambda k: estimated_squared_norm(a, g, k, norm)))(keys)
    return np.asarray(found, np.float64) / float(np.sum(np.square(np.einsum("ktc,ktp->kcp", a, g))))


@pytest.mark.parametrize("norm", [Hutchinson(PROBES), HutchPP(PROBES, sketch=3)], ids=["hutchinson", "hutch++"])
@pytest.mark.parametrize("name", list(SPECTRA))
def test_estimates_are_unbiased_and_under_the_envelope(name: str, norm: Hutchinson | HutchPP) -> None:
    count = 20_000
    ratios = estimates(*factors(SPECTRA[name]), norm, count)
    if isinstance(norm, HutchPP) and name == "rank 1":
        assert np.max(np.abs(ratios - 1)) < 1e-5  # the sketch holds the whole gradient
        return
    assert abs(ratios.mean() - 1) < 5 * ratios.std() / np.sqrt(count)
    assert ratios.std() < 1.03 * np.sqrt(2 / PROBES)
    # Z = Q^(-1/2) is stochastically at most max(1, sqrt(k / chi2_k)).
    for z in (1.05, 1.2, 1.5, 2.0):
        allowed = stats.chi2.cdf(PROBES / z**2, PROBES)
        seen = np.mean(ratios**-0.5 > z)
        assert seen <= allowed + 5 * np.sqrt(allowed / count) + 1e-4, (z, seen, allowed)


@pytest.mark.parametrize("norm", [Hutchinson(PROBES), HutchPP(PROBES, sketch=2)], ids=["hutchinson", "hutch++"])
def test_a_gradient_of_rank_one_has_the_chi_squared_law(norm: Hutchinson | HutchPP) -> None:
    spectrum = SPECTRA["rank 1"]
    if isinstance(norm, HutchPP):
        # Beyond what the sketch takes away one direction is left, as long as it is much the smallest.
        spectrum = np.array([1e3, 1e3, 1.0])
    a, g = factors(spectrum)
    ratios = estimates(a, g, norm, 4000)
    if isinstance(norm, HutchPP):
        assert np.all(np.abs(ratios - 1) < 1e-4)
        return
    assert stats.kstest(PROBES * ratios, stats.chi2(PROBES).cdf).pvalue > 1e-3


def test_probes_are_independent_standard_normals_over_the_root_of_their_number() -> None:
    draws = np.asarray(probe_matrix(jax.random.key(2), (3, 500, PROBES), jnp.dtype(jnp.float32)), np.float64)
    assert stats.kstest(draws.ravel() * np.sqrt(PROBES), "norm").pvalue > 1e-3
    assert np.max(np.abs(np.corrcoef(draws.reshape(3, -1)) - np.eye(3))) < 0.1


@pytest.mark.quick
def test_the_sketch_of_a_table_that_is_looked_up_and_multiplied_with_is_that_of_the_whole_gradient() -> None:
    rng = np.random.default_rng(3)
    a, g, rows = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((7, 11), (7, 5), (4, 5)))
    ids = jnp.array([2, 9, 2, 0])
    whole = np.asarray(a).T @ np.asarray(g)
    np.add.at(whole, np.asarray(ids), np.asarray(rows))
    key = jax.random.key(4)
    found = estimated_mixed_squared_norm(a, g, ids, rows, key, Hutchinson(PROBES))
    probes = np.asarray(probe_matrix(key, (11, PROBES), a.dtype))
    np.testing.assert_allclose(found, np.sum(np.square(probes.T @ whole)), rtol=1e-5)


def test_a_sequence_in_chunks_and_either_order_of_the_factors_have_the_same_sketch() -> None:
    a, g = factors(SPECTRA["power law"])
    key = jax.random.key(5)
    whole = estimated_squared_norm(a, g, key, Hutchinson(PROBES))
    probes = np.asarray(probe_matrix(key, (1, 16, PROBES), a.dtype))[0]
    chunks = [np.asarray(a)[0, s].T @ (np.asarray(g)[0, s] @ probes) for s in (slice(0, 10), slice(10, 24))]
    np.testing.assert_allclose(whole, np.sum(np.square(sum(chunks))), rtol=1e-5)
    np.testing.assert_allclose(whole, estimated_squared_norm(g, a, key, Hutchinson(PROBES)), rtol=1e-5)


def test_hutchpp_survives_gradients_of_any_size() -> None:
    a, g = factors(SPECTRA["flat"])
    key, norm = jax.random.key(6), HutchPP(PROBES, sketch=3)
    ordinary = estimated_squared_norm(a, g, key, norm)
    for scale in (1e-12, 1e12):
        scaled = estimated_squared_norm(a * scale, g, key, norm)
        np.testing.assert_allclose(scaled / scale**2, ordinary, rtol=1e-3)
    assert estimated_squared_norm(0 * a, g, key, norm) == 0
    assert not np.isfinite(estimated_squared_norm(a * np.inf, g, key, norm))


@pytest.mark.quick
def test_small_uses_stay_exact() -> None:
    choice = NormChoice(randomized=Hutchinson(64))
    assert norm_rule(1, 2048, 512, 2048, choice) == "Hutchinson"
    assert norm_rule(1, 2048, 512, 2048, NormChoice(randomized=HutchPP(64, 8))) == "Hutch++"
    assert norm_rule(1, 1, 512, 2048, choice) == "Gram"
    assert norm_rule(1, 2048, 8, 8, choice) == "product"
    assert norm_rule(1, 2048, 512, 2048, NormChoice("gram", Hutchinson(64))) == "Gram"
    assert estimate_cost(1, 4096, 8192, 2048, Hutchinson(64)).flops < 0.1 * gram_cost(1, 4096, 8192, 2048).flops


@pytest.mark.quick
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Hutchinson(7), "at least 8"),
        (lambda: HutchPP(4, 8), "at least 8"),
        (lambda: HutchPP(8, 0), "sketch"),
        (lambda: Hutchinson(64, distribution="rademacher"), "zero with probability"),
        (lambda: Hutchinson(64, dtype="bfloat16"), "Rounded probes"),
        (lambda: Hutchinson(64, sharing="layer"), "sharing"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_what_the_analysis_does_not_cover_is_refused(without_type_checks: None, make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.quick
def test_probes_that_are_no_number_are_refused(without_type_checks: None) -> None:
    for make in (lambda: Hutchinson(64.5), lambda: Hutchinson(True), lambda: HutchPP(64, 2.5)):  # pyright: ignore
        with pytest.raises(TypeError, match="whole number"):
            make()
