"""The outputs of frozen layers, computed once and kept on disk."""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxdp import data, models
from jaxdp.training.files._stored import Forms, made_by, read_stored, write_stored
from jaxdp.training.tasks._classifier import Classifier
from jaxdp.training.tasks._split_model import Params, fingerprint

# Texts are padded to a multiple of this many tokens: little waste, few shapes to compile.
LENGTH_MULTIPLE = 8
_BLOCK, _BATCH = 1024, 256
# Tokens that are worked on at once.
_BATCH_TOKENS = 1 << 14


def by_length(mask: np.ndarray, block: int) -> Iterator[tuple[np.ndarray, int]]:
    """Rows of similar length together, in pieces of at most `block`, with the padded length they need."""
    longest = mask.shape[1]
    lengths = np.maximum(1, mask.sum(axis=1))
    # Every padded length is compiled anew, so for long texts there are eight of them between powers of two.
    steps = np.maximum(LENGTH_MULTIPLE, 2 ** (np.ceil(np.log2(lengths)).astype(int) - 4).clip(0))
    padded = np.minimum(longest, -(-lengths // steps) * steps)
    for length in np.unique(padded):
        rows = np.flatnonzero(padded == length)
        for begin in range(0, len(rows), block):
            yield rows[begin : begin + block], int(length)


def frozen_outputs(
    classifier: Classifier,
    params: Params,
    texts: data.TokenisedText,
    start: int,
    directory: Path,
    progress: Callable[[int, int], None],
) -> models.Encoded:
    """What the frozen layers make of every text: the input of layer `start`, and the means of all levels up to it.

    Args:
      classifier: the model.
      params: its values.
      texts: what to run it on.
      start: number of frozen layers; the hidden states are kept only if there is a layer above them.
      directory: where the outputs are kept, under a name that depends on everything they are computed from.
      progress: called with (texts done, texts in all).

    Returns:
      Hidden states (or None) and means, float32.
    """
    encoder = classifier.build(params).encoder
    keep, size = start < encoder.config.num_hidden_layers, encoder.config.hidden_size
    file = directory / f"{_name(params, texts, start)}.npz"
    if (stored := read_stored(file, _forms(texts, start, size, keep))) is not None:
        return models.Encoded(stored.get("hidden"), stored["means"])
    hidden = np.zeros((*texts.ids.shape, size), np.float32) if keep else None
    means = np.zeros((len(texts), start + 1, size), np.float32)
    below = _highest_stored(params, texts, start, size, directory)
    done = 0
    for rows, length in by_length(texts.mask, _BLOCK):
        if below is None:
            part = models.encode(
                encoder,
                texts.ids[rows, :length],
                texts.mask[rows, :length],
                layers=start,
                hidden=keep,
                batch_size=batch_size(len(rows), length),
            )
        else:
            part = _continue(encoder, below, rows, texts.mask[rows, :length], start, keep)
        means[rows] = part.means
        if hidden is not None:
            hidden[rows, :length] = part.hidden
        done += len(rows)
        progress(done, len(texts))
    outputs = models.Encoded(hidden, means)
    write_stored(file, {name: x for name, x in outputs._asdict().items() if x is not None})
    return outputs


def batch_size(count: int, length: int) -> int:
    """Rows of a batch, which is filled up: a power of two, so that few shapes are compiled and few rows are in vain."""
    needed = 1 << (count - 1).bit_length()
    return min(needed, _BATCH, max(8, _BATCH_TOKENS // length))


def _forms(texts: data.TokenisedText, layers: int, size: int, keep: bool) -> Forms:
    """What a file of the outputs of so many layers holds."""
    means: Forms = {"means": ((len(texts), layers + 1, size), "float32")}
    return means | ({"hidden": ((*texts.ids.shape, size), "float32")} if keep else {})


def _highest_stored(
    params: Params, texts: data.TokenisedText, start: int, size: int, directory: Path
) -> models.Encoded | None:
    """What an earlier phase stored of a lower layer, if nothing under that layer has changed since."""
    for layer in range(start - 1, 0, -1):
        stored = read_stored(directory / f"{_name(params, texts, layer)}.npz", _forms(texts, layer, size, True))
        if stored is not None:
            return models.Encoded(stored["hidden"], stored["means"])
    return None


def _continue(
    encoder: models.BertEncoder, below: models.Encoded, rows: np.ndarray, mask: np.ndarray, start: int, keep: bool
) -> models.Encoded:
    """As `models.encode` of these rows, from the input of a higher layer."""
    assert below.hidden is not None
    layer = below.means.shape[1] - 1
    graphdef, state = nnx.split(encoder)
    blocks, size = [], batch_size(len(rows), mask.shape[1])
    for begin in range(0, len(rows), size):
        # The last batch is filled up with copies: a second shape would mean a second compilation.
        at = np.resize(np.arange(begin, min(begin + size, len(rows))), size)
        hidden = below.hidden[rows[at], : mask.shape[1]]
        block = _upper_layers(graphdef, layer, start, keep, state, hidden, mask[at])
        blocks.append([None if x is None else np.asarray(x)[: len(rows) - begin] for x in block])
    states, means = zip(*blocks, strict=True)
    # Level `layer` is in both.
    joined = np.concatenate([below.means[rows, :layer], np.concatenate(means)], axis=1)
    return models.Encoded(np.concatenate(states) if keep else None, joined)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _upper_layers(graphdef: Any, layer: int, start: int, keep: bool, state: Any, hidden: Array, mask: Array) -> Any:
    encoder = nnx.merge(graphdef, state)

    def one(hidden: Array, mask: Array) -> tuple[Array | None, Array]:
        means = encoder.means_from(hidden, mask, layer, stop=start, deterministic=True)
        last = encoder.layers_from(hidden, mask, layer, stop=start, deterministic=True) if keep else None
        return last, means

    return jax.vmap(one)(hidden, mask)


def _name(params: Params, texts: data.TokenisedText, start: int) -> str:
    digest = hashlib.sha256()
    lower = {name: x for name, x in params.items() if _is_below(name, start)}
    for part in (fingerprint(lower), data.fingerprint(texts), str(start), made_by()):
        digest.update(part.encode())
    return digest.hexdigest()[:40]


def _is_below(name: str, start: int) -> bool:
    parts = name.split("/")
    if parts[:2] == ["encoder", "layers"]:
        return int(parts[2]) < start
    return parts[:2] == ["encoder", "embeddings"]
