"""The outputs of frozen layers, computed once and kept on disk."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jaxlib
import numpy as np

from jaxdp import data, models
from jaxdp.training._classifier import Classifier, Params, fingerprint

# Texts are padded to a multiple of this many tokens: little waste, few shapes to compile.
LENGTH_MULTIPLE = 8
_BLOCK, _BATCH = 1024, 256


def by_length(mask: np.ndarray, block: int) -> Iterator[tuple[np.ndarray, int]]:
    """Rows of similar length together, in pieces of at most `block`, with the padded length they need."""
    longest = mask.shape[1]
    lengths = np.maximum(1, mask.sum(axis=1))
    padded = np.minimum(longest, -(-lengths // LENGTH_MULTIPLE) * LENGTH_MULTIPLE)
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
) -> np.ndarray:
    """The input of layer `start` for every text, or the mean hidden state if `start` is above the last layer.

    Args:
      classifier: the model.
      params: its values.
      texts: what to run it on.
      start: number of frozen layers.
      directory: where the outputs are kept, under a name that depends on everything they are computed from.
      progress: called with (texts done, texts in all).

    Returns:
      `[n, seq, hidden]` or `[n, hidden]`, float32.
    """
    encoder = classifier.build(params).encoder
    pooled = start == encoder.config.num_hidden_layers
    file = directory / f"{_name(params, texts, start)}.npy"
    if file.exists():
        return np.load(file)
    shape = (len(texts), encoder.config.hidden_size) if pooled else (*texts.ids.shape, encoder.config.hidden_size)
    out = np.zeros(shape, np.float32)
    done = 0
    for rows, length in by_length(texts.mask, _BLOCK):
        ids, mask = texts.ids[rows, :length], texts.mask[rows, :length]
        if pooled:
            out[rows] = models.encode_features(encoder, ids, mask, batch_size=_BATCH)
        else:
            out[rows, :length] = models.encode_hidden(encoder, ids, mask, layers=start, batch_size=_BATCH)
        done += len(rows)
        progress(done, len(texts))
    _write(file, out)
    return out


def _name(params: Params, texts: data.TokenisedText, start: int) -> str:
    digest = hashlib.sha256()
    lower = {name: x for name, x in params.items() if _is_below(name, start)}
    for part in (fingerprint(lower), data.fingerprint(texts), str(start), jax.__version__, jaxlib.__version__):
        digest.update(part.encode())
    digest.update(jax.devices()[0].device_kind.encode())
    return digest.hexdigest()[:40]


def _is_below(name: str, start: int) -> bool:
    parts = name.split("/")
    if parts[:2] == ["encoder", "layers"]:
        return int(parts[2]) < start
    return parts[:2] == ["encoder", "embeddings"]


def _write(file: Path, array: np.ndarray) -> None:
    """Whole or not at all, and for nobody else to read."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
        np.save(stream, array)
    os.replace(temporary, file)
