"""The shape of a vision transformer, read from and written to a Hugging Face ``config.json``."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._checks import LARGEST_COUNT, LARGEST_SIZE, check_number, check_truth, check_whole, short, widened
from ._compute import Compute
from ._config import naming, read_config

_SIZES = (
    "image_size",
    "patch_size",
    "num_channels",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)
# What the transformer does when the key is present; any other value means another architecture.
_FIXED = {"model_type": "vit", "hidden_act": "gelu"}
_COMPUTE = Compute()


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """The shape of a vision transformer (pre-LayerNorm, exact gelu, learned positions, class token).

    Args:
        image_size: height and width of an image, in pixels; a multiple of `patch_size`.
        patch_size: height and width of a patch, in pixels.
        num_channels: channels of an image.
        hidden_size: width of a hidden state; a multiple of `num_attention_heads`.
        num_hidden_layers: number of transformer layers.
        num_attention_heads: attention heads per layer.
        intermediate_size: width of the feed-forward layer.
        num_classes: number of classes.
        qkv_bias: whether queries, keys and values have biases.
        layer_norm_eps: added to the variance in every LayerNorm.
        initializer_range: standard deviation of freshly drawn kernels.
        compute: dtype of the activations, what is recomputed in the backward pass, attention kernel.

    Raises:
        ValueError: a size below 1, or one that does not divide another as it must.

    Example:
        >>> ViTConfig(image_size=28, patch_size=7, num_channels=1).num_patches
        16
    """

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    num_classes: int = 2
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    compute: Compute = _COMPUTE

    def __post_init__(self):
        for name in (*_SIZES, "num_classes"):
            layers = name in ("num_hidden_layers", "num_attention_heads", "image_size", "patch_size", "num_channels")
            check_whole(name, getattr(self, name), high=LARGEST_COUNT if layers else LARGEST_SIZE)
        check_number("layer_norm_eps", self.layer_norm_eps, 0, 1)
        check_number("initializer_range", self.initializer_range, 0, 100)
        check_truth("qkv_bias", self.qkv_bias)
        for whole, part in (("image_size", "patch_size"), ("hidden_size", "num_attention_heads")):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(f"{whole} {getattr(self, whole)} must be a multiple of {part} {getattr(self, part)}.")

    @property
    def num_patches(self) -> int:
        """Number of patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], *, num_classes: int | None = None, compute: Compute | None = None
    ) -> "ViTConfig":
        """Read the keys of a Hugging Face ``config.json``.

        Args:
            values: the parsed JSON object; keys that do not change the forward pass are ignored.
            num_classes: number of classes; as many as the file has labels (2 if it names none) when left out.
            compute: how the transformer is computed.

        Returns:
            The config.

        Raises:
            ValueError: another architecture or activation, or a missing size.
        """
        for key, expected in _FIXED.items():
            found = values.get(key, None if key == "model_type" else expected)
            if found != expected:
                raise ValueError(
                    f"config.json has {key} = {short(found)}, but only {expected!r} can be loaded: use the directory "
                    "of a vision transformer."
                )
        missing = [name for name in _SIZES if name not in values]
        if missing:
            raise ValueError(f"config.json lacks {', '.join(missing)}: use the directory of a vision transformer.")
        return cls(
            **{name: values[name] for name in _SIZES},
            num_classes=_labels(values) if num_classes is None else num_classes,
            qkv_bias=values.get("qkv_bias", True),
            layer_norm_eps=widened(values.get("layer_norm_eps", 1e-12)),
            initializer_range=widened(values.get("initializer_range", 0.02)),
            compute=_COMPUTE if compute is None else compute,
        )

    @classmethod
    def from_directory(
        cls, directory: str | Path, *, num_classes: int | None = None, compute: Compute | None = None
    ) -> "ViTConfig":
        """Read ``config.json`` of a Hugging Face directory; see `from_dict`."""
        with naming(directory):
            return cls.from_dict(read_config(directory), num_classes=num_classes, compute=compute)

    def to_dict(self) -> dict[str, Any]:
        """The object that ``config.json`` holds, readable by `from_dict` and by transformers."""
        labels = {index: f"LABEL_{index}" for index in range(self.num_classes)}
        return {
            "architectures": ["ViTForImageClassification"],
            **_FIXED,
            **{name: getattr(self, name) for name in _SIZES},
            "qkv_bias": self.qkv_bias,
            "layer_norm_eps": self.layer_norm_eps,
            "initializer_range": self.initializer_range,
            "id2label": {str(index): name for index, name in labels.items()},
            "label2id": {name: index for index, name in labels.items()},
        }


def _labels(values: Mapping[str, Any]) -> int:
    """How many classes a file names; two if it names none."""
    labels = values.get("id2label", {"0": "", "1": ""})
    if not isinstance(labels, dict):
        raise ValueError(f"id2label must be an object of names by number, not {short(labels)}.")
    return len(labels)
