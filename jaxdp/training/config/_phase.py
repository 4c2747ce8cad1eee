"""Configuration of one stretch of training."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from jaxdp.training.config._fields import (
    Decay,
    Examples,
    Kind,
    Needs,
    NotNegative,
    Positive,
    Rows,
    Section,
    Selection,
    Steps,
    Text,
    shown,
)

_Weight = Annotated[float, Field(ge=1e-3, le=1e3, allow_inf_nan=False)]
_Evaluations = Annotated[int, Field(ge=1, le=10_000)]


def _is_number(value: object) -> bool:
    return not isinstance(value, str)


class PhaseConfig(Section):
    """`[[phase]]`: one stretch of training; all phases share the budget."""

    name: Text = Field("", description="a word for logs and for overrides; by default what is trained")
    train: Selection = Field(
        "", description='"head", "bias", "lora", "last:2", "all", or a list of patterns of parameter paths'
    )
    steps: Steps = Field(description="number of updates")
    batch_size: Examples | Literal["full"] = Field(
        description='expected number of examples in a Poisson batch, or "full" for all of them at every step'
    )
    padded_batch_size: Annotated[Rows | None, Needs("phase.batch_size", Kind("a number", _is_number))] = Field(
        None, description="room for a drawn batch; chosen if not given"
    )
    microbatch_size: Rows | None = Field(
        None, description="examples worked on at a time, which sets the memory; the whole batch if not given"
    )
    features: Literal["cached", "live"] = Field(
        "live", description='"cached" runs what lies below the trained part once and keeps its outputs'
    )
    features_dtype: Annotated[Literal["float32", "float16"], Needs("phase.features", "cached")] = Field(
        "float32", description="in which the stored outputs of a decoder's frozen layers are kept"
    )
    noise_weight: Annotated[_Weight, Needs("privacy.enabled", True, named=True)] = Field(
        1.0, description="the phase's noise multiplier relative to the other phases' (more noise costs less budget)"
    )
    max_norm: Annotated[Positive | None, Needs("privacy.enabled", True, named=True)] = Field(
        None, description="the phase's own clipping norm"
    )
    optimizer: Literal["adam", "adamw", "sgd", "adam_corrected"] = Field(
        "adam", description='the update rule; "adam_corrected" takes the noise\'s variance off the second moment'
    )
    learning_rate: Positive = Field(description="its learning rate, the peak of the schedule")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="how it decays to zero")
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000_000)] = Field(
        0, description="steps over which it rises from zero"
    )
    betas: Annotated[tuple[Decay, Decay], Needs("phase.optimizer", "adam", "adamw", "adam_corrected", word="for")] = (
        Field((0.9, 0.999), description="decay rates of Adam's moments")
    )
    momentum: Annotated[Decay, Needs("phase.optimizer", "sgd", word="for")] = Field(0.0, description="momentum of sgd")
    weight_decay: Annotated[NotNegative, Needs("phase.optimizer", "adamw", word="for")] = Field(
        0.0, description="decoupled weight decay"
    )
    evaluations: _Evaluations = Field(10, description="number of evaluations on the held-out data during the phase")

    @field_validator("train")
    @classmethod
    def _known_selection(cls, train: Selection) -> Selection:
        if train == ():
            raise ValueError('%FIELD% is []: name at least one pattern of parameter paths, such as "head/*".')
        if isinstance(train, tuple) or train in ("", "all", "bias", "head", "lora"):
            return train
        kind, _, count = train.partition(":")
        if kind == "last" and count.isascii() and count.isdigit() and len(count) < 6 and int(count) >= 1:
            return train
        raise ValueError(
            f'%FIELD% is {shown(train)}: use "head", "bias", "lora", "all", "last:N" with N encoder layers, '
            "or a list of patterns of parameter paths."
        )

    @model_validator(mode="after")
    def _fits_together(self) -> "PhaseConfig":
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"%FIELD%.warmup_steps is {self.warmup_steps} of {self.steps} steps: make it less than steps."
            )
        if self.batch_size == "full" or self.padded_batch_size is None:
            return self
        if self.batch_size > self.padded_batch_size:
            raise ValueError(
                f"%FIELD%.padded_batch_size is {self.padded_batch_size}, below the expected batch_size of "
                f"{self.batch_size:g}: make it larger, or remove it and let it be chosen."
            )
        return self
