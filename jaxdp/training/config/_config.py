"""A whole configuration file, and the checks that need nothing but the file."""

from typing import Any

from pydantic import model_validator

from jaxdp.training.config._fit import check_task
from jaxdp.training.config._meaning import check_meaning
from jaxdp.training.config._phase import PhaseConfig
from jaxdp.training.config._privacy import SubspaceConfig
from jaxdp.training.config._sections import Sections

_MOST_STEPS = 1_000_000_000


class Config(Sections):
    """A whole configuration file."""

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
