"""The fields of a configuration file, their types and the checks that need nothing but the file."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from jaxdp.training._config_fields import (
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
from jaxdp.training._config_meaning import check_meaning
from jaxdp.training._config_phase import PhaseConfig
from jaxdp.training._config_privacy import ClippingConfig, DenoiseConfig, PrivacyConfig, SubspaceConfig
from jaxdp.training._config_task import (
    ENCODER_TASK,
    FILE,
    OWN_DIVISION,
    TEXTS,
    LoraConfig,
    NetworkConfig,
    SamplesConfig,
    TaskConfig,
    check_task,
)

_MOST_STEPS = 1_000_000_000


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


class Config(Section):
    """A whole configuration file."""

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

    @model_validator(mode="before")
    @classmethod
    def _fill_phases(cls, raw: object) -> object:
        """Give each phase what it trains and a name of its own."""
        if not isinstance(raw, dict) or not isinstance(raw.get("phase"), tuple):
            return raw
        default, raw = _taken_from_model(raw)
        phases, taken = [], set()
        for number, phase in enumerate(raw["phase"], 1):
            if not isinstance(phase, dict):
                return raw
            phase = dict(phase)
            phase.setdefault("train", default if default is not None else "all")
            if not phase.get("name"):
                train = phase["train"]
                name = train.replace(":", "") if isinstance(train, str) else f"phase{number}"
                phase["name"] = name if name not in taken else f"{name}{number}"
            if not isinstance(phase["name"], str):
                return raw
            if phase["name"] in taken:
                raise ValueError(f'phase {number} and another one are both named "{phase["name"]}": rename one.')
            taken.add(phase["name"])
            phases.append(phase)
        return raw | {"phase": tuple(phases)}

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        check_task(self)
        return self

    @model_validator(mode="after")
    def _privatises_in_one_space(self) -> "Config":
        names = [phase.name for phase in self.phase]
        unknown = [name for name in self.subspace.phases or () if name not in names]
        if unknown:
            raise ValueError(f'subspace.phases has "{unknown[0]}", which is no phase: use names among {names}.')
        finite_differences = [p for p in self.phase if self.subspace_of(p).method == "zeroth_order"]
        if finite_differences and self.denoise.enabled:
            raise ValueError(
                'denoise.enabled is true with subspace.method = "zeroth_order", which has no matrices: remove one of '
                "them."
            )
        clipping = self.clipping
        if finite_differences and (clipping.groups, clipping.norm) != ("all", "exact"):
            raise ValueError(
                f'clipping has groups = {clipping.groups!r} and norm = "{clipping.norm}" with subspace.method = '
                '"zeroth_order", which clips one number for each direction: use groups = "all" and norm = "exact".'
            )
        if self.subspace.method != "none" and clipping.adaptive:
            raise ValueError(
                f'clipping.adaptive is true with subspace.method = "{self.subspace.method}", which takes fixed '
                "thresholds: remove one of them."
            )
        corrected = [phase.name for phase in finite_differences if phase.optimizer == "adam_corrected"]
        if corrected:
            raise ValueError(
                f'phase "{corrected[0]}" has optimizer = "adam_corrected" with subspace.method = "zeroth_order", whose '
                'noise is not on single parameters: use "adam".'
            )
        return self

    @model_validator(mode="after")
    def _centers_on_public_texts(self) -> "Config":
        if self.model.center is not None and self.model.center == self.data.source:
            raise ValueError(
                f'model.center is "{self.model.center}", the corpus that the run trains on, whose mean is private: '
                "name a public one, or remove it."
            )
        return self

    @model_validator(mode="after")
    def _knows_the_noise_it_takes_off(self) -> "Config":
        corrected = [i for i, phase in enumerate(self.phase, 1) if phase.optimizer == "adam_corrected"]
        if self.denoise.enabled and corrected:
            raise ValueError(
                f'phase.{corrected[0]}.optimizer = "adam_corrected" needs the noise as it was drawn, and '
                'denoise.enabled changes it: use "adam", or remove denoise.enabled.'
            )
        if not self.privacy.enabled and (self.denoise.enabled or corrected):
            name = "denoise.enabled" if self.denoise.enabled else f'phase.{corrected[0]}.optimizer = "adam_corrected"'
            raise ValueError(f"{name} has no meaning with privacy.enabled = false, without noise: remove it.")
        return self

    @model_validator(mode="after")
    def _counts_few_enough_steps(self) -> "Config":
        if self.total_steps > _MOST_STEPS:
            raise ValueError(
                f"all phases have {self.total_steps:,} steps together: give them at most {_MOST_STEPS:,}, as steps are "
                "counted in 32 bits."
            )
        return self

    @model_validator(mode="after")
    def _every_field_has_a_meaning(self) -> "Config":
        # The last of all: what contradicts another field is told better by the checks before.
        check_meaning(self)
        return self

    def subspace_of(self, phase: PhaseConfig) -> SubspaceConfig:
        """In which space a phase trains."""
        chosen = self.subspace.phases
        return self.subspace if chosen is None or phase.name in chosen else SubspaceConfig()  # pyright: ignore

    @property
    def total_steps(self) -> int:
        """Updates of all phases."""
        return sum(phase.steps for phase in self.phase)


def _taken_from_model(raw: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What `[model] train` gives to the phases without one, and the file without it: from here on phases have it."""
    model = raw.get("model")
    if not isinstance(model, dict) or model.get("train") is None:
        return None, raw
    if all(isinstance(phase, dict) and phase.get("train") is not None for phase in raw["phase"]):
        raise ValueError("model.train has no meaning where every phase has a train of its own: remove one of them.")
    default = model["train"]
    if not isinstance(default, str | tuple):
        return default, raw
    return default, raw | {"model": {name: value for name, value in model.items() if name != "train"}}
