"""Which task, data and model fit together."""

from jaxdp.training.config._sections import Sections
from jaxdp.training.config._task_sections import NAMED_SOURCES, NEW_NETWORKS

# Logits are divided by it in float32.
_COLDEST = 0.001


def check_task(config: Sections) -> None:
    """Refuse data and options that do not fit the kind of task."""
    kind, data, source = config.task.kind, config.data, config.data.source
    named = NAMED_SOURCES.get(source)
    if named not in (None, kind):
        raise ValueError(f'data.source is "{source}", which is for task.kind = "{named}": set that, or name another.')
    if named is None and kind == "image_classification":
        raise ValueError(
            f'data.source is "{source}", but images are read from "fashion_mnist" only: use that and data.path, the '
            "folder of files in its format."
        )
    if named is None:
        columns = ["text_column"]
        columns += ["label_column"] if kind == "text_classification" else []
        columns += ["user_column"] if data.unit == "user" else []
        for column in columns:
            if getattr(data, column) is None:
                raise ValueError(f"data.{column} is missing: name the column of {source} to read.")
    _check_unit(config)
    _check_model(config)
    if 0 < config.samples.temperature < _COLDEST:
        raise ValueError(
            f"samples.temperature is {config.samples.temperature:g}: give 0, which takes the likeliest token, or at "
            f"least {_COLDEST:g}."
        )


def _check_unit(config: Sections) -> None:
    data, kind = config.data, config.task.kind
    if data.unit == "user" and kind != "language_model":
        raise ValueError('data.unit = "user" is for task.kind = "language_model" only: use "record".')
    if data.unit == "user" and data.max_records_per_user is None:
        raise ValueError(
            'data.max_records_per_user is missing with data.unit = "user": say how many records of a user are used.'
        )


def _check_model(config: Sections) -> None:
    model, kind = config.model, config.task.kind
    if (model.path in NEW_NETWORKS) and kind != "image_classification":
        raise ValueError(f'model.path is "{model.path}", which is for images: name a pretrained model.')
    if model.path == "minilm" and kind != "text_classification":
        fit = '"smollm2"' if kind == "language_model" else '"convnet" or "vit"'
        raise ValueError(f'model.path is "minilm", an encoder for text_classification: use {fit} for {kind}.')
    given = model.layers or model.top_layers or config.lora.rank
    if kind == "image_classification" and given:
        raise ValueError("model.layers, model.top_layers and lora.rank are for decoders: remove them.")
    if config.lora.rank is None and any(phase.train == "lora" for phase in config.phase):
        raise ValueError('lora.rank is missing, and a phase has train = "lora": give the rank of the adapters.')
