"""The fields of a configuration file, their types and the checks that need nothing but the file."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from jaxdp.training._config_fields import Count, NotNegative, Positive, Selection
from jaxdp.training._config_fields import Section as _Section
from jaxdp.training._config_task import (
    NAMED_SOURCES,
    LoraConfig,
    NetworkConfig,
    SamplesConfig,
    TaskConfig,
    TaskKind,
    check_task,
)


class DataConfig(_Section):
    """`[data]`: what is trained on."""

    source: str = Field(
        description='"tweets", "movie_sentences", "newsgroups", "wordnet", "fashion_mnist", or the path of a CSV, '
        "JSONL or Parquet file"
    )
    path: str | None = Field(None, description='folder of the files of "wordnet" or "fashion_mnist"')
    text_column: str | None = Field(None, description="the column of a file that holds the text")
    label_column: str | None = Field(None, description="the column of a file that holds the label")
    unit: Literal["record", "user"] = Field(
        "record", description="what an example of a language model is: one record, or all records of one user"
    )
    user_column: str | None = Field(None, description='the column of a file that names the user, for unit = "user"')
    max_records_per_user: Count | None = Field(
        None, description="records kept of each user, who is one example however many there are"
    )
    max_length: Annotated[int, Field(ge=4)] = Field(32, description="tokens kept of each text")
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="share of the examples kept for evaluation; they are outside the guarantee"
    )
    held_out_limit: Count | None = Field(None, description="evaluate on at most so many of them")
    train_limit: Count | None = Field(None, description="train on so many examples only")
    cache: str | None = Field(
        None, description="directory for the outputs of frozen layers, to be shared by runs; private like the data"
    )


class ModelConfig(_Section):
    """`[model]`: what is trained."""

    path: str = Field(
        "minilm",
        description='"minilm", "smollm2", the path of a Hugging Face directory (BERT, RoBERTa, Llama, ViT) or GGUF '
        'file, or for images "convnet" or "vit" for a new network',
    )
    layers: Count | None = Field(None, description="use so many of a decoder's layers only, the lowest ones")
    top_layers: Count | None = Field(
        None, description="the highest so many layers of a decoder are a stack of their own, named top/"
    )
    train: Selection | None = Field(None, description="what the phases train that do not say it themselves")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="dropout rate of what a phase runs live")
    pooling: Literal["last", "every_layer", "last_token"] = Field(
        "every_layer",
        description='the head sees the mean of the "last" layer of an encoder, or those of "every_layer"; of a decoder '
        'the mean of the last layer, or with "last_token" its state at the last token',
    )
    normalize: bool = Field(True, description="scale each text's features to length 1 before the head")
    center: Literal["tweets", "movie_sentences"] | None = Field(
        None, description="a PUBLIC corpus, not that of the run: the mean features of its texts are subtracted"
    )
    feature_scale: Positive = Field(1.0, description="a public constant that multiplies the features")


class PrivacyConfig(_Section):
    """`[privacy]`: the guarantee."""

    enabled: bool = Field(True, description="false trains a baseline WITHOUT any guarantee")
    epsilon: Positive | None = Field(None, description="the budget of the whole run; the noise is calibrated to it")
    noise_multiplier: Positive | None = Field(None, description="the noise itself, instead of epsilon")
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(1e-5, description="the guarantee's delta")
    accountant: Literal["pld", "rdp"] = Field("pld", description='"pld" (tight) or "rdp"')

    @model_validator(mode="after")
    def _one_of_epsilon_and_noise(self) -> "PrivacyConfig":
        if self.enabled and self.epsilon is None and self.noise_multiplier is None:
            raise ValueError(
                "privacy.epsilon is missing: give it, or privacy.noise_multiplier, or set privacy.enabled = false "
                "for a baseline without a guarantee."
            )
        if self.epsilon is not None and self.noise_multiplier is not None:
            raise ValueError(
                "privacy.epsilon and privacy.noise_multiplier are both given, and each one determines the other: "
                "remove one of them."
            )
        return self


class ClippingConfig(_Section):
    """`[clipping]`: how the influence of one example is bounded."""

    max_norm: Positive = Field(1.0, description="clipping norm of one example's gradient")
    groups: Literal["all", "layer", "param"] | Count = Field(
        "all",
        description='what has a norm of its own: "all" together, each "layer" (module), each "param", or so many '
        "blocks of modules",
    )
    rule: Literal["flat", "auto_s", "auto_v"] = Field("flat", description="the clipping function")
    normalize: bool = Field(True, description="divide by max_norm, so that the learning rate does not depend on it")
    norm: Literal["exact", "hutchinson", "hutch++"] = Field(
        "exact", description="how norms are found: exactly, or where that is cheaper estimated from random probes"
    )
    probes: Annotated[int, Field(ge=8)] = Field(
        64, description="random probes of an estimated norm: fewer cost less and ask for more noise"
    )
    sketch: Count = Field(16, description='columns of the sketch of norm = "hutch++"')
    sharing: Literal["batch", "example"] = Field(
        "batch", description="whether all examples of a batch share the probes; its own for each needs less noise"
    )
    adaptive: bool = Field(
        False, description="move the thresholds from max_norm on to a quantile of the norms, found within the budget"
    )
    target_quantile: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="share of the examples whose norm adaptive thresholds shall exceed"
    )
    threshold_rate: Positive = Field(0.2, description="learning rate of the adaptive thresholds' logarithms")
    indicator_noise: Positive | None = Field(
        None,
        description="std of the noise on the count of examples below each adaptive threshold; a twentieth of the batch "
        "times the root of the number of groups if not given",
    )
    floor: Positive = Field(1e-6, description="no adaptive threshold falls below it")
    noise_shape: Literal["isotropic", "equal_budget"] = Field(
        "isotropic", description="the same noise everywhere, or in proportion to each group's adaptive threshold"
    )

    @model_validator(mode="after")
    def _adapts_what_it_can(self) -> "ClippingConfig":
        if self.adaptive and self.norm != "exact":
            raise ValueError(
                f'clipping.adaptive is true with norm = "{self.norm}", and the two on the same examples have not been '
                'analysed: use norm = "exact", or leave adaptive out.'
            )
        if self.noise_shape == "equal_budget" and not (self.adaptive and self.groups != "all"):
            raise ValueError(
                'clipping.noise_shape = "equal_budget" differs from "isotropic" only between groups of different '
                'thresholds: set adaptive = true and groups other than "all", or remove it.'
            )
        return self


class DenoiseConfig(_Section):
    """`[denoise]`: singular values of the noisy gradient matrices, shrunk; it costs no privacy."""

    enabled: bool = Field(False, description="denoise every matrix that a phase trains, before the update rule")
    mode: Literal["keep_bulk", "shrink"] = Field(
        "keep_bulk", description='"keep_bulk" weighs down what does not stand out, "shrink" drops it'
    )
    method: Literal["auto", "gram", "subspace"] = Field(
        "auto", description='"gram" (exact), "subspace" (the leading triplets, from step to step), or by size'
    )
    gate: Literal["cosine", "tracy_widom"] | Annotated[float, Field(ge=1, allow_inf_nan=False)] = Field(
        "cosine", description="from where on a singular value is signal, or a ratio to the edge of the noise"
    )
    norm_correct: bool = Field(True, description="keep the norm of each matrix")
    width: Count = Field(8, description='singular triplets of the "subspace" method')
    spectrum: str | None = Field(
        None,
        description="the parameter whose singular values `jaxdp report --spectrum` draws; the largest if not given",
    )


class SubspaceConfig(_Section):
    """`[subspace]`: in which space gradients are clipped and noise is added."""

    method: Literal["none", "grape", "zeroth_order"] = Field(
        "none",
        description='"none" (all parameters), "grape" (random subspaces of matrices) or "zeroth_order" (differences of '
        "two losses, no backward pass)",
    )
    phases: tuple[str, ...] | None = Field(
        None, description="names of the phases that train so; all if not given, and the others in the full space"
    )
    rank: Count = Field(16, description="dimension of the subspaces of grape")
    refresh_every: Count = Field(100, description="steps that one subspace of grape lasts")
    projection: Literal["gaussian", "orthonormal"] = Field("gaussian", description="the subspaces' bases")
    directions: Count = Field(1, description="random directions of a step of zeroth_order")
    scale: Positive = Field(1e-3, description="length of the step along a direction that zeroth_order takes")


class PhaseConfig(_Section):
    """`[[phase]]`: one stretch of training; all phases share the budget."""

    name: str = Field("", description="a word for logs and for overrides; by default what is trained")
    train: Selection = Field(
        "", description='"head", "bias", "lora", "last:2", "all", or a list of patterns of parameter paths'
    )
    steps: Count = Field(description="number of updates")
    batch_size: Positive | Literal["full"] = Field(
        description='expected number of examples in a Poisson batch, or "full" for all of them at every step'
    )
    padded_batch_size: Count | None = Field(None, description="room for a drawn batch; chosen if not given")
    microbatch_size: Count | None = Field(
        None, description="examples worked on at a time, which sets the memory; the whole batch if not given"
    )
    features: Literal["cached", "live"] = Field(
        "live", description='"cached" runs what lies below the trained part once and keeps its outputs'
    )
    features_dtype: Literal["float32", "float16"] = Field(
        "float32", description="in which the stored outputs of a decoder's frozen layers are kept"
    )
    noise_weight: Positive = Field(
        1.0, description="the phase's noise multiplier relative to the other phases' (more noise costs less budget)"
    )
    max_norm: Positive | None = Field(None, description="the phase's own clipping norm")
    optimizer: Literal["adam", "adamw", "sgd", "adam_corrected"] = Field(
        "adam", description='the update rule; "adam_corrected" takes the noise\'s variance off the second moment'
    )
    learning_rate: Positive = Field(description="its learning rate, the peak of the schedule")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="how it decays to zero")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="steps over which it rises from zero")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="decay rates of Adam's moments"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="momentum of sgd")
    weight_decay: NotNegative = Field(0.0, description="decoupled weight decay (adamw)")
    evaluations: Count = Field(10, description="number of evaluations on the held-out data during the phase")

    @field_validator("train")
    @classmethod
    def _known_selection(cls, train: Selection) -> Selection:
        if train == ():
            raise ValueError('%FIELD% is []: name at least one pattern of parameter paths, such as "head/*".')
        if isinstance(train, tuple) or train in ("", "all", "bias", "head", "lora"):
            return train
        kind, _, count = train.partition(":")
        if kind == "last" and count.isdigit() and int(count) >= 1:
            return train
        raise ValueError(
            f'%FIELD% is "{train}": use "head", "bias", "lora", "all", "last:N" with N encoder layers, '
            "or a list of patterns of parameter paths."
        )

    @model_validator(mode="after")
    def _fits_together(self) -> "PhaseConfig":
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"%FIELD%.warmup_steps is {self.warmup_steps} of {self.steps} steps: make it less than steps."
            )
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError(
                f'%FIELD%.weight_decay has no meaning for optimizer = "{self.optimizer}": use "adamw" or remove it.'
            )
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(
                f'%FIELD%.momentum has no meaning for optimizer = "{self.optimizer}": use betas, or "sgd".'
            )
        if self.batch_size == "full" and self.padded_batch_size is not None:
            raise ValueError('%FIELD%.padded_batch_size has no meaning with batch_size = "full": remove it.')
        if self.padded_batch_size is not None and self.batch_size > self.padded_batch_size:  # pyright: ignore
            raise ValueError(
                f"%FIELD%.padded_batch_size is {self.padded_batch_size}, below the expected batch_size of "
                f"{self.batch_size:g}: make it larger, or remove it and let it be chosen."
            )
        return self


class MeshConfig(_Section):
    """`[mesh]`: over how many devices a run is cut, and how."""

    data: Count | Literal["rest"] = Field(
        1, description='devices that each hold all parameters and see examples of their own; "rest" takes what is left'
    )
    fsdp: Count = Field(1, description="devices that see examples of their own and hold parameters in parts")
    tensor: Count = Field(1, description="devices that share their examples and hold single layers in parts")
    columns: tuple[str, ...] = Field((), description="patterns of the parameters whose last axis tensor cuts")
    rows: tuple[str, ...] = Field((), description="patterns of the parameters whose first axis tensor cuts")

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


class LogConfig(_Section):
    """`[log]`: what is written while training."""

    checkpoint_seconds: NotNegative = Field(60.0, description="time between checkpoints; 0 saves after every step")
    private_metrics: bool = Field(
        False, description="also log train loss, drawn batch size and clipped share: OUTSIDE the guarantee"
    )


class Config(_Section):
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
    phase: Annotated[tuple[PhaseConfig, ...], Field(min_length=1)]
    mesh: MeshConfig = MeshConfig()  # pyright: ignore[reportCallIssue]
    log: LogConfig = LogConfig()  # pyright: ignore[reportCallIssue]

    @model_validator(mode="before")
    @classmethod
    def _fill_phases(cls, raw: object) -> object:
        """Give each phase what it trains and a name of its own."""
        if not isinstance(raw, dict) or not isinstance(raw.get("phase"), tuple):
            return raw
        model = raw.get("model")
        default = model.get("train") if isinstance(model, dict) else None
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

    def subspace_of(self, phase: PhaseConfig) -> SubspaceConfig:
        """In which space a phase trains."""
        chosen = self.subspace.phases
        return self.subspace if chosen is None or phase.name in chosen else SubspaceConfig()  # pyright: ignore

    @property
    def total_steps(self) -> int:
        """Updates of all phases."""
        return sum(phase.steps for phase in self.phase)


__all__ = ["NAMED_SOURCES", "Config", "DataConfig", "ModelConfig", "PhaseConfig", "TaskKind"]
