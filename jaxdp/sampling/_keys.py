"""Random keys: from the operating system's entropy or a seed, and split into streams that never meet."""

import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxdp._shown import of_shapes

_IMPLEMENTATION = "threefry2x32"


class Streams(NamedTuple):
    """Independent keys of one run, one per purpose.

    Attributes:
        noise: the Gaussian noise of the releases; fold in the step.
        sampling: which examples make up a batch; fold in the step.
        dropout: randomness inside the model.
        init: initial values of new parameters.
        estimator: probes of randomised norm estimators and random subspaces.
        order: in which order full batches lie.
    """

    __repr__ = of_shapes

    noise: Key[Array, ""]
    sampling: Key[Array, ""]
    dropout: Key[Array, ""]
    init: Key[Array, ""]
    estimator: Key[Array, ""]
    order: Key[Array, ""]


def key_from_entropy() -> Key[Array, ""]:
    """A key with 64 bits of the operating system's entropy: what a private run should use.

    Whoever knows the key can subtract the noise. It is as confidential as the data: never print or publish
    it.

    Returns:
        A typed threefry key.

    Example:
        >>> key_from_entropy().shape
        ()
    """
    return key_from_seed(int.from_bytes(os.urandom(8), "big"))


def key_from_seed(seed: int) -> Key[Array, ""]:
    """A key from a seed of up to 64 bits, all of which count.

    `jax.random.key` drops the upper 32 bits unless 64-bit mode is on. Below 2^32 both give the same key. For
    tests and reproducible experiments; a run whose seed is known has no privacy against those who know it.

    Args:
        seed: integer in [0, 2^64).

    Returns:
        A typed threefry key.

    Raises:
        ValueError: the seed does not fit into 64 bits.

    Example:
        >>> bool((jax.random.key_data(key_from_seed(1)) == jax.random.key_data(jax.random.key(1))).all())
        True
    """
    if not 0 <= seed < 1 << 64:
        raise ValueError("seed must be an integer of at least 0 and below 2**64.")
    words = np.array([seed >> 32, seed & 0xFFFFFFFF], dtype=np.uint32)
    return jax.random.wrap_key_data(jnp.asarray(words), impl=_IMPLEMENTATION)


def streams(key: Key[Array, ""]) -> Streams:
    """Split one root key into the independent, named streams of a run.

    Stream i is `fold_in(key, i)`. For a threefry key this is a block cipher applied to i, a bijection, so two
    streams of one root never hold the same key: noise can not be predicted from the choice of batches, nor
    the other way round. The tags are fixed: a resumed run finds the same streams.

    Args:
        key: the root key, to be used for nothing else.

    Returns:
        One key per purpose.

    Example:
        >>> keys = streams(key_from_seed(7))
        >>> noise_of_step_3 = jax.random.fold_in(keys.noise, 3)
    """
    # Tags start at 1 and are never reused for another purpose.
    return Streams(*(jax.random.fold_in(key, tag) for tag in range(1, len(Streams._fields) + 1)))
