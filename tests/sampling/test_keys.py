"""Keys: full entropy, no truncated seeds, streams that never meet."""

import os

import jax
import numpy as np
import pytest

from jaxdp.sampling import key_from_entropy, key_from_seed, streams


def words(key: jax.Array) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


@pytest.mark.quick
def test_all_64_bits_of_a_seed_count():
    seeds = [0, 1, 1 << 32, (1 << 32) + 1, 1 << 63, (1 << 64) - 1]
    assert [words(key_from_seed(seed)) for seed in seeds] == [(seed >> 32, seed & 0xFFFFFFFF) for seed in seeds]
    assert words(key_from_seed(12345)) == words(jax.random.key(12345, impl="threefry2x32"))
    assert key_from_seed(1).dtype == jax.random.key(1, impl="threefry2x32").dtype


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_a_seed_that_does_not_fit_is_refused_without_being_shown(seed: int):
    with pytest.raises(ValueError, match="seed must be an integer of at least 0 and below") as error:
        key_from_seed(seed)
    assert str(seed) not in str(error.value).replace("2**64", "")


def test_entropy_keys_use_eight_bytes_of_the_operating_system(monkeypatch: pytest.MonkeyPatch):
    assert len({words(key_from_entropy()) for _ in range(20)}) == 20
    monkeypatch.setattr(os, "urandom", lambda count: bytes(range(1, count + 1)))
    assert words(key_from_entropy()) == (0x01020304, 0x05060708)


def test_streams_of_one_key_are_distinct_and_differ_from_it():
    for seed in (0, 1, 1 << 40):
        root = key_from_seed(seed)
        keys = streams(root)
        assert keys._fields[:2] == ("noise", "sampling")
        assert len({words(key) for key in (root, *keys)}) == len(keys) + 1


def test_streams_stay_the_same_from_release_to_release():
    # A run resumed by a later version must find its streams: these numbers may never change.
    keys = streams(key_from_seed(7))
    assert [words(key) for key in keys] == [
        words(jax.random.fold_in(jax.random.key(7), tag)) for tag in (1, 2, 3, 4, 5, 6)
    ]
    assert keys._fields == ("noise", "sampling", "dropout", "init", "estimator", "order")
