"""The output of frozen layers, computed once for a whole data set."""

from functools import partial

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int32

from ._bert import BertEncoder


def encode_hidden(
    encoder: BertEncoder,
    ids: Int32[np.ndarray, "n seq"],
    mask: Bool[np.ndarray, "n seq"],
    *,
    layers: int,
    batch_size: int = 256,
) -> Float[np.ndarray, "n seq hidden"]:
    """The input of layer `layers` for every text: what `HiddenExample` stores.

    Args:
        encoder: its embeddings and bottom layers are run, without dropout.
        ids: token ids, one row a text.
        mask: true where there is a token.
        layers: number of layers to run; see `frozen_layers`.
        batch_size: texts that are run at once.

    Returns:
        Hidden states; n x seq x hidden x 4 bytes in float32.
    """
    return _run(encoder, ids, mask, layers=layers, pool=False, batch_size=batch_size)


def encode_features(
    encoder: BertEncoder,
    ids: Int32[np.ndarray, "n seq"],
    mask: Bool[np.ndarray, "n seq"],
    *,
    batch_size: int = 256,
) -> Float[np.ndarray, "n hidden"]:
    """The mean hidden state of every text: what `FeatureExample` stores.

    Args:
        encoder: is run without dropout.
        ids: token ids, one row a text.
        mask: true where there is a token.
        batch_size: texts that are run at once.

    Returns:
        One row a text.
    """
    layers = encoder.config.num_hidden_layers
    return _run(encoder, ids, mask, layers=layers, pool=True, batch_size=batch_size)


def _run(
    encoder: BertEncoder, ids: np.ndarray, mask: np.ndarray, *, layers: int, pool: bool, batch_size: int
) -> np.ndarray:
    """Run the bottom layers in batches of one shape."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
    graphdef, state = nnx.split(encoder)
    out = None
    for begin in range(0, len(ids), batch_size):
        rows = slice(begin, begin + batch_size)
        count = len(ids[rows])
        # The last batch is filled up with masked rows: a second shape would mean a second compilation.
        fill = ((0, batch_size - count), (0, 0))
        block = np.asarray(_encode(graphdef, layers, pool, state, np.pad(ids[rows], fill), np.pad(mask[rows], fill)))
        if out is None:
            out = np.empty((len(ids), *block.shape[1:]), block.dtype)
        out[rows] = block[:count]
    if out is None:
        raise ValueError("there are no texts to encode: ids has no rows.")
    return out


@partial(jax.jit, static_argnums=(0, 1, 2))
def _encode(graphdef, layers, pool, state, ids, mask):
    encoder = nnx.merge(graphdef, state)

    def one(ids, mask):
        hidden = encoder.embed(ids, mask, deterministic=True)
        hidden = encoder.layers_from(hidden, mask, 0, stop=layers, deterministic=True)
        return encoder.pooled(hidden, mask) if pool else hidden

    return jax.vmap(one)(ids, mask)
