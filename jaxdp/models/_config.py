"""The shape of a BERT or RoBERTa encoder, read from and written to a Hugging Face ``config.json``."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from jaxdp._reading import read_json

from ._checks import LARGEST_COUNT, LARGEST_SIZE, check_number, check_whole, short, widened
from ._compute import Compute

_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)
# What the encoder does when the key is present; any other value means another architecture.
_FIXED = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
_ARCHITECTURES = {"bert": "BertModel", "roberta": "RobertaModel"}
_PAD = {"bert": 0, "roberta": 1}
_PLAIN = Compute(remat="none")


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT or RoBERTa encoder (post-LayerNorm, exact gelu, absolute positions).

    Args:
        vocab_size: number of token ids.
        hidden_size: width of a hidden state; a multiple of `num_attention_heads`.
        num_hidden_layers: number of transformer layers.
        num_attention_heads: attention heads per layer.
        intermediate_size: width of the feed-forward layer.
        max_position_embeddings: rows of the position table; see `max_length`.
        type_vocab_size: number of token types.
        layer_norm_eps: added to the variance in every LayerNorm.
        initializer_range: standard deviation of freshly drawn kernels.
        pad_token_id: the id that fills padded places.
        dropout: rate of every dropout while training. It does not come from ``config.json`` and is 0 unless
            it is asked for: the clipping and the noise of private training already regularise.
        model_type: ``"bert"``, or ``"roberta"``, whose positions begin at ``pad_token_id + 1``.
        compute: dtype of the activations, what is recomputed in the backward pass, attention kernel.

    Raises:
        ValueError: a size below 1, heads that do not divide the width, or a dropout outside [0, 1).

    Example:
        >>> BertConfig(hidden_size=32, num_attention_heads=4).head_size
        8
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int = 0
    dropout: float = 0.0
    model_type: Literal["bert", "roberta"] = "bert"
    compute: Compute = _PLAIN

    def __post_init__(self):
        if self.model_type not in _ARCHITECTURES:
            raise ValueError(f'model_type must be "bert" or "roberta", not {self.model_type!r}.')
        for name in _FIELDS:
            layers = name in ("num_hidden_layers", "num_attention_heads")
            check_whole(name, getattr(self, name), high=LARGEST_COUNT if layers else LARGEST_SIZE)
        check_number("layer_norm_eps", self.layer_norm_eps, 0, 1)
        check_number("initializer_range", self.initializer_range, 0, 100)
        check_whole("pad_token_id", self.pad_token_id, 0)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of num_attention_heads {self.num_attention_heads}."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout!r}.")
        if self.max_length < 1:
            raise ValueError(
                f"max_position_embeddings must be more than pad_token_id + 1 = {self.first_position} for RoBERTa, not "
                f"{self.max_position_embeddings}."
            )

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def first_position(self) -> int:
        """Row of the position table that belongs to the first token."""
        return 0 if self.model_type == "bert" else self.pad_token_id + 1

    @property
    def max_length(self) -> int:
        """Longest sequence, in tokens."""
        return self.max_position_embeddings - self.first_position

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], *, dropout: float = 0.0, compute: Compute | None = None
    ) -> "BertConfig":
        """Read the keys of a Hugging Face ``config.json``.

        Args:
            values: the parsed JSON object; keys that do not change the forward pass are ignored.
            dropout: the rate while training (the file's own rate belongs to its pretraining).
            compute: how the encoder is computed.

        Returns:
            The config.

        Raises:
            ValueError: another architecture, activation or kind of position embedding, or a missing size.
        """
        model_type = values.get("model_type")
        if not isinstance(model_type, str) or model_type not in _ARCHITECTURES:
            raise ValueError(
                f"config.json has model_type = {short(model_type)}, but only 'bert' and 'roberta' are encoders that "
                "can be loaded: use such a directory."
            )
        for key, expected in _FIXED.items():
            found = values.get(key, expected)
            if found != expected:
                raise ValueError(
                    f"config.json has {key} = {short(found)}, but only {expected!r} can be loaded: use a BERT "
                    "encoder's directory."
                )
        missing = [name for name in _FIELDS if name not in values]
        if missing:
            raise ValueError(f"config.json lacks {', '.join(missing)}: use a BERT encoder's directory.")
        sizes = {name: values[name] for name in _FIELDS}
        return cls(
            **sizes,
            layer_norm_eps=widened(values.get("layer_norm_eps", 1e-12)),
            initializer_range=widened(values.get("initializer_range", 0.02)),
            pad_token_id=values.get("pad_token_id", _PAD[model_type]),
            dropout=dropout,
            model_type=model_type,  # pyright: ignore[reportArgumentType]
            compute=_PLAIN if compute is None else compute,
        )

    @classmethod
    def from_directory(
        cls, directory: str | Path, *, dropout: float = 0.0, compute: Compute | None = None
    ) -> "BertConfig":
        """Read ``config.json`` of a Hugging Face directory; see `from_dict`."""
        with naming(directory):
            return cls.from_dict(read_config(directory), dropout=dropout, compute=compute)

    def to_dict(self) -> dict[str, Any]:
        """The object that ``config.json`` holds, readable by `from_dict` and by transformers."""
        values = {name: getattr(self, name) for name in _FIELDS}
        return {
            "architectures": [_ARCHITECTURES[self.model_type]],
            "model_type": self.model_type,
            **_FIXED,
            **values,
            "layer_norm_eps": self.layer_norm_eps,
            "initializer_range": self.initializer_range,
            "pad_token_id": self.pad_token_id,
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.dropout,
        }


def read_config(directory: str | Path) -> dict[str, Any]:
    """``config.json`` of a directory as a dict, or a sentence that says what is missing."""
    return read_json(Path(directory) / "config.json", "the model directory must hold config.json and model.safetensors")


@contextlib.contextmanager
def naming(directory: str | Path) -> Iterator[None]:
    """Put the path of config.json before what is wrong with a value in it."""
    path = str(Path(directory) / "config.json")
    try:
        yield
    except ValueError as error:
        said = str(error)
        if said.startswith("config.json"):
            raise ValueError(path + said.removeprefix("config.json")) from error
        raise ValueError(said if path in said else f"{path}: {said}") from error
