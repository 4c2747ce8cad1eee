"""Batches of examples that lie on several devices."""

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdp import parallel
from jaxdp.accounting import TruncatedPoissonDpEvent
from jaxdp.sampling import FullBatch, PoissonSampling, ShardedFullBatch, ShardedPoissonSampling

from .hlo import exchanged

GAUSSIAN = dp_accounting.GaussianDpEvent(1.0)


def sharding():
    return parallel.batch_sharding(parallel.make_mesh(data=2, fsdp=4))


def test_the_batch_is_that_of_one_device_and_no_row_moves():
    sampler, alone = ShardedPoissonSampling(99, 0.2, sharding()), PoissonSampling(99, 0.2)
    assert (sampler.shards, sampler.rows_per_shard, sampler.padded_num_examples) == (8, 13, 104)
    # What a sum is divided by is public, and not one device's share.
    assert sampler.expected_batch_size == alone.expected_batch_size
    data = parallel.shard_examples(lambda rows: {"twice": 2 * rows}, sampler)

    def draw(key, step, data):
        batch = sampler.sample(key, step)
        return batch, sampler.take(data, batch)

    key = jax.random.key(4)
    compiled = jax.jit(draw).lower(key, jnp.int32(0), data).compile()
    assert exchanged(compiled) == 0
    for step in map(jnp.int32, range(5)):
        batch, taken = compiled(key, step, data)
        rows, mask = np.asarray(batch.indices), np.asarray(batch.mask)
        expected = alone.sample(key, step)
        same = np.sort(np.asarray(expected.indices)[np.asarray(expected.mask)])
        np.testing.assert_array_equal(np.sort(rows[mask]), same)
        np.testing.assert_array_equal(np.asarray(taken["twice"])[mask], 2 * rows[mask])
        # The part of each device holds rows of its own only, the real ones first.
        own, real = rows.reshape(8, -1), mask.reshape(8, -1)
        np.testing.assert_array_equal(own // 13, np.arange(8)[:, None] * np.ones_like(own))
        assert (np.sort(real, axis=1)[:, ::-1] == real).all()
        formed, formed_mask = parallel.form_batch(sampler, key, step, lambda rows: 2 * rows)
        np.testing.assert_array_equal(formed_mask, mask)
        np.testing.assert_array_equal(np.asarray(formed)[mask], 2 * rows[mask])


def test_samples_of_a_shard_that_overflow_are_cut_to_a_uniformly_random_subset():
    sampler = ShardedPoissonSampling(32, 0.6, sharding(), 16)
    batches = jax.jit(jax.vmap(lambda step: sampler.sample(jax.random.key(1), step)))(jnp.arange(1500))
    member = np.zeros((1500, 32), bool)
    steps, places = np.nonzero(np.asarray(batches.mask))
    member[steps, np.asarray(batches.indices)[steps, places]] = True
    assert member.sum() == batches.mask.sum()
    sizes = member.reshape(1500, 8, 4).sum(axis=2).reshape(-1)
    assert sizes.max() == 2 and abs((sizes == 2).mean() - stats.binom.sf(1, 4, 0.6)) < 0.02
    # Of the samples of two out of four, each of the six pairs is equally likely.
    full = member.reshape(-1, 4)[sizes == 2]
    counts = np.unique(full @ [1, 2, 4, 8], return_counts=True)[1]
    assert len(counts) == 6 and stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.quick
def test_the_event_is_that_of_one_shard():
    cut = sharding()
    roomy = ShardedPoissonSampling(99, 0.2, cut, 8 * 16).event(GAUSSIAN, 7)
    assert roomy == dp_accounting.SelfComposedDpEvent(dp_accounting.PoissonSampledDpEvent(0.2, GAUSSIAN), 7)
    tight = ShardedPoissonSampling(104, 0.2, cut, 8 * 13).event(GAUSSIAN, 7)
    assert tight == dp_accounting.SelfComposedDpEvent(TruncatedPoissonDpEvent(13, 0.2, 13, GAUSSIAN), 7)
    with pytest.raises(ValueError, match="99 examples do not divide into 8 equal shards"):
        ShardedPoissonSampling(99, 0.2, cut, 8 * 4)
    with pytest.raises(ValueError, match="make it a multiple of 8"):
        ShardedPoissonSampling(99, 0.2, cut, 100)


def test_a_full_batch_is_filled_up_to_equal_shards(key: jax.Array):
    full = ShardedFullBatch(13, sharding())
    assert isinstance(full, FullBatch) and full.padded_batch_size == 16 and full.expected_batch_size == 13.0
    rows, mask = full.sample(key, 0)
    np.testing.assert_array_equal(np.asarray(rows)[np.asarray(mask)], np.arange(13))
    data = parallel.shard_examples(lambda rows: rows, full)
    assert full.take(data, full.sample(key, 0)) is data and data.shape == (16,)
    assert full.event(GAUSSIAN, 7) == FullBatch(13).event(GAUSSIAN, 7)
