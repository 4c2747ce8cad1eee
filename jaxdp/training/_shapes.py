"""What a phase trains, by path and shape, without reading a single weight."""

from flax import nnx
from jax import ShapeDtypeStruct

from jaxdp import models
from jaxdp.training._config import Config, PhaseConfig
from jaxdp.training._data import model_directory
from jaxdp.training._errors import UserError


def trained_shapes(config: Config, phase: PhaseConfig) -> dict[str, ShapeDtypeStruct]:
    """Shapes of what a phase trains, with a head for two classes: plans depend on no head's width."""

    def build() -> models.SequenceClassifier:
        encoder = models.BertEncoder(models.BertConfig.from_directory(model_directory(config)), rngs=nnx.Rngs(0))
        return models.SequenceClassifier(encoder, 2, pooling=config.model.pooling)

    try:
        model = nnx.eval_shape(build)
        paths = set(models.trainable_paths(phase.train, model))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"model.path or phase {phase.name}: {error}") from error
    flat = {"/".join(map(str, path)): x.get_value() for path, x in nnx.to_flat_state(nnx.split(model)[1])}
    return {name: ShapeDtypeStruct(x.shape, x.dtype) for name, x in flat.items() if name in paths}
