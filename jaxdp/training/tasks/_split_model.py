"""A Flax NNX model as a plain dictionary of arrays, which is what a run trains, saves and compares."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxdp import models
from jaxdp._shown import of_shapes
from jaxdp.training._errors import UserError

Params = dict[str, Array]


@dataclasses.dataclass(frozen=True, eq=False)
class SplitModel:
    """A model, taken apart.

    Attributes:
      graphdef: its structure.
      variables: its variables by path, without their values' meaning; templates for putting it together again.
      params: the values by path, as loaded.
      directory: where its pretrained values and its tokenizer came from; None for a model trained from scratch.
    """

    __repr__ = of_shapes

    graphdef: Any
    variables: dict[str, tuple[tuple[Any, ...], Any]]
    params: Params
    directory: Path | None

    @classmethod
    def of(cls, model: nnx.Module, directory: Path | None):
        """Take a model apart."""
        graphdef, state = nnx.split(model)
        variables = {"/".join(map(str, path)): (path, variable) for path, variable in nnx.to_flat_state(state)}
        params = {name: variable[...] for name, (_, variable) in variables.items()}
        return cls(graphdef, variables, params, directory)

    def build(self, params: Params) -> Any:
        """The module with these values."""
        flat = [(path, variable.replace(params[name])) for name, (path, variable) in self.variables.items()]
        return nnx.merge(self.graphdef, nnx.from_flat_state(flat))

    def trained_paths(self, selection: str | Sequence[str], field: str) -> tuple[str, ...]:
        """The parameters that a phase trains."""
        try:
            return models.trainable_paths(selection, self.build(self.params))
        except ValueError as error:
            raise UserError(f"{field}: {error}") from error


def fingerprint(params: Params) -> str:
    """SHA-256 of names and values."""
    digest = hashlib.sha256()
    for name in sorted(params):
        array = np.asarray(jax.device_get(params[name]))
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
