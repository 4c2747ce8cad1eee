"""A vision model of Equimo (Equinox), trained privately from nothing on Fashion-MNIST.

apt-get install dataset-fashion-mnist
python examples/equimo_images.py --model convnext
"""

import dataclasses
import gzip
import sys
from pathlib import Path
from typing import Any, Literal

if __package__ in (None, ""):
    # Run by its path, Python looks for modules beside this file.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import jax
import jax.numpy as jnp
import numpy as np
import optax

from examples.common import Training, need, train_privately

tyro = need("tyro", "tyro")
equinox = need("equinox", "equinox")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Train a small vision model of Equimo with DP-Adam."""

    model: Literal["vit", "convnext"] = "vit"
    """VisionTransformer with class and register tokens, or ConvNeXt with its depthwise convolutions."""
    width: int = 48
    directory: Path = Path("/usr/share/datasets/fashion-mnist")
    """Of the four files of Fashion-MNIST."""
    training: tyro.conf.OmitArgPrefixes[Training] = dataclasses.field(default_factory=Training)


def build(settings: Settings) -> Any:
    """The package's own class, small."""
    models, key = need("equimo.models", "equimo"), jax.random.key(0)
    if settings.model == "convnext":
        sizes = {"dims": [settings.width // 2, settings.width], "depths": [1, 1]}
        return models.ConvNeXt(in_channels=1, num_classes=10, key=key, **sizes)
    sizes = {"img_size": 28, "patch_size": 7, "dim": settings.width, "num_heads": 4, "depths": [2]}
    return models.VisionTransformer(in_channels=1, num_classes=10, key=key, **sizes)


def fashion(directory: Path, part: str) -> dict[str, np.ndarray]:
    """Images [n, 1, 28, 28] in -1 to 1, and labels."""
    try:
        images, labels = (
            np.frombuffer(gzip.decompress((directory / f"{part}-{kind}-ubyte.gz").read_bytes()), np.uint8)
            for kind in ("images-idx3", "labels-idx1")
        )
    except FileNotFoundError as error:
        raise SystemExit(
            f"{error.filename} is missing: apt-get install dataset-fashion-mnist, or --directory."
        ) from None
    pixels = images[16:].reshape(-1, 1, 28, 28).astype(np.float32)
    return {"image": pixels / 127.5 - 1.0, "label": labels[8:].astype(np.int32)}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """The command."""
    settings = tyro.cli(Settings, args=arguments, prog="equimo_images")
    params, static = equinox.partition(build(settings), equinox.is_inexact_array)

    def logits(params: Any, example: dict[str, jax.Array]) -> jax.Array:
        return equinox.combine(params, static)(example["image"], key=jax.random.key(0), inference=True)

    def loss(params: Any, example: dict[str, jax.Array]) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, example), example["label"])

    def correct(params: Any, example: dict[str, jax.Array]) -> jax.Array:
        return (jnp.argmax(logits(params, example)) == example["label"]).astype(jnp.float32)

    train = fashion(settings.directory, "train")
    judge = jax.tree.map(lambda rows: rows[:1000], fashion(settings.directory, "t10k"))
    return train_privately(loss, params, train, judge, correct, "accuracy", settings.training)


if __name__ == "__main__":
    main()
