"""The files of a Hugging Face directory: safetensors (one file or several), config.json, tokenizer files."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdp._files import replaced, write_text
from jaxdp._reading import read_json, reason, regular_file

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def read_tensors(directory: str | Path) -> dict[str, np.ndarray]:
    """The tensors of model.safetensors, or of the files that model.safetensors.index.json lists."""
    root = Path(directory)
    if (root / _WEIGHTS).is_file() or not (root / _INDEX).is_file():
        return _read_file(root / _WEIGHTS)
    places = read_json(root / _INDEX, "download it again").get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{root / _INDEX} must say in weight_map which file holds which tensor: download it again.")
    tensors: dict[str, np.ndarray] = {}
    for name in sorted(set(places.values())):
        tensors |= _read_file(root / (Path(name).name or "nameless"))
    refuse("missing", set(places) - set(tensors), directory)
    return tensors


def _read_file(path: Path) -> dict[str, np.ndarray]:
    """The tensors of one safetensors file."""
    import safetensors.numpy  # comes with the extra `train`; the models themselves do without

    regular_file(
        path, "save the weights as safetensors (save_pretrained(..., safe_serialization=True) in transformers)"
    )
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path} is not a safetensors file ({reason(error)}): download it again.") from error


def write_directory(
    directory: str | Path,
    values: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    tokenizer_dir: str | Path | None,
) -> Path:
    """Write config.json and model.safetensors, and copy the tokenizer's files along."""
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    if tokenizer_dir is not None:
        _copy_tokenizer(Path(tokenizer_dir), target)
    write_text(target / "config.json", json.dumps(values, indent=2) + "\n")
    import safetensors.numpy  # comes with the extra `train`; the models themselves do without

    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    with replaced(target / _WEIGHTS) as temporary:
        safetensors.numpy.save_file(contiguous, temporary, metadata={"format": "pt"})
    return target


def checked(tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of finite floats, if it has the shape that the config asks for."""
    found = tensors[name]
    if found.shape != shape:
        raise ValueError(f"tensor {name} has shape {found.shape}, but config.json asks for {shape}.")
    # Not np.floating: bfloat16 is none of NumPy's own.
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(f"tensor {name} holds {found.dtype} values: weights must be floats, so save them as such.")
    # A float64 that is finite may be none in float32.
    with np.errstate(over="ignore"):
        wide = found.astype(np.float32)
    if not np.all(np.isfinite(wide)):
        count = int(np.sum(~np.isfinite(wide)))
        raise ValueError(
            f"tensor {name} has {count:,} values that are not finite (in float32): load another checkpoint."
        )
    return found


def refuse(kind: str, names: Iterable[str], source: str | Path) -> None:
    """Raise when there are such names, listing the first of them."""
    found = sorted(names)
    if found:
        path = Path(source) / _WEIGHTS if Path(source).is_dir() else Path(source)
        shown = ", ".join(found[:6]) + (f" and {len(found) - 6} more" if len(found) > 6 else "")
        raise ValueError(f"{path} has {kind} tensors: {shown}.")


def _copy_tokenizer(source: Path, target: Path) -> None:
    """Copy tokenizer.json and what transformers reads beside it."""
    if not (source / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{source / 'tokenizer.json'} does not exist: give the model's own directory.")
    names = (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.txt",
        "vocab.json",
        "merges.txt",
    )
    for name in names:
        if (source / name).is_file() and source.resolve() != target.resolve():
            shutil.copyfile(source / name, target / name)
