"""A state that was saved goes on with the streams and counts that it had: no draw comes twice."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdp import transforms
from jaxdp.training import TrainState
from jaxdp.training.running._checkpoint import Checkpoints


def test_a_checkpoint_gives_back_every_bit_keys_and_counts_included(tmp_path, key):
    private = transforms.adaptive_dpsgd(initial_norm=1.0, noise_multiplier=0.5, expected_batch_size=64.0, key=key)
    tx = optax.chain(private, optax.adam(0.1))
    params = {"w": jnp.zeros(3)}

    def state(root):
        own = jax.tree.map(lambda x: x, tx.init(params))
        return TrainState(params, own, jax.random.key(root), jnp.int32(0))

    def moved(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.fold_in(leaf, 5)
        return leaf + jnp.asarray(7, leaf.dtype)

    trained = jax.tree.map(moved, state(1))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(7, trained, {"phase": 0}, wait=True)
    checkpoints.close()
    again = Checkpoints(tmp_path / "checkpoints")
    step, meta = again.latest()
    restored = again.restore(step, meta, state(2))
    again.close()
    bits = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    assert jax.tree.structure(restored) == jax.tree.structure(trained) and step == 7
    for found, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(trained), strict=True):
        np.testing.assert_array_equal(bits(found), bits(expected))
    counts = [x for x in jax.tree.leaves(restored) if x.dtype == jnp.int32]
    assert len(counts) >= 3 and all(int(x) == 7 for x in counts)
