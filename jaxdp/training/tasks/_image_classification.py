"""The task of image classification by a network that is trained from scratch, or a pretrained vision transformer."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxdp import data, models
from jaxdp._shown import of_shapes
from jaxdp.training._errors import UserError
from jaxdp.training.config._config import Config
from jaxdp.training.config._phase import PhaseConfig
from jaxdp.training.tasks._data import LIMIT_SEED, model_directory
from jaxdp.training.tasks._split_model import Params, SplitModel
from jaxdp.training.tasks._task import Prepared, Progress, Task, accuracy_scores, class_sums

_EVALUATION_BATCH = 1000
_MOST_PARAMETERS = 200_000_000
# Public: a new network begins with values that everybody may know.
_INITIAL_SEED = 0


@dataclasses.dataclass(frozen=True, eq=False)
class ImageClassification(Task):
    """A `Task`: labelled images and a network."""

    __repr__ = of_shapes

    kind = "image_classification"
    model: SplitModel
    train: data.LabelledImages
    held_out: data.LabelledImages

    @property
    def label_names(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Names of the classes."""
        return self.train.label_names

    @property
    def num_train(self) -> int:
        """Number of training images."""
        return len(self.train)

    @property
    def num_held_out(self) -> int:
        """Number of held-out images."""
        return len(self.held_out)

    @property
    def data_fingerprint(self) -> str:
        """Of all pixels and labels."""
        return self.train.fingerprint + self.held_out.fingerprint

    def check(self, phases: Sequence[PhaseConfig]) -> None:
        """Refuse phases that do not fit the network."""
        for number, phase in enumerate(phases, 1):
            self.trained_paths(phase.train, f"phase.{number}.train")
            if phase.features == "cached":
                raise UserError(
                    f'phase.{number}.features is "cached", but nothing of a network for images is stored: use "live".'
                )

    def prepare(self, params: Params, phase: PhaseConfig, field: str, directory: Path, progress: Progress) -> Prepared:
        """The images as bytes; they become numbers in the loss."""
        del params, phase, field, directory, progress
        held_out = list(_batches(self.held_out))

        @jax.jit
        def score(params: Params, examples: models.ImageExample, real: Array) -> tuple[Array, Array, Array]:
            logits = jax.vmap(lambda image: self._logits(params, image))(examples.image)
            losses = jax.vmap(models.cross_entropy)(logits, examples.label)
            return class_sums(logits, examples.label, losses, real)

        train = models.ImageExample(jnp.asarray(self.train.images), jnp.asarray(self.train.labels))
        return Prepared(
            train,
            held_out,
            self._loss,
            lambda params, held_out: accuracy_scores([score(params, *batch) for batch in held_out]),
        )

    def _loss(self, params: Params, example: models.ImageExample) -> Array:
        return models.cross_entropy(self._logits(params, example.image), example.label)

    def _logits(self, params: Params, image: Array) -> Array:
        # From -1 to 1 by public constants: the mean of the images would be private.
        return self.model.build(params)(image.astype(jnp.float32) / 127.5 - 1.0)

    def save(self, params: Params, directory: Path) -> None:
        """Write config.json and model.safetensors."""
        models.save_pretrained(self.model.build(self.params | params), directory)


def load_image_classification(config: Config) -> ImageClassification:
    """The images that `[data]` names and the network that `[model]` and `[network]` describe."""
    train, held_out = load_images(config)
    limit = config.data.held_out_limit
    if limit is not None and limit < len(held_out):
        held_out = held_out.take(_chosen(len(held_out), limit))
    try:
        build = lambda: new_network(config, train.images.shape[1:], len(train.label_names))
        if config.model.path in ("convnet", "vit"):
            _check_size(nnx.eval_shape(build))
        network = build()
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"model or network: {error}") from error
    return ImageClassification(SplitModel.of(network, None), train, held_out)


def _check_size(network: nnx.Module) -> None:
    """Refuse a new network of more values than a machine holds, before any is drawn."""
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(network, nnx.Param)))
    if count > _MOST_PARAMETERS:
        raise UserError(f"network describes {count:,} parameters: make it smaller, {_MOST_PARAMETERS:,} at most.")


def load_images(config: Config) -> tuple[data.LabelledImages, data.LabelledImages]:
    """Training images, as many as `[data]` asks for, and all held-out images."""
    section = config.data
    try:
        train, held_out = data.fashion_mnist(section.path) if section.path else data.fashion_mnist()
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"data.path: {error}") from error
    if section.train_limit is not None and section.train_limit < len(train):
        train = train.take(_chosen(len(train), section.train_limit))
    return train, held_out


def _chosen(count: int, limit: int) -> np.ndarray:
    """Rows chosen by number, in their old order."""
    return np.sort(np.random.default_rng(LIMIT_SEED).permutation(count)[:limit])


def new_network(config: Config, shape: tuple[int, ...], classes: int) -> nnx.Module:
    """The network for images of this height, width and number of channels."""
    if shape[0] != shape[1]:
        raise ValueError(f"the images are {shape[0]} x {shape[1]} pixels: only squares can be read.")
    section, rngs = config.network, nnx.Rngs(_INITIAL_SEED)
    sizes: dict[str, Any] = {"image_size": shape[0], "num_channels": shape[2], "num_classes": classes}
    if config.model.path == "convnet":
        names = ("channels", "kernel_size", "hidden_size", "norm")
        net = models.ConvNetConfig(**sizes, **{name: getattr(section, name) for name in names})
        return models.ConvNet(net, rngs=rngs)
    if config.model.path == "vit":
        vit = models.ViTConfig(
            **sizes,
            patch_size=section.patch_size,
            hidden_size=section.hidden_size,
            num_hidden_layers=section.layers,
            num_attention_heads=section.heads,
            intermediate_size=2 * section.hidden_size,
        )
        return models.VisionTransformer(vit, rngs=rngs)
    return models.load_vision(model_directory(config), num_classes=classes)


def _batches(images: data.LabelledImages) -> Any:
    """Batches of one shape and which of their images are real."""
    size = min(_EVALUATION_BATCH, len(images))
    for begin in range(0, len(images), size):
        rows = np.arange(begin, min(begin + size, len(images)))
        part = images.take(np.resize(rows, size))
        yield models.ImageExample(jnp.asarray(part.images), jnp.asarray(part.labels)), np.arange(size) < len(rows)
