"""The shape of a Llama-family decoder, read from and written to a Hugging Face ``config.json``."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._checks import LARGEST_COUNT, LARGEST_SIZE, check_number, check_truth, check_whole, short, widened
from ._compute import Compute
from ._config import naming, read_config
from ._rope import Rope

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# What the decoder does when the key is present; any other value means another architecture.
_FIXED = {"model_type": "llama", "hidden_act": "silu"}
_COMPUTE = Compute()
_ROPE = Rope()


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The shape of a Llama-family decoder: Llama 2 and 3, TinyLlama, SmolLM and others.

    Args:
        vocab_size: number of token ids.
        hidden_size: width of a hidden state.
        intermediate_size: width of the feed-forward layer.
        num_hidden_layers: number of layers.
        num_attention_heads: query heads per layer.
        num_key_value_heads: heads of keys and values; a divisor of `num_attention_heads`, each serving as many
            neighbouring query heads as the quotient says. As many as query heads when 0.
        head_dim: width of one head, even; ``hidden_size // num_attention_heads`` when 0.
        max_position_embeddings: longest sequence, in tokens.
        rms_norm_eps: added to the mean square in every norm.
        rope: the rotary position embedding.
        tie_word_embeddings: whether the head is the embedding transposed.
        attention_bias: whether the projections of attention have biases.
        mlp_bias: whether those of the feed-forward layer have.
        initializer_range: standard deviation of freshly drawn kernels.
        bos_token_id: the id that begins a text, if there is one.
        eos_token_id: the id that ends a text, if there is one.
        pad_token_id: the id that fills padded places, if there is one.
        compute: dtype of the activations, what is recomputed in the backward pass, attention kernel.

    Raises:
        ValueError: a size below 1, heads that do not divide each other or the width, or an odd width of a head.

    Example:
        >>> LlamaConfig(hidden_size=64, num_attention_heads=8, num_key_value_heads=2).head_dim
        8
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 0
    head_dim: int = 0
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope: Rope = _ROPE
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    compute: Compute = _COMPUTE

    def __post_init__(self):
        for name in _SIZES:
            optional = name in ("num_key_value_heads", "head_dim")
            layers = name in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
            check_whole(name, getattr(self, name), 0 if optional else 1, LARGEST_COUNT if layers else LARGEST_SIZE)
        check_number("rms_norm_eps", self.rms_norm_eps, 0, 1)
        check_number("initializer_range", self.initializer_range, 0, 100)
        for name in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
            check_truth(name, getattr(self, name))
        for name in _TOKENS:
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), -1)
        if self.num_key_value_heads == 0:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        if self.head_dim == 0 and self.num_attention_heads:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size {self.hidden_size} must be a multiple of num_attention_heads "
                    f"{self.num_attention_heads}, or head_dim must be given."
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} must be a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}."
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, not {self.head_dim}.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, compute: Compute | None = None) -> "LlamaConfig":
        """Read the keys of a Hugging Face ``config.json``.

        Args:
            values: the parsed JSON object; keys that do not change the forward pass are ignored.
            compute: how the decoder is computed.

        Returns:
            The config.

        Raises:
            ValueError: another architecture, activation or kind of position embedding, or a missing size.
        """
        for key, expected in _FIXED.items():
            found = values.get(key, None if key == "model_type" else expected)
            if found != expected:
                raise ValueError(
                    f"config.json has {key} = {short(found)}, but only {expected!r} can be loaded: use the directory "
                    "of a Llama-family decoder."
                )
        needed = [name for name in _SIZES if name not in ("num_key_value_heads", "head_dim", "max_position_embeddings")]
        missing = [name for name in needed if name not in values]
        if missing:
            raise ValueError(f"config.json lacks {', '.join(missing)}: use the directory of a Llama-family decoder.")
        sizes = {name: values[name] for name in needed}
        tokens = {name: values.get(name) for name in _TOKENS}
        # Llama 3 lists several ids that end a turn; the first of them ends a text.
        first: dict[str, Any] = {
            name: token[0] if isinstance(token, list) and token else token for name, token in tokens.items()
        }
        return cls(
            **sizes,
            # Null stands for as many as there are queries, and for an even share of the width.
            **{name: _or_zero(values.get(name)) for name in ("num_key_value_heads", "head_dim")},
            max_position_embeddings=values.get("max_position_embeddings", 2048),
            rms_norm_eps=widened(values.get("rms_norm_eps", 1e-6)),
            rope=Rope.from_dict(values),
            tie_word_embeddings=values.get("tie_word_embeddings", False),
            attention_bias=values.get("attention_bias", False),
            mlp_bias=values.get("mlp_bias", False),
            initializer_range=widened(values.get("initializer_range", 0.02)),
            **first,
            compute=_COMPUTE if compute is None else compute,
        )

    @classmethod
    def from_directory(cls, directory: str | Path, *, compute: Compute | None = None) -> "LlamaConfig":
        """Read ``config.json`` of a Hugging Face directory; see `from_dict`."""
        with naming(directory):
            return cls.from_dict(read_config(directory), compute=compute)

    def to_dict(self) -> dict[str, Any]:
        """The object that ``config.json`` holds, readable by `from_dict` and by transformers."""
        return {
            "architectures": ["LlamaForCausalLM"],
            **_FIXED,
            **{name: getattr(self, name) for name in (*_SIZES, *_TOKENS)},
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": self.rope.to_dict(),
            # Readers older than `rope_parameters` look here.
            "rope_theta": self.rope.theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
            "initializer_range": self.initializer_range,
        }


def _or_zero(value: Any) -> Any:
    return 0 if value is None else value
