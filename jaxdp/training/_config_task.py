"""The sections of a configuration that say what is trained, and which of them fit together."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from jaxdp.training._config_fields import Count, Positive, Section

if TYPE_CHECKING:
    from jaxdp.training._config import Config

TaskKind = Literal["text_classification", "language_model", "image_classification"]

# The sources that need no columns, and what each can be used for.
NAMED_SOURCES: dict[str, TaskKind] = {
    "tweets": "text_classification",
    "movie_sentences": "text_classification",
    "newsgroups": "text_classification",
    "wordnet": "language_model",
    "fashion_mnist": "image_classification",
}
_NEW_NETWORKS = ("convnet", "vit")


class TaskConfig(Section):
    """`[task]`: what the model is to learn."""

    kind: TaskKind = Field(
        "text_classification",
        description='"text_classification", "language_model" (the next token of every text) or "image_classification"',
    )


class LoraConfig(Section):
    """`[lora]`: low-rank adapters beside the dense layers of a pretrained model."""

    rank: Count | None = Field(None, description='rank of the adapters that train = "lora" trains; none if not given')
    alpha: Positive | None = Field(None, description="numerator of their scale; the rank if not given")
    targets: tuple[str, ...] = Field(
        ("*/query", "*/value"), description="patterns of the dense layers that get one, such as top/*/query"
    )


class NetworkConfig(Section):
    """`[network]`: the shape of a new network for images."""

    channels: tuple[Count, ...] = Field((16, 32), description='channels of each convolution of "convnet"')
    kernel_size: Count = Field(5, description="side of its kernels, in pixels")
    norm: Literal["none", "group"] = Field("none", description="normalisation after each of its convolutions")
    hidden_size: Count = Field(32, description='width of its dense layer, or of the tokens of "vit"')
    patch_size: Count = Field(7, description='side of the patches of "vit", in pixels')
    layers: Count = Field(2, description='layers of "vit"')
    heads: Count = Field(4, description='attention heads of "vit"')


class SamplesConfig(Section):
    """`[samples]`: texts that a language model writes for the report when it is trained."""

    prompts: tuple[str, ...] = Field((), description="what it is given; each gives one text before and one after")
    max_new_tokens: Count = Field(32, description="tokens that it writes")
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.7, description="of the softmax that each token is drawn from; 0 takes the likeliest"
    )
    top_k: Count | None = Field(40, description="draw from so many of the likeliest tokens only")


def check_task(config: "Config") -> None:
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
    if data.path is not None and source not in ("wordnet", "fashion_mnist"):
        raise ValueError(f'data.path has no meaning for data.source = "{source}": remove it.')
    if named is None:
        columns = ["text_column"]
        columns += ["label_column"] if kind == "text_classification" else []
        columns += ["user_column"] if data.unit == "user" else []
        for column in columns:
            if getattr(data, column) is None:
                raise ValueError(f"data.{column} is missing: name the column of {source} to read.")
    _check_unit(config)
    _check_model(config)
    if config.samples.prompts and kind != "language_model":
        raise ValueError(f'samples.prompts has no meaning for task.kind = "{kind}", which writes no texts: remove it.')


def _check_unit(config: "Config") -> None:
    data, kind = config.data, config.task.kind
    if data.unit == "user" and kind != "language_model":
        raise ValueError('data.unit = "user" is for task.kind = "language_model" only: use "record".')
    if data.unit == "user" and data.max_records_per_user is None:
        raise ValueError(
            'data.max_records_per_user is missing with data.unit = "user": say how many records of a user are used.'
        )
    for name in ("max_records_per_user", "user_column"):
        if getattr(data, name) is not None and data.unit == "record":
            raise ValueError(
                f'data.{name} has no meaning with data.unit = "record", where users are not told apart: set unit = '
                '"user", or remove it.'
            )


def _check_model(config: "Config") -> None:
    model, kind = config.model, config.task.kind
    if (model.path in _NEW_NETWORKS) and kind != "image_classification":
        raise ValueError(f'model.path is "{model.path}", which is for images: name a pretrained model.')
    if model.path == "minilm" and kind != "text_classification":
        fit = '"smollm2"' if kind == "language_model" else '"convnet" or "vit"'
        raise ValueError(f'model.path is "minilm", an encoder for text_classification: use {fit} for {kind}.')
    given = model.layers or model.top_layers or config.lora.rank
    if kind == "image_classification" and given:
        raise ValueError("model.layers, model.top_layers and lora.rank are for decoders: remove them.")
    if kind != "text_classification" and (model.dropout or model.center is not None):
        name = "dropout" if model.dropout else "center"
        raise ValueError(f'model.{name} has no meaning for task.kind = "{kind}": remove it.')
    if config.lora.rank is None and any(phase.train == "lora" for phase in config.phase):
        raise ValueError('lora.rank is missing, and a phase has train = "lora": give the rank of the adapters.')
