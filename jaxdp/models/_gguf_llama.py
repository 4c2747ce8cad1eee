"""The decoder and the tokenizer that a GGUF file of the Llama architecture holds."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from ._checks import check_whole, short
from ._compute import Compute
from ._gguf import read_gguf
from ._llama_config import LlamaConfig
from ._rope import Rope

_OUTSIDE = {
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SPECIAL, _USER_DEFINED = 3, 4


def llama_from_gguf(
    path: str | Path, *, compute: Compute | None = None
) -> tuple[LlamaConfig, dict[str, Float32[np.ndarray, "..."]]]:
    """The config, and the tensors under their torch names without ``model.``."""
    metadata, stored = read_gguf(path)
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f"{path} has the architecture {short(architecture)}, but only 'llama' can be loaded.")
    tensors = {_torch_name(name): tensor for name, tensor in stored.items()}
    try:
        config = _config(metadata, tensors, compute, path)
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    for name, tensor in tensors.items():
        for part, count in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if f".{part}." in name:
                if tensor.shape[:1] != (count * config.head_dim,):
                    raise ValueError(
                        f"{path}: tensor {name} has shape {tensor.shape}, which is no row for each of {count} "
                        f"heads of width {config.head_dim}: download the file again."
                    )
                tensors[name] = _paired_by_halves(tensor, count)
    return config, tensors


def _config(
    metadata: dict[str, Any], tensors: dict[str, np.ndarray], compute: Compute | None, path: Any
) -> LlamaConfig:
    """The decoder's shape."""

    def needed(key: str) -> Any:
        if f"llama.{key}" not in metadata:
            raise ValueError(f"{path} lacks llama.{key} in its metadata: download it again.")
        return metadata[f"llama.{key}"]

    scaling = metadata.get("llama.rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise ValueError(
            f"{path} rescales rotary positions by {short(scaling)}: load the Hugging Face directory instead."
        )
    theta, factor = metadata.get("llama.rope.freq_base", 10000.0), metadata.get("llama.rope.scaling.factor", 1.0)
    heads, width = needed("attention.head_count"), needed("embedding_length")
    tokens: dict[str, Any] = {key: metadata.get(f"tokenizer.ggml.{name}_token_id") for key, name in _TOKENS.items()}
    return LlamaConfig(
        vocab_size=_rows(tensors) if "embed_tokens.weight" in tensors else needed("vocab_size"),
        hidden_size=width,
        intermediate_size=needed("feed_forward_length"),
        num_hidden_layers=needed("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=metadata.get("llama.attention.head_count_kv", heads),
        head_dim=metadata.get("llama.attention.key_length", metadata.get("llama.rope.dimension_count", 0)),
        max_position_embeddings=needed("context_length"),
        rms_norm_eps=_shortest(needed("attention.layer_norm_rms_epsilon")),
        rope=Rope(theta=_shortest(theta), kind="linear" if scaling == "linear" else "default", factor=factor),
        tie_word_embeddings="lm_head.weight" not in tensors,
        attention_bias="layers.0.self_attn.q_proj.bias" in tensors,
        **tokens,
        compute=Compute() if compute is None else compute,
    )


def gguf_sizes(path: str | Path) -> tuple[int, int]:
    """Token ids and longest text of the decoder in a GGUF file, from its metadata.

    Args:
        path: the file.

    Returns:
        Number of token ids, and of positions.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a damaged file, or one without these numbers.

    Example:
        ``rows, longest = gguf_sizes("model.gguf")``
    """
    metadata = read_gguf(path, tensors=False).metadata
    tokens = metadata.get("tokenizer.ggml.tokens")
    rows = len(tokens) if isinstance(tokens, list) else metadata.get("llama.vocab_size")
    longest = metadata.get("llama.context_length")
    check_whole(f"{path}: llama.vocab_size", rows)
    check_whole(f"{path}: llama.context_length", longest)
    return rows, longest  # pyright: ignore[reportReturnType]


_TOKENS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


def _rows(tensors: dict[str, np.ndarray]) -> int:
    """Rows of the embedding table; 0, which is refused, for what is none."""
    table = tensors["embed_tokens.weight"]
    return table.shape[0] if table.ndim == 2 else 0


def _shortest(value: Any) -> Any:
    """A 32-bit float as the shortest decimal that gives it: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _torch_name(name: str) -> str:
    """``blk.3.attn_q.weight`` -> ``layers.3.self_attn.q_proj.weight``; unknown names stay."""
    inside = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if inside is None:
        return _OUTSIDE.get(name, name)
    return f"layers.{inside[1]}.{_LAYER.get(inside[2], inside[2])}.{inside[3]}"


def _paired_by_halves(tensor: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from (pair, member) to (member, pair) order.

    llama.cpp rotates feature 2i against 2i + 1, `rotate` feature i of the first half against i of the second.
    """
    pairs = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
    return pairs.swapaxes(1, 2).reshape(tensor.shape)


def tokenizer_from_gguf(path: str | Path) -> tuple[Any, int]:
    """A byte-level BPE tokenizer from a file's metadata, and the id that fills padded places."""
    import tokenizers  # comes with the extra `train`; the models themselves do without
    from tokenizers import decoders, models, pre_tokenizers, processors

    metadata = read_gguf(path, tensors=False).metadata
    model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if model != "gpt2" or pre not in ("smollm", "gpt-2", "default"):
        raise ValueError(
            f"{path} has a tokenizer of the kind {short(model)} with {short(pre)}, but only 'gpt2' with 'smollm' or "
            "'gpt-2' can be made from a GGUF file: use the tokenizer.json of the model's Hugging Face directory."
        )
    tokens = _listed(metadata, "tokens", str, path)
    kinds = _listed(metadata, "token_type", int, path)
    merges: list[Any] = [tuple(merge.split(" ", 1)) for merge in _listed(metadata, "merges", str, path)]
    if len(tokens) != len(kinds) or any(len(merge) != 2 for merge in merges):
        raise ValueError(
            f"{path} has {len(tokens):,} tokenizer.ggml.tokens of {len(kinds):,} kinds, or tokenizer.ggml.merges that "
            "are no pairs: download it again."
        )
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    space = bool(metadata.get("tokenizer.ggml.add_space_prefix", False))
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=space)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _SPECIAL]
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in special])
    plain = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _USER_DEFINED]
    tokenizer.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in plain])
    if metadata.get("tokenizer.ggml.add_bos_token", False):
        first = metadata.get("tokenizer.ggml.bos_token_id")
        check_whole(f"{path}: tokenizer.ggml.bos_token_id", first, 0, len(tokens) - 1)
        template = processors.TemplateProcessing(single="B $A", special_tokens=[("B", first)])
        tokenizer.post_processor = template
    padding = metadata.get("tokenizer.ggml.padding_token_id", 0)
    check_whole(f"{path}: tokenizer.ggml.padding_token_id", padding, 0, max(len(tokens) - 1, 0))
    return tokenizer, padding


def _listed(metadata: dict[str, Any], name: str, kind: type, path: str | Path) -> list[Any]:
    """A list of the tokenizer's metadata."""
    found = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not all(isinstance(value, kind) for value in found):
        raise ValueError(f"{path} must hold a list tokenizer.ggml.{name} of {kind.__name__} values: download it again.")
    return found
