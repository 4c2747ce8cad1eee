"""What a phase trains, by path and shape."""

from collections.abc import Callable

from flax import nnx
from jax import ShapeDtypeStruct

from jaxdp import models
from jaxdp.training._errors import UserError
from jaxdp.training.config._config import Config
from jaxdp.training.config._phase import PhaseConfig
from jaxdp.training.tasks._classifier import encoder_pooling
from jaxdp.training.tasks._data import is_decoder, model_directory
from jaxdp.training.tasks._decoder import load_decoder, with_adapters
from jaxdp.training.tasks._decoder_classification import new_classifier
from jaxdp.training.tasks._image_classification import load_images, new_network


def trained_shapes(config: Config, phase: PhaseConfig) -> dict[str, ShapeDtypeStruct]:
    """Shapes of what a phase trains, with a text classifier's head for two classes: plans depend on no head's width."""

    try:
        model = nnx.eval_shape(_builder(config))
        paths = set(models.trainable_paths(phase.train, model))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"model.path or phase {phase.name}: {error}") from error
    flat = {"/".join(map(str, path)): x.get_value() for path, x in nnx.to_flat_state(nnx.split(model)[1])}
    return {name: ShapeDtypeStruct(x.shape, x.dtype) for name, x in flat.items() if name in paths}


def _builder(config: Config) -> Callable[[], nnx.Module]:
    """What makes the model of a run."""
    if config.task.kind == "image_classification":
        images = load_images(config)[0]
        return lambda: new_network(config, images.images.shape[1:], len(images.label_names))
    path = model_directory(config)
    if is_decoder(path):
        decoder = load_decoder(config, path)
        model = decoder if config.task.kind == "language_model" else new_classifier(config, decoder, ("0", "1"), None)
        return lambda: with_adapters(model, config)
    pooling = encoder_pooling(config)

    def build() -> models.SequenceClassifier:
        encoder = models.BertEncoder(models.BertConfig.from_directory(path), rngs=nnx.Rngs(0))
        return models.SequenceClassifier(encoder, 2, pooling=pooling)

    return build


def is_kernel(path: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter of our models is a matrix that is multiplied with: tables are none."""
    return path.endswith("kernel']") and len(shape) == 2
