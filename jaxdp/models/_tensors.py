"""The files of a Hugging Face directory: safetensors (one file or several), config.json, tokenizer files."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxdp._files import replaced, write_text

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def read_tensors(directory: str | Path) -> dict[str, np.ndarray]:
    """The tensors of model.safetensors, or of the files that model.safetensors.index.json lists."""
    root = Path(directory)
    if (root / _WEIGHTS).is_file() or not (root / _INDEX).is_file():
        return _read_file(root / _WEIGHTS)
    index = json.loads((root / _INDEX).read_text(encoding="utf-8"))
    tensors: dict[str, np.ndarray] = {}
    for name in sorted(set(index["weight_map"].values())):
        tensors |= _read_file(root / Path(name).name)
    refuse("missing", set(index["weight_map"]) - set(tensors), directory)
    return tensors


def _read_file(path: Path) -> dict[str, np.ndarray]:
    """The tensors of one safetensors file."""
    import safetensors.numpy  # comes with the extra `train`; the models themselves do without

    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: save the weights as safetensors (save_pretrained(..., "
            "safe_serialization=True) in transformers)."
        )
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error}): download it again.") from error


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
    """A tensor, if it has the shape that the config asks for."""
    if tensors[name].shape != shape:
        raise ValueError(f"tensor {name} has shape {tensors[name].shape}, but config.json asks for {shape}.")
    return tensors[name]


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
