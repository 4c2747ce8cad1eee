"""Configuration of what makes a run private: the guarantee, clipping, and what is done to noisy gradients."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxdp.training.config._fields import (
    Count,
    Delta,
    Epsilon,
    Name,
    Names,
    Needs,
    Noise,
    Positive,
    Section,
    Share,
    Steps,
    Width,
)

_PRIVATE = Needs("privacy.enabled", True)
# What a baseline without privacy may keep from the file that it is the baseline of.
_GUARANTEED = Needs("privacy.enabled", True, named=True)
_ESTIMATED = Needs("clipping.norm", "hutchinson", "hutch++")
_ADAPTIVE = Needs("clipping.adaptive", True)
_DENOISED = Needs("denoise.enabled", True)
_SUBSPACE = Needs("subspace.method", "grape", "zeroth_order")
_GRAPE = Needs("subspace.method", "grape", named=True)
_ZEROTH = Needs("subspace.method", "zeroth_order", named=True)


class PrivacyConfig(Section):
    """`[privacy]`: the guarantee."""

    enabled: bool = Field(True, description="false trains a baseline WITHOUT any guarantee")
    epsilon: Annotated[Epsilon | None, _GUARANTEED] = Field(
        None, description="the budget of the whole run; the noise is calibrated to it"
    )
    noise_multiplier: Annotated[Noise | None, _GUARANTEED] = Field(
        None, description="the noise itself, instead of epsilon"
    )
    delta: Annotated[Delta, _GUARANTEED] = Field(1e-5, description="the guarantee's delta")
    accountant: Annotated[Literal["pld", "rdp"], _GUARANTEED] = Field("pld", description='"pld" (tight) or "rdp"')
    grid: Annotated[Share | None, _GUARANTEED] = Field(
        None,
        description="round sums and noise to a public grid, so that the lowest bits of what is released tell nothing: "
        "the share of the sensitivity that this may add, such as 0.01",
    )

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


class ClippingConfig(Section):
    """`[clipping]`: how the influence of one example is bounded."""

    max_norm: Annotated[Positive, _GUARANTEED] = Field(1.0, description="clipping norm of one example's gradient")
    groups: Annotated[Literal["all", "layer", "param"] | Count, _PRIVATE] = Field(
        "all",
        description='what has a norm of its own: "all" together, each "layer" (module), each "param", or so many '
        "blocks of modules",
    )
    rule: Annotated[Literal["flat", "auto_s", "auto_v"], _PRIVATE] = Field("flat", description="the clipping function")
    normalize: Annotated[bool, _PRIVATE] = Field(
        True, description="divide by max_norm, so that the learning rate does not depend on it"
    )
    norm: Annotated[Literal["exact", "hutchinson", "hutch++"], _PRIVATE] = Field(
        "exact", description="how norms are found: exactly, or where that is cheaper estimated from random probes"
    )
    probes: Annotated[int, Field(ge=8, le=65_536), _PRIVATE, _ESTIMATED] = Field(
        64, description="random probes of an estimated norm: fewer cost less and ask for more noise"
    )
    sketch: Annotated[Count, _PRIVATE, Needs("clipping.norm", "hutch++")] = Field(
        16, description="columns of its sketch"
    )
    sharing: Annotated[Literal["batch", "example"], _PRIVATE, _ESTIMATED] = Field(
        "batch", description="whether all examples of a batch share the probes; its own for each needs less noise"
    )
    adaptive: Annotated[bool, _PRIVATE] = Field(
        False, description="move the thresholds from max_norm on to a quantile of the norms, found within the budget"
    )
    target_quantile: Annotated[Share, _PRIVATE, _ADAPTIVE] = Field(
        0.5, description="share of the examples whose norm adaptive thresholds shall exceed"
    )
    threshold_rate: Annotated[float, Field(ge=1e-9, le=100, allow_inf_nan=False), _PRIVATE, _ADAPTIVE] = Field(
        0.2, description="learning rate of the adaptive thresholds' logarithms"
    )
    indicator_noise: Annotated[Positive | None, _PRIVATE, _ADAPTIVE] = Field(
        None,
        description="std of the noise on the count of examples below each adaptive threshold; a twentieth of the batch "
        "times the root of the number of groups if not given",
    )
    floor: Annotated[Positive, _PRIVATE, _ADAPTIVE] = Field(1e-6, description="no adaptive threshold falls below it")
    noise_shape: Annotated[Literal["isotropic", "equal_budget"], _PRIVATE] = Field(
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


class DenoiseConfig(Section):
    """`[denoise]`: singular values of the noisy gradient matrices, shrunk; it costs no privacy."""

    enabled: Annotated[bool, _PRIVATE] = Field(
        False, description="denoise every matrix that a phase trains, before the update rule"
    )
    mode: Annotated[Literal["keep_bulk", "shrink"], _DENOISED] = Field(
        "keep_bulk", description='"keep_bulk" weighs down what does not stand out, "shrink" drops it'
    )
    method: Annotated[Literal["auto", "gram", "subspace"], _DENOISED] = Field(
        "auto", description='"gram" (exact), "subspace" (the leading triplets, from step to step), or by size'
    )
    gate: Annotated[
        Literal["cosine", "tracy_widom"] | Annotated[float, Field(ge=1, le=1e6, allow_inf_nan=False)], _DENOISED
    ] = Field("cosine", description="from where on a singular value is signal, or a ratio to the edge of the noise")
    norm_correct: Annotated[bool, _DENOISED] = Field(True, description="keep the norm of each matrix")
    width: Annotated[Count, _DENOISED, Needs("denoise.method", "auto", "subspace")] = Field(
        8, description='singular triplets of the "subspace" method'
    )
    spectrum: Annotated[Name | None, _DENOISED] = Field(
        None,
        description="the parameter whose singular values `jaxdp report --spectrum` draws; the largest if not given",
    )


class SubspaceConfig(Section):
    """`[subspace]`: in which space gradients are clipped and noise is added."""

    method: Literal["none", "grape", "zeroth_order"] = Field(
        "none",
        description='"none" (all parameters), "grape" (random subspaces of matrices) or "zeroth_order" (differences of '
        "two losses, no backward pass)",
    )
    phases: Annotated[Names | None, _SUBSPACE] = Field(
        None, description="names of the phases that train so; all if not given, and the others in the full space"
    )
    rank: Annotated[Width, _SUBSPACE, _GRAPE] = Field(16, description="dimension of the subspaces of grape")
    refresh_every: Annotated[Steps, _SUBSPACE, _GRAPE] = Field(
        100, description="steps that one subspace of grape lasts"
    )
    projection: Annotated[Literal["gaussian", "orthonormal"], _SUBSPACE, _GRAPE] = Field(
        "gaussian", description="the subspaces' bases"
    )
    directions: Annotated[Count, _SUBSPACE, _ZEROTH] = Field(
        1, description="random directions of a step of zeroth_order"
    )
    scale: Annotated[float, Field(ge=1e-6, le=1e3, allow_inf_nan=False), _SUBSPACE, _ZEROTH] = Field(
        1e-3, description="length of the step along a direction that zeroth_order takes"
    )
