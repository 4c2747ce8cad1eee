"""The output of frozen layers, computed once for a whole data set."""

from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int32

from jaxdp._shown import of_shapes

from ._bert import BertEncoder


class Encoded(NamedTuple):
    """What frozen layers make of a data set.

    Attributes:
        hidden: the input of layer `layers`, [n, seq, hidden]; None if it was not asked for.
        means: the masked means of the embeddings and of every layer run, [n, layers + 1, hidden].
    """

    __repr__ = of_shapes

    hidden: Float[np.ndarray, "n seq hidden"] | None
    means: Float[np.ndarray, "n levels hidden"]


def encode(
    encoder: BertEncoder,
    ids: Int32[np.ndarray, "n seq"],
    mask: Bool[np.ndarray, "n seq"],
    *,
    layers: int,
    hidden: bool,
    batch_size: int = 256,
) -> Encoded:
    """Run the embeddings and the bottom layers on every text, without dropout.

    Args:
        encoder: its bottom layers are run.
        ids: token ids, one row a text.
        mask: true where there is a token.
        layers: number of layers to run; see `frozen_layers`.
        hidden: whether to keep the hidden states, which `HiddenExample` stores; n x seq x hidden x 4 bytes in float32.
        batch_size: texts that are run at once.

    Returns:
        Hidden states and means.

    Raises:
        ValueError: no texts, or a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
    if not len(ids):
        raise ValueError("there are no texts to encode: ids has no rows.")
    graphdef, state = nnx.split(encoder)
    blocks = []
    for begin in range(0, len(ids), batch_size):
        rows = slice(begin, begin + batch_size)
        count = len(ids[rows])
        # The last batch is filled up with masked rows: a second shape would mean a second compilation.
        fill = ((0, batch_size - count), (0, 0))
        block = _encode(graphdef, layers, hidden, state, np.pad(ids[rows], fill), np.pad(mask[rows], fill))
        blocks.append([None if x is None else np.asarray(x)[:count] for x in block])
    states, means = zip(*blocks, strict=True)
    return Encoded(np.concatenate(states) if hidden else None, np.concatenate(means))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _encode(graphdef, layers, keep, state, ids, mask):
    encoder = nnx.merge(graphdef, state)

    def one(ids, mask):
        embedded = encoder.embed(ids, mask, deterministic=True)
        means = encoder.means_from(embedded, mask, 0, stop=layers, deterministic=True)
        last = encoder.layers_from(embedded, mask, 0, stop=layers, deterministic=True) if keep else None
        return last, means

    return jax.vmap(one)(ids, mask)
