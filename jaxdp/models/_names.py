"""Which tensor of a Hugging Face file is which parameter."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ._config import BertConfig
from ._convnet import ConvNetConfig
from ._llama_config import LlamaConfig
from ._selection import path_string
from ._tensors import checked, refuse
from ._vit_config import ViTConfig

_MANY = 4096

Model = TypeVar("Model", bound=nnx.Module)

# Within layer i: our path below layers/ -> their name below the layer's prefix.
_BERT_LAYER = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "output_norm": "output.LayerNorm",
}
_BERT_EMBEDDINGS = {
    "word": "embeddings.word_embeddings.weight",
    "position": "embeddings.position_embeddings.weight",
    "token_type": "embeddings.token_type_embeddings.weight",
    "norm/scale": "embeddings.LayerNorm.weight",
    "norm/bias": "embeddings.LayerNorm.bias",
}
_LLAMA_LAYER = {
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/output": "self_attn.o_proj",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_VIT_LAYER = {
    "attention/query": "attention.attention.query",
    "attention/key": "attention.attention.key",
    "attention/value": "attention.attention.value",
    "attention/output": "attention.output.dense",
    "attention_norm": "layernorm_before",
    "mlp_norm": "layernorm_after",
    "up": "intermediate.dense",
    "down": "output.dense",
}


class Stored(NamedTuple):
    """Where a parameter lies in a file: one tensor, or one a layer if it is stacked."""

    names: str | tuple[str, ...]
    transposed: bool = False

    @property
    def all_names(self) -> tuple[str, ...]:
        """The tensors' names."""
        return (self.names,) if isinstance(self.names, str) else self.names


def bert_names(config: BertConfig) -> dict[str, Stored]:
    """For each path of a `BertEncoder`: its tensor."""
    names = {f"embeddings/{ours}": Stored(theirs) for ours, theirs in _BERT_EMBEDDINGS.items()}
    for index in range(config.num_hidden_layers):
        for ours, theirs in _BERT_LAYER.items():
            names |= _module(f"layers/{index}/{ours}", f"encoder.layer.{index}.{theirs}")
    return names


def llama_names(config: LlamaConfig) -> dict[str, Stored]:
    """For each path of a `LlamaDecoder`: its tensors."""
    names = {"embedding": Stored("embed_tokens.weight")} | _module("norm", "norm")
    for ours, theirs in _LLAMA_LAYER.items():
        names |= _stacked(ours, "layers.{}." + theirs, config.num_hidden_layers)
    return names if config.tie_word_embeddings else names | _module("lm_head", "lm_head")


def vit_names(config: ViTConfig) -> dict[str, Stored]:
    """For each path of a `VisionTransformer`: its tensors."""
    names = {
        "class_token": Stored("embeddings.cls_token"),
        "position": Stored("embeddings.position_embeddings"),
        **_module("patch", "embeddings.patch_embeddings.projection"),
        **_module("norm", "layernorm"),
        **_module("head", "classifier"),
    }
    for ours, theirs in _VIT_LAYER.items():
        names |= _stacked(ours, "encoder.layer.{}." + theirs, config.num_hidden_layers)
    return names


def convnet_names(config: ConvNetConfig) -> dict[str, Stored]:
    """For each path of a `ConvNet`: its tensor; a convolution's kernel is one matrix."""
    names = _module("dense", "dense") | _module("head", "head")
    for index in range(len(config.channels)):
        names |= _module(f"convolutions/{index}/dense", f"convolutions.{index}")
    return names


def _module(path: str, name: str) -> dict[str, Stored]:
    """The tensors of one dense layer, whose weight is stored [out, in], or of one norm."""
    if path.rsplit("/", 1)[-1].endswith("norm"):
        return {f"{path}/scale": Stored(f"{name}.weight"), f"{path}/bias": Stored(f"{name}.bias")}
    return {f"{path}/kernel": Stored(f"{name}.weight", True), f"{path}/bias": Stored(f"{name}.bias")}


def _stacked(path: str, name: str, count: int) -> dict[str, Stored]:
    """As `_module`, with one tensor a layer for each parameter."""
    return {
        f"layers/{path}": Stored(tuple(stored.all_names[0].format(i) for i in range(count)), stored.transposed)
        for path, stored in _module(path, name).items()
    }


def fill(
    make: Callable[[], Model],
    names: Mapping[str, Stored],
    tensors: Mapping[str, np.ndarray],
    dtype: Any,
    source: str | Path,
) -> tuple[Model, set[str]]:
    """The model that `make` describes with the tensors' values, and the names of the tensors in it."""
    # Before millions of layers that a file does not hold are thought of.
    weights = {name for stored in names.values() for name in stored.all_names if name.endswith(".weight")}
    if len(weights) > _MANY:
        refuse("missing", weights - set(tensors), source)
    # Only shapes: drawing millions of random numbers to throw them away takes seconds.
    graphdef, state = nnx.split(nnx.eval_shape(make))
    leaves = [(path, variable, names[path_string(path)]) for path, variable in nnx.to_flat_state(state)]
    used = {name for _, _, stored in leaves for name in stored.all_names}
    refuse("missing", used - set(tensors), source)
    flat = []
    for path, variable, stored in leaves:
        stacked = not isinstance(stored.names, str)
        shape = variable.shape[1:] if stacked else variable.shape
        arrays = [checked(tensors, name, shape[::-1] if stored.transposed else shape) for name in stored.all_names]
        arrays = [array.T if stored.transposed else array for array in arrays]
        flat.append((path, variable.replace(jnp.asarray(np.stack(arrays) if stacked else arrays[0], dtype))))
    return nnx.merge(graphdef, nnx.from_flat_state(flat)), used


def collect(model: nnx.Module, names: Mapping[str, Stored]) -> dict[str, np.ndarray]:
    """The parameters of a model as tensors under their names in a file."""
    tensors = {}
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        stored = names[path_string(path)]
        array = np.asarray(jax.device_get(variable[...]))
        for name, one in zip(stored.all_names, [array] if isinstance(stored.names, str) else array, strict=True):
            tensors[name] = one.T if stored.transposed else one
    return tensors
