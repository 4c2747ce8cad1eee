"""The sections of a configuration that say what is trained."""

from typing import Annotated, Literal

from pydantic import Field

from jaxdp.training.config._fields import GIVEN, Count, Kind, Names, Needs, Positive, Section, Text, Width

TaskKind = Literal["text_classification", "language_model", "image_classification"]

# The sources that need no columns, and what each can be used for.
NAMED_SOURCES: dict[str, TaskKind] = {
    "tweets": "text_classification",
    "movie_sentences": "text_classification",
    "newsgroups": "text_classification",
    "wordnet": "language_model",
    "fashion_mnist": "image_classification",
}
NEW_NETWORKS = ("convnet", "vit")

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
