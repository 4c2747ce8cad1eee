"""The pretrained decoder of a run: which layers, which adapters, and the stored outputs of what lies below `top`."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxdp import models
from jaxdp.training._errors import UserError
from jaxdp.training.config._config import Config
from jaxdp.training.config._phase import PhaseConfig
from jaxdp.training.files._stored import made_by, read_stored, write_stored
from jaxdp.training.tasks._features import batch_size, by_length
from jaxdp.training.tasks._split_model import Params, fingerprint
from jaxdp.training.tasks._task import Progress

# The adapters of a run begin with values that everybody may know.
_LORA_SEED = 0
_BLOCK = 512


def load_decoder(config: Config, path: Path) -> models.LlamaDecoder:
    """The decoder that `[model]` names, cut and divided as it says, without adapters."""
    try:
        decoder = models.load_decoder(path)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"model.path: {error}") from error
    section = config.model
    if section.layers is not None:
        decoder = _lowest(decoder, section.layers)
    if section.top_layers is not None:
        try:
            decoder = models.split_top(decoder, section.top_layers)
        except ValueError as error:
            raise UserError(f"model.top_layers: {error}") from error
    return decoder


def with_adapters(model: Any, config: Config) -> Any:
    """The model with what `[lora]` asks for."""
    if config.lora.rank is None:
        return model
    try:
        return models.add_lora(
            model,
            rank=config.lora.rank,
            alpha=config.lora.alpha,
            targets=config.lora.targets,
            rngs=nnx.Rngs(_LORA_SEED),
        )
    except ValueError as error:
        raise UserError(f"lora: {error}") from error


def _lowest(decoder: models.LlamaDecoder, count: int) -> models.LlamaDecoder:
    """A decoder of the lowest layers."""
    try:
        return models.lowest_layers(decoder, count)
    except ValueError as error:
        raise UserError(f"model.layers: {error}") from error


def check_cached(trained: Sequence[str], prefix: str, phase: PhaseConfig, field: str) -> None:
    """Refuse to store what a phase changes."""
    if phase.features != "cached":
        return
    above = (f"{prefix}top/", f"{prefix}norm/", f"{prefix}lm_head/", "head/")
    below = [name for name in trained if not name.startswith(above)]
    if below:
        raise UserError(
            f'{field}.features is "cached", but {field}.train also trains {below[0]}, whose output would be stored: '
            'use "live", or set model.top_layers and lora.targets so that only layers of top/ are trained.'
        )


def stored_hidden(
    decoder: models.LlamaDecoder,
    params: Params,
    prefix: str,
    ids: np.ndarray,
    mask: np.ndarray,
    dtype: str,
    directory: Path,
    progress: Progress,
) -> np.ndarray:
    """What `LlamaDecoder.below` makes of every record, [n, seq, hidden], computed once and kept on disk.

    Args:
      decoder: the model.
      params: its values by path, of which those below `top` name the file.
      prefix: of their paths.
      ids: token ids, one row a record.
      mask: true where there is a token.
      dtype: of the stored values.
      directory: where they are kept, readable by their owner only.
      progress: called with (records done, records in all).
    """
    below = {name: x for name, x in params.items() if name.startswith((f"{prefix}embedding", f"{prefix}layers/"))}
    digest = hashlib.sha256(f"{dtype} {made_by()} {fingerprint(below)}".encode())
    for part in (ids.astype("<i4"), mask):
        digest.update(repr(part.shape).encode() + np.ascontiguousarray(part).tobytes())
    file = directory / f"{digest.hexdigest()[:40]}.npz"
    shape = (*ids.shape, decoder.config.hidden_size)
    if (stored := read_stored(file, {"hidden": (shape, dtype)})) is not None:
        progress(len(ids), len(ids))
        return stored["hidden"]
    hidden = np.zeros(shape, dtype)
    graphdef, state = nnx.split(decoder)
    done = 0
    for rows, length in by_length(mask, _BLOCK):
        size = batch_size(len(rows), length)
        for begin in range(0, len(rows), size):
            # The last batch is filled up with copies: a second shape would mean a second compilation.
            at = rows[begin : begin + size]
            part = np.asarray(_below(graphdef, state, ids[np.resize(at, size), :length]))[: len(at)]
            hidden[at, :length] = np.where(mask[at, :length, None], part, 0)
            done += len(at)
            progress(done, len(ids))
    if not np.all(np.isfinite(hidden)):
        raise UserError(
            f'the outputs of the frozen layers do not fit into {dtype}: set features_dtype = "float32" in the phase.'
        )
    write_stored(file, {"hidden": hidden})
    return hidden


@partial(jax.jit, static_argnums=0)
def _below(graphdef: Any, state: Any, ids: Array) -> Array:
    return jax.vmap(nnx.merge(graphdef, state).below)(ids)


def batches(examples: Any, mask: np.ndarray, tokens: int) -> Iterator[tuple[Any, np.ndarray]]:
    """Held-out examples in batches of similar length with at most so many tokens, and which rows of each are real."""
    for rows, length in by_length(mask, _BLOCK):
        size = min(len(rows), max(1, tokens // length))
        for begin in range(0, len(rows), size):
            at = rows[begin : begin + size]
            filled = np.resize(at, size)
            cut = {
                name: x[filled] if name == "label" else x[filled, :length]
                for name, x in examples._asdict().items()
                if x is not None
            }
            yield type(examples)(**jax.tree.map(jnp.asarray, cut)), np.arange(size) < len(at)
