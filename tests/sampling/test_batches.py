"""Batches: their distribution is what the accounting assumes."""

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxdp.accounting import Sampling, TruncatedPoissonDpEvent, overflow_probability
from jaxdp.sampling import Batch, FullBatch, PoissonSampling
from jaxdp.sampling._batches import _threshold, included

GAUSSIAN = dp_accounting.GaussianDpEvent(1.0)
# A chance below this in a test with a fixed key means that the distribution is wrong.
IMPLAUSIBLE = 1e-4


def draw(sampling: PoissonSampling, key: jax.Array, steps: int) -> np.ndarray:
    """Which examples are in the batches of many steps, [steps, examples]; checks each batch's form."""
    indices, mask = map(np.asarray, jax.jit(jax.vmap(sampling.sample, (None, 0)))(key, jnp.arange(steps)))
    assert indices.shape == mask.shape == (steps, sampling.padded_batch_size)
    assert (np.diff(mask.astype(int), axis=1) <= 0).all(), "the mask is a prefix"
    assert (indices[~mask] == 0).all()
    assert indices.min() >= 0 and indices.max() < sampling.num_examples
    member = np.zeros((steps, sampling.num_examples), int)
    np.add.at(member, (np.nonzero(mask)[0], indices[mask]), 1)
    assert member.max() <= 1, "no example twice in a batch"
    return member


def plausible_counts(counts: np.ndarray, trials: int, probability: float) -> bool:
    """Chi-square test of independent binomial counts."""
    statistic = ((counts - trials * probability) ** 2 / (trials * probability * (1 - probability))).sum()
    return IMPLAUSIBLE < stats.chi2.sf(statistic, counts.size) < 1 - IMPLAUSIBLE


@pytest.fixture(scope="module")
def members() -> np.ndarray:
    return draw(PoissonSampling(40, 0.3), jax.random.key(11), 6000)


@pytest.mark.quick
def test_every_example_is_drawn_with_the_sampling_probability(members: np.ndarray):
    assert plausible_counts(members.sum(0), len(members), 0.3)


def test_batch_sizes_are_binomial(members: np.ndarray):
    sizes = members.sum(1)
    expected = stats.binom.pmf(np.arange(41), 40, 0.3) * len(sizes)
    inner = expected > 10
    observed = np.bincount(sizes, minlength=41)
    binned = [np.append(values[inner], values[~inner].sum()) for values in (observed, expected)]
    assert stats.chisquare(*binned, sum_check=False).pvalue > IMPLAUSIBLE


def test_steps_are_independent(members: np.ndarray):
    both = (members[1:] * members[:-1]).sum(0)
    # Products of neighbouring steps: mean q^2, variance inflated by the shared factors.
    q, pairs = 0.3, len(members) - 1
    variance = pairs * (q**2 * (1 - q**2) + 2 * (q**3 - q**4))
    assert stats.chi2.sf(((both - pairs * q**2) ** 2 / variance).sum(), both.size) > IMPLAUSIBLE


def test_examples_are_independent(members: np.ndarray):
    pairs = (members[:, 1:] * members[:, :-1]).sum(0)
    assert (
        stats.chi2.sf(((pairs - len(members) * 0.09) ** 2 / (len(members) * 0.09 * 0.91)).sum(), pairs.size)
        > IMPLAUSIBLE
    )


def test_an_overflowing_sample_is_cut_to_a_uniformly_random_subset():
    sampling = PoissonSampling(10, 0.8, padded_batch_size=4)
    member = draw(sampling, jax.random.key(5), 6000)
    sizes = member.sum(1)
    size_law = stats.binom.pmf(np.arange(5), 10, 0.8)
    size_law[4] = stats.binom.sf(3, 10, 0.8)
    assert abs((sizes == 4).mean() - size_law[4]) < 5 * np.sqrt(size_law[4] * (1 - size_law[4]) / 6000) + 1e-12
    full = member[sizes == 4]
    # Every subset of size 4 is equally likely: 210 of them.
    subsets, counts = np.unique(full, axis=0, return_counts=True)
    assert len(subsets) == 210
    assert stats.chisquare(counts).pvalue > IMPLAUSIBLE
    assert stats.chisquare(full.sum(0)).pvalue > IMPLAUSIBLE


def test_a_sample_that_fits_is_not_cut():
    roomy, tight = (
        PoissonSampling(64, 0.2, padded_batch_size=64),
        PoissonSampling(64, 0.2, padded_batch_size=16),
    )
    all_drawn, kept = draw(roomy, jax.random.key(3), 500), draw(tight, jax.random.key(3), 500)
    fits = all_drawn.sum(1) <= 16
    assert 50 < fits.sum() < 500
    assert (all_drawn[fits] == kept[fits]).all()
    assert (kept[~fits].sum(1) == 16).all() and (kept <= all_drawn).all()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.floats(min_value=2.0**-32, max_value=1.0))
def test_the_true_probability_is_never_above_the_accounted_one(probability: float):
    threshold = _threshold(probability)
    assert threshold / 2.0**32 <= probability < (threshold + 1) / 2.0**32


