"""GGUF files: metadata and tensors, dequantised to float32."""

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import Float32, UInt8

from jaxdp._reading import reason, regular_file
from jaxdp._shown import of_shapes

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# Kinds of metadata values: the format of struct; strings and arrays are longer.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Beyond these nothing is meant: the file is damaged.
_MOST_AXES, _DEEPEST, _LARGEST_ALIGNMENT = 8, 4, 1 << 20


class Gguf(NamedTuple):
    """The contents of a GGUF file.

    Attributes:
        metadata: values by key, such as ``llama.block_count``.
        tensors: float32 arrays by name, such as ``blk.0.attn_q.weight``, the last axis first in memory as in torch.
    """

    __repr__ = of_shapes

    metadata: dict[str, Any]
    tensors: dict[str, Float32[np.ndarray, "..."]]


class _Format(NamedTuple):
    """How a kind of tensor is stored: values and bytes of a block, and the values of many blocks."""

    name: str
    values: int
    size: int
    decode: Callable[[UInt8[np.ndarray, "blocks size"]], Float32[np.ndarray, "blocks values"]]


def _half(blocks: np.ndarray, at: int) -> Float32[np.ndarray, "blocks 1"]:
    """The 16-bit float at a byte of each block."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(blocks: np.ndarray, at: int) -> Float32[np.ndarray, "blocks 32"]:
    """32 numbers 0, ..., 15 from 16 bytes: the low halves first, then the high ones."""
    packed = blocks[:, at : at + 16]
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    """Scale times signed bytes."""
    return _half(blocks, 0) * np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float32)


# By the number that the file gives to each.
_FORMATS = {
    0: _Format("F32", 1, 4, lambda b: np.ascontiguousarray(b).view("<f4").astype(np.float32)),
    1: _Format("F16", 1, 2, lambda b: _half(b, 0)),
    2: _Format("Q4_0", 32, 18, lambda b: _half(b, 0) * (_nibbles(b, 2) - 8.0)),
    3: _Format("Q4_1", 32, 20, lambda b: _half(b, 0) * _nibbles(b, 4) + _half(b, 2)),
    8: _Format("Q8_0", 32, 34, _q8_0),
    30: _Format("BF16", 1, 2, lambda b: np.ascontiguousarray(b).view(ml_dtypes.bfloat16).astype(np.float32)),
}


def read_gguf(path: str | Path, *, tensors: bool = True) -> Gguf:
    """Read a GGUF file, the format of llama.cpp.

    The formats F32, F16, BF16, Q8_0 (a 16-bit scale and 32 signed bytes), Q4_0 and Q4_1 (a 16-bit scale, a 16-bit
    minimum in Q4_1, and 32 four-bit numbers) are read; all tensors become float32.

    Args:
        path: the file.
        tensors: whether to read the tensors, or the metadata alone.

    Returns:
        Metadata and tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no GGUF file of version 2 or 3, is cut off, or has a tensor of another format.

    Example:
        ``read_gguf("model.gguf", tensors=False).metadata["general.architecture"]``
    """
    file = regular_file(path, "give the path of a .gguf file")
    try:
        data = np.memmap(file, np.uint8, mode="r") if file.stat().st_size else np.zeros(0, np.uint8)
        return _parse(data, tensors)
    except (struct.error, IndexError, UnicodeDecodeError, OSError, OverflowError, MemoryError, RecursionError) as error:
        raise ValueError(f"{file} is cut off or damaged ({reason(error)}): download it again.") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _parse(data: np.ndarray, with_tensors: bool) -> Gguf:
    """The contents of a whole file."""
    if data[:4].tobytes() != _MAGIC:
        raise ValueError("this is not a GGUF file.")
    cursor = _Cursor(data, 4)
    version = cursor.scalar("I")
    if version not in _VERSIONS:
        raise ValueError(f"GGUF version {version} is not known: convert the model again with version 3.")
    num_tensors, num_values = cursor.scalar("Q"), cursor.scalar("Q")
    metadata = {}
    for _ in range(num_values):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalar("I"))
    if not with_tensors:
        return Gguf(metadata, {})
    entries = []
    for _ in range(num_tensors):
        name = cursor.string()
        axes = cursor.scalar("I")
        if axes > _MOST_AXES:
            raise ValueError(f"tensor {name[:80]} has {axes:,} axes: download the file again.")
        shape = [cursor.scalar("Q") for _ in range(axes)]
        entries.append((name, shape, cursor.scalar("I"), cursor.scalar("Q")))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= _LARGEST_ALIGNMENT:
        raise ValueError(f"general.alignment must be from 1 to {_LARGEST_ALIGNMENT:,}, not {str(alignment)[:80]}.")
    start = -(-cursor.at // alignment) * alignment
    return Gguf(metadata, {name: _tensor(data, name, shape, kind, start + at) for name, shape, kind, at in entries})


def _tensor(data: np.ndarray, name: str, shape: list[int], kind: int, at: int) -> np.ndarray:
    """One tensor's values."""
    if kind not in _FORMATS:
        known = ", ".join(form.name for form in _FORMATS.values())
        raise ValueError(f"tensor {name[:80]} has format number {kind}, but only {known} can be read.")
    form = _FORMATS[kind]
    # Python's own numbers: a product of sizes that overflowed would pass for a small one.
    blocks = math.prod(shape) // form.values
    if at + blocks * form.size > len(data) or (shape and shape[0] % form.values):
        raise ValueError(f"tensor {name[:80]} is cut off or damaged: download the file again.")
    stored = data[at : at + blocks * form.size]
    # The axis that is contiguous comes first in the file.
    return form.decode(stored.reshape(blocks, form.size)).reshape(shape[::-1])


class _Cursor:
    """Reads values one after the other."""

    def __init__(self, data: np.ndarray, at: int):
        self._data = data
        self.at = at

    def _bytes(self, count: int) -> bytes:
        found = self._data[self.at : self.at + count].tobytes()
        if len(found) != count:
            raise IndexError(f"byte {self.at + count} of {len(self._data)}")
        self.at += count
        return found

    def scalar(self, form: str) -> Any:
        """A number or truth value in the format of struct."""
        return struct.unpack(f"<{form}", self._bytes(struct.calcsize(f"<{form}")))[0]

    def string(self) -> str:
        """A string with its length before it."""
        return self._bytes(self.scalar("Q")).decode("utf-8")

    def value(self, kind: int, depth: int = 0) -> Any:
        """A metadata value."""
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner, count = self.scalar("I"), self.scalar("Q")
            if count > len(self._data) or depth > _DEEPEST:
                raise IndexError(f"an array of {count:,} values at byte {self.at}")
            if inner in _SCALARS:
                form = f"{count}{_SCALARS[inner]}"
                return list(struct.unpack(f"<{form}", self._bytes(struct.calcsize(f"<{form}"))))
            return [self.value(inner, depth + 1) for _ in range(count)]
        if kind not in _SCALARS:
            raise ValueError(f"a metadata value has the unknown kind {kind}: download the file again.")
        return self.scalar(_SCALARS[kind])
