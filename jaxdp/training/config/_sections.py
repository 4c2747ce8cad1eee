"""The sections of a configuration file, with their fields."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxdp.training.config._fields import (
    Column,
    Count,
    FilePath,
    Length,
    Names,
    Needs,
    NotNegative,
    Positive,
    Rate,
    Rows,
    Section,
    Selection,
    Share,
    Width,
)
from jaxdp.training.config._phase import PhaseConfig
from jaxdp.training.config._privacy import ClippingConfig, DenoiseConfig, PrivacyConfig, SubspaceConfig
from jaxdp.training.config._task_sections import (
    ENCODER_TASK,
    FILE,
    OWN_DIVISION,
    TEXTS,
    LoraConfig,
    NetworkConfig,
    SamplesConfig,
    TaskConfig,
)


class DataConfig(Section):
    """`[data]`: what is trained on."""

    source: FilePath = Field(
        description='"tweets", "movie_sentences", "newsgroups", "wordnet", "fashion_mnist", or the path of a CSV, '
        "JSONL or Parquet file"
    )
    path: Annotated[FilePath | None, Needs("data.source", "wordnet", "fashion_mnist", word="for")] = Field(
        None, description='folder of the files of "wordnet" or "fashion_mnist"'
    )
    text_column: Annotated[Column | None, Needs("data.source", FILE, word="for")] = Field(
        None, description="the column of a file that holds the text"
    )
    label_column: Annotated[Column | None, Needs("data.source", FILE, word="for"), ENCODER_TASK] = Field(
        None, description="the column of a file that holds the label"
    )
    unit: Annotated[Literal["record", "user"], Needs("task.kind", "language_model", word="for")] = Field(
        "record", description="what an example of a language model is: one record, or all records of one user"
    )
    user_column: Annotated[Column | None, Needs("data.source", FILE, word="for"), Needs("data.unit", "user")] = Field(
        None, description="the column of a file that names the user"
    )
    max_records_per_user: Annotated[Width | None, Needs("data.unit", "user")] = Field(
        None, description="records kept of each user, who is one example however many there are"
    )
    max_length: Annotated[Length, TEXTS] = Field(
        32, description="tokens kept of each text, at most as many as the model has positions"
    )
    held_out: Annotated[Share, OWN_DIVISION] = Field(
        0.1, description="share of the examples kept for evaluation; they are outside the guarantee"
    )
    held_out_limit: Rows | None = Field(None, description="evaluate on at most so many of them")
    train_limit: Rows | None = Field(None, description="train on so many examples only")
    cache: Annotated[FilePath | None, Needs("any.phase.features", "cached")] = Field(
        None, description="directory for the outputs of frozen layers, to be shared by runs; private like the data"
    )


class ModelConfig(Section):
    """`[model]`: what is trained."""

    path: FilePath = Field(
        "minilm",
        description='"minilm", "smollm2", the path of a Hugging Face directory (BERT, RoBERTa, Llama, ViT) or GGUF '
        'file, or for images "convnet" or "vit" for a new network',
    )
    layers: Annotated[Count | None, TEXTS] = Field(
        None, description="use so many of a decoder's layers only, the lowest ones"
    )
    top_layers: Annotated[Count | None, TEXTS] = Field(
        None, description="the highest so many layers of a decoder are a stack of their own, named top/"
    )
    train: Selection | None = Field(None, description="what the phases train that do not say it themselves")
    dropout: Annotated[Rate, ENCODER_TASK, Needs("any.phase.features", "live")] = Field(
        0.0, description="dropout rate of what a phase runs live"
    )
    pooling: Annotated[Literal["last", "every_layer", "last_token"], ENCODER_TASK] = Field(
        "every_layer",
        description='the head sees the mean of the "last" layer of an encoder, or those of "every_layer"; of a decoder '
        'the mean of the last layer, or with "last_token" its state at the last token',
    )
    normalize: Annotated[bool, ENCODER_TASK] = Field(
        True, description="scale each text's features to length 1 before the head"
    )
    center: Annotated[Literal["tweets", "movie_sentences"] | None, ENCODER_TASK] = Field(
        None, description="a PUBLIC corpus, not that of the run: the mean features of its texts are subtracted"
    )
    feature_scale: Annotated[Positive, ENCODER_TASK] = Field(
        1.0, description="a public constant that multiplies the features"
    )


class MeshConfig(Section):
    """`[mesh]`: over how many devices a run is cut, and how."""

    data: Width | Literal["rest"] = Field(
        1, description='devices that each hold all parameters and see examples of their own; "rest" takes what is left'
    )
    fsdp: Width = Field(1, description="devices that see examples of their own and hold parameters in parts")
    tensor: Width = Field(1, description="devices that share their examples and hold single layers in parts")
    columns: Names = Field((), description="patterns of the parameters whose last axis tensor cuts")
    rows: Names = Field((), description="patterns of the parameters whose first axis tensor cuts")

    @model_validator(mode="after")
    def _cuts_something(self) -> "MeshConfig":
        if (self.tensor > 1) != bool(self.columns or self.rows):
            raise ValueError(
                f"mesh.tensor is {self.tensor} with {len(self.columns) + len(self.rows)} patterns in mesh.columns and "
                "mesh.rows: name what it cuts, such as "
                'columns = ["encoder/layers/*/up/*"] and rows = ["encoder/layers/*/down/kernel"], or leave all out.'
            )
        return self

    @property
    def is_one_device(self) -> bool:
        """Whether nothing is to be cut."""
        return (self.data, self.fsdp, self.tensor) == (1, 1, 1)


class LogConfig(Section):
    """`[log]`: what is written while training."""

    checkpoint_seconds: NotNegative = Field(60.0, description="time between checkpoints; 0 saves after every step")
    private_metrics: bool = Field(
        False, description="also log train loss, drawn batch size and clipped share: OUTSIDE the guarantee"
    )


class Sections(Section):
    """All sections of a configuration file, each by itself."""

    task: TaskConfig = TaskConfig()  # pyright: ignore[reportCallIssue]
    data: DataConfig
    model: ModelConfig = ModelConfig()  # pyright: ignore[reportCallIssue]
    lora: LoraConfig = LoraConfig()  # pyright: ignore[reportCallIssue]
    network: NetworkConfig = NetworkConfig()  # pyright: ignore[reportCallIssue]
    samples: SamplesConfig = SamplesConfig()  # pyright: ignore[reportCallIssue]
    privacy: PrivacyConfig
    clipping: ClippingConfig = ClippingConfig()  # pyright: ignore[reportCallIssue]
    denoise: DenoiseConfig = DenoiseConfig()  # pyright: ignore[reportCallIssue]
    subspace: SubspaceConfig = SubspaceConfig()  # pyright: ignore[reportCallIssue]
    phase: Annotated[tuple[PhaseConfig, ...], Field(min_length=1, max_length=100)]
    mesh: MeshConfig = MeshConfig()  # pyright: ignore[reportCallIssue]
    log: LogConfig = LogConfig()  # pyright: ignore[reportCallIssue]