def test_a_coin_falls_for_exactly_the_accounted_number_of_words(monkeypatch):
    """Of the 2^32 words, those below q 2^32 draw an example: not one more, and no rounding to float32."""
    for probability in (0.1, 0.3, 1 / 3, 0.999):
        first = _threshold(probability)
        words = jnp.asarray(np.array([0, first - 1, first, first + 1, 2**32 - 1], np.uint32))
        monkeypatch.setattr(jax.random, "bits", lambda *_, words=words: words)
        assert included(jax.random.key(0), 5, probability).tolist() == [True, True, False, False, False]


def test_probability_one_draws_everything():
    assert draw(PoissonSampling(13, 1), jax.random.key(0), 20).all()


@pytest.mark.quick
def test_one_trace_serves_every_step_and_repeats_exactly(key: jax.Array):
    traces = 0
    sampling = PoissonSampling(200, 0.1)

    @jax.jit
    def sample(key: jax.Array, step: jax.Array) -> Batch:
        nonlocal traces
        traces += 1
        return sampling.sample(key, step)

    batches = [np.concatenate(sample(key, jnp.int32(step))) for step in range(20)]
    assert traces == 1
    assert len({batch.tobytes() for batch in batches}) == 20
    np.testing.assert_array_equal(batches[7], np.concatenate(sample(key, jnp.int32(7))))
    assert batches[7].tobytes() != np.concatenate(sample(jax.random.key(1), jnp.int32(7))).tobytes()


@pytest.mark.parametrize(("n", "q"), [(1, 0.5), (100, 0.01), (1000, 0.5), (34_000, 0.03), (10**6, 1e-3), (50, 1.0)])
def test_default_padding_is_the_smallest_that_practically_never_overflows(n: int, q: float):
    padded = PoissonSampling(n, q).padded_batch_size
    assert padded % 8 == 0 and padded <= n + 8
    assert overflow_probability(n + 1, q, padded) <= 1e-20
    assert padded == 8 or overflow_probability(n + 1, q, padded - 8) > 1e-20


def test_overflow_probability_is_accurate_in_the_far_tail():
    n, q, batch_size = 34_001, 0.03, 1400
    sizes = np.arange(batch_size + 1, 3000)
    reference = np.exp(np.logaddexp.reduce(stats.binom.logpmf(sizes, n, q)))
    assert 0 < reference < 1e-29
    np.testing.assert_allclose(overflow_probability(n, q, batch_size), reference, rtol=1e-6)


def test_expected_batch_size():
    sampling = PoissonSampling.from_expected_batch_size(8000, 256, padded_batch_size=320)
    assert sampling == PoissonSampling(8000, 0.032, 320)
    assert sampling.expected_batch_size == 256.0


def test_events_say_whether_samples_can_overflow():
    roomy = PoissonSampling(100, 0.1, padded_batch_size=101).event(GAUSSIAN, 7)
    assert roomy == dp_accounting.SelfComposedDpEvent(dp_accounting.PoissonSampledDpEvent(0.1, GAUSSIAN), 7)
    # A batch of 100 holds these examples, but not those of the data set with one more.
    for padded in (99, 100):
        tight = PoissonSampling(100, 0.1, padded_batch_size=padded).event(GAUSSIAN, 7)
        step = TruncatedPoissonDpEvent(100, 0.1, padded, GAUSSIAN)
        assert tight == dp_accounting.SelfComposedDpEvent(step, 7)
    assert FullBatch(100).event(GAUSSIAN, 7) == dp_accounting.SelfComposedDpEvent(GAUSSIAN, 7)


def test_full_batch_has_the_same_interface(key: jax.Array):
    full, poisson = FullBatch(9), PoissonSampling(9, 0.5, padded_batch_size=8)
    assert isinstance(full, Sampling) and isinstance(poisson, Sampling)
    assert (full.sampling_probability, full.padded_batch_size, full.expected_batch_size) == (1.0, 9, 9.0)
    indices, mask = full.sample(key, 3)
    np.testing.assert_array_equal(indices, np.arange(9))
    assert bool(mask.all())
    assert "every example" in full.description and "cut" in poisson.description


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PoissonSampling(0, 0.5), "num_examples must be at least 1"),
        (lambda: PoissonSampling(10, 0.0), "sampling_probability must be above 0 and at most 1"),
        (lambda: PoissonSampling(10, 1.01), "sampling_probability must be above 0 and at most 1"),
        (lambda: PoissonSampling(10, float("nan")), "sampling_probability must be above 0 and at most 1"),
        (lambda: PoissonSampling(10, 2.0**-33), "sampling_probability must be at least 2"),
        (lambda: PoissonSampling(10, 0.5, 0), "padded_batch_size must be at least 1"),
        (lambda: PoissonSampling.from_expected_batch_size(10, 11), "expected_batch_size must be above 0"),
        (lambda: PoissonSampling.from_expected_batch_size(0, 1), "num_examples must be at least 1"),
        (lambda: FullBatch(0), "num_examples must be at least 1"),
        (lambda: FullBatch(3).event(GAUSSIAN, 0), "num_steps must be at least 1"),
        (lambda: PoissonSampling(10, 0.5).event(GAUSSIAN, 0), "num_steps must be at least 1"),
    ],
)
def test_bad_input_is_one_sentence(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
