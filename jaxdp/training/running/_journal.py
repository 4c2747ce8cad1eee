"""What a run notes while it goes on, so that no step is ever made again on another sum."""

from pathlib import Path
from typing import Any

from jaxdp.training._errors import UserError
from jaxdp.training.files._sealed import read_sealed, write_sealed

_KEPT = 8
_SECONDS = 1.0
_LONGEST = 4096


class Journal:
    """Which steps may have been made, over which devices, and what came out of some of them.

    * `made`: no step after this one was ever begun; written before they are, many at a time where they are fast.
    * `segments`: from which step on the run went over which devices.
    * `prepared`, `states`: digests of each phase's data and of the states after some steps.

    Args:
      path: the file.
      fields: what is in it.
    """

    def __init__(self, path: Path, fields: dict[str, Any]):
        self._path = path
        self._fields = fields
        self._made_before = fields["made"]
        self._reached = 0

    @classmethod
    def begin(cls, path: Path, layout: dict[str, Any]) -> "Journal":
        """Of a new run."""
        journal = cls(path, {"made": 0, "segments": [{"after": 0, "layout": layout}], "prepared": {}, "states": {}})
        journal._write()
        return journal

    @classmethod
    def read(cls, path: Path) -> "Journal":
        """Of a run that is resumed."""
        return cls(path, read_sealed(path))

    def check_layout(self, where: Path, step: int, layout: dict[str, Any]) -> None:
        """Refuse other devices for steps that may have been made before: they would round another way."""
        for segment, following in zip(self._segments, [*self._segments[1:], None], strict=True):
            begins, ends = segment["after"], self._fields["made"] if following is None else following["after"]
            if max(begins, step) < min(ends, self._fields["made"]) and segment["layout"] != layout:
                raise UserError(
                    f"{where} made steps after step {step} on a mesh of {_words(segment['layout'])} that were not "
                    "saved, and would make them again with the same noise and another rounding: resume it with those "
                    f"sizes, stop it with Ctrl-C after step {self._fields['made']} or later, and resume it on another "
                    "mesh then."
                )

    def go_on(self, step: int, layout: dict[str, Any]) -> None:
        """Note over what the steps after `step` are made."""
        if self._segments[-1]["layout"] != layout:
            kept = [segment for segment in self._segments if segment["after"] < step]
            self._fields["segments"] = [*kept, {"after": step, "layout": layout}]
            self._write()

    def claim(self, step: int, last: int, seconds: float) -> None:
        """Note that a step is about to be made; the one before took so long, and `last` is the last of all."""
        self._reached = step
        if step > self._fields["made"]:
            ahead = min(_LONGEST, max(1, int(_SECONDS / seconds))) if seconds else 1
            self._fields["made"] = min(last, step - 1 + ahead)
            self._write()

    def stop(self) -> None:
        """Note that the run ends in good order: steps after the last one were made by an earlier process, if at all."""
        self._fields["made"] = max(self._made_before, self._reached)
        self._write()

    def knows(self, step: int) -> bool:
        """Whether the state after a step was noted."""
        return str(step) in self._fields["states"]

    def same_state(self, step: int, digest: str) -> None:
        """Note the state after a step; refuse another one than before."""
        states = self._fields["states"]
        if states.get(str(step), digest) != digest:
            raise UserError(
                f"step {step} gave other numbers than when it was first made, although nothing that was noted of the "
                "machine and the software changed, and the same noise on another sum would let the difference be read "
                "off: resume where the run began, or start a new run with `jaxdp train` (on a GPU with XLA_FLAGS="
                "--xla_gpu_deterministic_ops=true)."
            )
        if str(step) not in states:
            states[str(step)] = digest
            steps = sorted(states, key=int)
            # The first one too: a run whose checkpoints are all damaged begins there.
            self._fields["states"] = {name: states[name] for name in {*steps[:1], *steps[-_KEPT:]}}
            self._write()

    def same_data(self, phase: int, digest: str) -> None:
        """Note what a phase trains on; refuse anything else than before."""
        prepared = self._fields["prepared"]
        if prepared.get(str(phase), digest) != digest:
            raise UserError(
                f"phase.{phase + 1} would train on other numbers than before, as the outputs of its frozen layers were "
                "computed again and came out differently: the same noise on another sum would let the difference be "
                "read off, so start a new run with `jaxdp train`."
            )
        if str(phase) not in prepared:
            prepared[str(phase)] = digest
            self._write()

    @property
    def _segments(self) -> list[dict[str, Any]]:
        return self._fields["segments"]

    def _write(self) -> None:
        write_sealed(self._path, self._fields)


def _words(layout: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {size}" for name, size in layout.items() if isinstance(size, int))
