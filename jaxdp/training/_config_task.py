"""The sections of a configuration that say what is trained, and which of them fit together."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from jaxdp.training._config_fields import GIVEN, Count, Kind, Names, Needs, Positive, Section, Text, Width

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

# When a field has a meaning.
FILE = Kind("the path of a file", lambda source: source not in NAMED_SOURCES)
ENCODER_TASK = Needs("task.kind", "text_classification", word="for")
TEXTS = Needs("task.kind", "text_classification", "language_model", word="for")
OWN_DIVISION = Needs(
    "data.source",
    Kind("a source that does not come divided", lambda source: source not in ("newsgroups", "fashion_mnist")),
    word="for",
)
_IMAGES = Needs("task.kind", "image_classification", word="for")
_NEW = Needs("model.path", "convnet", "vit", word="for")
_CONVNET = Needs("model.path", "convnet", word="for", named=True)
_VIT = Needs("model.path", "vit", word="for", named=True)
_WRITES = Needs("task.kind", "language_model", word="for")
_PROMPTS = Needs("samples.prompts", Kind("a list of prompts", bool))


# Logits are divided by it in float32.
_COLDEST = 0.001

_Side = Annotated[int, Field(ge=2, le=64)]
_Layers = Annotated[int, Field(ge=1, le=256)]
_TopK = Annotated[int, Field(ge=1, le=1_000_000)]


def _may_be_lora(train: object) -> bool:
    """Whether what a phase trains can be adapters."""
    return not (isinstance(train, str) and (train in ("head", "bias") or train.startswith("last:")))


class TaskConfig(Section):
    """`[task]`: what the model is to learn."""

    kind: TaskKind = Field(
        "text_classification",
        description='"text_classification", "language_model" (the next token of every text) or "image_classification"',
    )


class LoraConfig(Section):
    """`[lora]`: low-rank adapters beside the dense layers of a pretrained model."""

    rank: Annotated[
        Count | None, TEXTS, Needs("any.phase.train", Kind('"lora", "all" or patterns of parameters', _may_be_lora))
    ] = Field(None, description='rank of the adapters that train = "lora" trains; none if not given')
    alpha: Annotated[Positive | None, Needs("lora.rank", GIVEN)] = Field(
        None, description="numerator of their scale; the rank if not given"
    )
    targets: Annotated[Names, Needs("lora.rank", GIVEN)] = Field(
        ("*/query", "*/value"), description="patterns of the dense layers that get one, such as top/*/query"
    )


class NetworkConfig(Section):
    """`[network]`: the shape of a new network for images."""

    channels: Annotated[tuple[Count, ...], Field(max_length=16), _IMAGES, _NEW, _CONVNET] = Field(
        (16, 32), description='channels of each convolution of "convnet", at most 16 of them'
    )
    kernel_size: Annotated[_Side, _IMAGES, _NEW, _CONVNET] = Field(5, description="side of its kernels, in pixels")
    norm: Annotated[Literal["none", "group"], _IMAGES, _NEW, _CONVNET] = Field(
        "none", description="normalisation after each of its convolutions"
    )
    hidden_size: Annotated[Width, _IMAGES, _NEW] = Field(
        32, description='width of its dense layer, or of the tokens of "vit"'
    )
    patch_size: Annotated[Count, _IMAGES, _NEW, _VIT] = Field(7, description='side of the patches of "vit", in pixels')
    layers: Annotated[_Layers, _IMAGES, _NEW, _VIT] = Field(2, description='layers of "vit"')
    heads: Annotated[Count, _IMAGES, _NEW, _VIT] = Field(4, description='attention heads of "vit"')


class SamplesConfig(Section):
    """`[samples]`: texts that a language model writes for the report when it is trained."""

    prompts: Annotated[tuple[Text, ...], Field(max_length=1000), _WRITES] = Field(
        (), description="what it is given; each gives one text before and one after"
    )
    max_new_tokens: Annotated[Width, _WRITES, _PROMPTS] = Field(32, description="tokens that it writes")
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False), _WRITES, _PROMPTS] = Field(
        0.7, description="of the softmax that each token is drawn from; at least 0.001, or 0 for the likeliest"
    )
    top_k: Annotated[_TopK | None, _WRITES, _PROMPTS] = Field(
        40, description="draw from so many of the likeliest tokens only"
    )


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


def _check_unit(config: "Config") -> None:
    data, kind = config.data, config.task.kind
    if data.unit == "user" and kind != "language_model":
        raise ValueError('data.unit = "user" is for task.kind = "language_model" only: use "record".')
    if data.unit == "user" and data.max_records_per_user is None:
        raise ValueError(
            'data.max_records_per_user is missing with data.unit = "user": say how many records of a user are used.'
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
    if config.lora.rank is None and any(phase.train == "lora" for phase in config.phase):
        raise ValueError('lora.rank is missing, and a phase has train = "lora": give the rank of the adapters.')
