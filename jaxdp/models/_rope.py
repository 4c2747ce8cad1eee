"""Rotary position embeddings, with the rescalings that Llama checkpoints ask for."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from ._checks import check_number, check_whole, short, widened
from ._layers import widen

_LLAMA3_FIELDS = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")

_WHOLE = ("original_max_position_embeddings",)


@dataclasses.dataclass(frozen=True)
class Rope:
    """Angles of the rotary position embedding: position t turns pair i by ``t theta^(-2i/d)``.

    With ``kind="linear"`` every frequency is divided by `factor`. With ``kind="llama3"`` (Llama 3.1 and later) those of
    wavelength above ``original_max_position_embeddings / low_freq_factor`` are, those below
    ``original_max_position_embeddings / high_freq_factor`` are not, and between the two the inverse frequency is
    interpolated.

    Args:
        theta: the base.
        kind: which rescaling.
        factor: how much longer the context has become.
        low_freq_factor: see above.
        high_freq_factor: see above.
        original_max_position_embeddings: context length before the rescaling.

    Raises:
        ValueError: a base or factor that is not positive, or factors in the wrong order.

    References:
        Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021.
    """

    theta: float = 10000.0
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self):
        for name, high in (("theta", 1e12), ("factor", 1e6), ("low_freq_factor", 1e6), ("high_freq_factor", 1e6)):
            check_number(f"rope {name}", getattr(self, name), 0, high, above=True)
        check_whole("rope original_max_position_embeddings", self.original_max_position_embeddings)
        if self.kind not in ("default", "linear", "llama3"):
            raise ValueError(f'the kind of rope is {self.kind!r}, but only "default", "linear" and "llama3" are known.')
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                "rope needs 0 < low_freq_factor < high_freq_factor, not "
                f"{self.low_freq_factor!r} and {self.high_freq_factor!r}."
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Rope":
        """Read a Hugging Face ``config.json``: ``rope_parameters``, or ``rope_theta`` and ``rope_scaling`` of old."""
        found: dict[str, Any] = {}
        for key in ("rope_scaling", "rope_parameters"):
            given = values.get(key) or {}
            if not isinstance(given, dict):
                raise ValueError(f"config.json has {key} = {short(given)}: it must be an object.")
            found |= given
        theta = found.get("rope_theta", values.get("rope_theta", 10000.0))
        kind = found.get("rope_type", found.get("type", "default"))
        if kind == "default":
            return cls(theta=widened(theta))
        if kind not in ("linear", "llama3"):
            raise ValueError(
                f'config.json has rope type {short(kind)}, but only "default", "linear" and "llama3" can be loaded.'
            )
        wanted = ("factor", *(_LLAMA3_FIELDS if kind == "llama3" else ()))
        missing = [name for name in wanted if name not in found]
        if missing:
            raise ValueError(f"config.json's rope parameters lack {', '.join(missing)}.")
        options = {name: found[name] if name in _WHOLE else widened(found[name]) for name in wanted}
        return cls(theta=widened(theta), kind=kind, **options)

    def to_dict(self) -> dict[str, Any]:
        """The ``rope_parameters`` of a Hugging Face ``config.json``."""
        values: dict[str, Any] = {"rope_theta": self.theta, "rope_type": self.kind}
        if self.kind != "default":
            values["factor"] = self.factor
        if self.kind == "llama3":
            values |= {name: getattr(self, name) for name in _LLAMA3_FIELDS}
        return values

    def frequencies(self, head_size: int) -> Float64[np.ndarray, "half"]:
        """Radians per position of each pair of features."""
        plain = self.theta ** (-np.arange(0, head_size, 2) / head_size)
        if self.kind == "default":
            return plain
        if self.kind == "linear":
            return plain / self.factor
        turns = self.original_max_position_embeddings * plain / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = np.clip(kept, 0.0, 1.0)
        return kept * plain + (1.0 - kept) * plain / self.factor

    def tables(self, length: int, head_size: int) -> tuple[Float[Array, "seq half"], Float[Array, "seq half"]]:
        """Cosines and sines of the angles at positions 0, ..., `length` - 1."""
        angles = np.arange(length)[:, None] * self.frequencies(head_size)[None, :]
        return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)


def rotate(
    x: Float[Array, "seq heads head"], cosines: Float[Array, "seq half"], sines: Float[Array, "seq half"]
) -> Float[Array, "seq heads head"]:
    """Turn feature i of the first half against feature i of the second half, in float32 or wider."""
    first, second = jnp.split(widen(x), 2, axis=-1)
    cos, sin = cosines.astype(first.dtype)[:, None, :], sines.astype(first.dtype)[:, None, :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
