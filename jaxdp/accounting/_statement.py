"""The privacy statement: what is guaranteed, for whom, by which mechanism, and what is not."""

import dataclasses
import importlib.metadata
import json
import math
from collections.abc import Sequence
from typing import Any

import dp_accounting
from dp_accounting import DpEvent

from jaxdp import __version__
from jaxdp.accounting._accountant import epsilon_of, guarantee
from jaxdp.accounting._phase import OUTSIDE_THE_GUARANTEE, Phase, Stated
from jaxdp.accounting._serialization import event_from_dict, event_to_dict
from jaxdp.accounting._statement_text import render

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class PrivacyStatement(Stated):
    """What a run guarantees, complete enough to be reviewed and recomputed. Holds no seed, key or data.

    Make one with `PrivacyStatement.from_phases`, which computes epsilon from the events. The points are those
    that section 5.3 of https://arxiv.org/abs/2303.00654 asks to report.

    Attributes:
        phases: what was run, in order, composed adaptively.
        epsilon: the guarantee at `delta`.
        delta: probability with which epsilon may be exceeded.
        accountant: `"pld"` (the smaller bound of both) or `"rdp"` alone: what was asked.
        accounting_library: name and version of the library behind it.
        jaxdp_version: version of this package.
        adjacency: which data sets must be hard to tell apart.
        unit_of_privacy: what they differ in.
        setting: who is trusted.
        released: what may be published under the guarantee.
        hyperparameter_tuning: how the choice of hyperparameters is covered.
        outside_the_guarantee: what the guarantee says nothing about.
        private_outputs: names of values that were written without noise at the user's request. They are not
            covered and must not be published.
        bound: accountant whose bound epsilon is, the smallest; empty in statements that do not say.
    """

    @classmethod
    def from_phases(
        cls,
        phases: Sequence[Phase],
        *,
        delta: float | int,
        accountant: str = "pld",
        also_outside_the_guarantee: Sequence[str] = (),
        private_outputs: Sequence[str] = (),
        hyperparameter_tuning: str | None = None,
    ) -> "PrivacyStatement":
        """The statement of a run, with epsilon computed from the events of its phases.

        Args:
            phases: what was run, in order; at least one.
            delta: probability in (0, 1).
            accountant: `"pld"` or `"rdp"`.
            also_outside_the_guarantee: what else the guarantee does not cover, beside the usual.
            private_outputs: names of values that were written without noise.
            hyperparameter_tuning: how hyperparameters were chosen, if the usual sentence is not right.

        Returns:
            The statement.

        Raises:
            ValueError: no phase, or what `epsilon_of` raises.

        Example:
            >>> from jaxdp.sampling import FullBatch
            >>> class Clip:
            ...     def dp_event(self, noise_multiplier):
            ...         return dp_accounting.GaussianDpEvent(noise_multiplier)
            >>> phase = Phase.of(name="head", mechanism="clipped sum plus Gaussian noise", clip=Clip(),
            ...                  sampling=FullBatch(8000), noise_multiplier=20.0, num_steps=100)
            >>> statement = PrivacyStatement.from_phases([phase], delta=1e-5)
            >>> statement.verify()
            >>> round(statement.epsilon, 2)
            1.99
        """
        if not phases:
            raise ValueError("phases must hold at least one phase; add what was run.")
        found = guarantee(_composed(phases), delta=delta, accountant=accountant)
        tuning = {} if hyperparameter_tuning is None else {"hyperparameter_tuning": hyperparameter_tuning}
        return cls(
            phases=tuple(phases),
            epsilon=found.epsilon,
            delta=float(delta),
            accountant=accountant,
            accounting_library=f"dp-accounting {importlib.metadata.version('dp-accounting')}",
            jaxdp_version=__version__,
            outside_the_guarantee=OUTSIDE_THE_GUARANTEE + tuple(also_outside_the_guarantee),
            private_outputs=tuple(private_outputs),
            bound=found.accountant,
            **tuning,
        )

    @property
    def event(self) -> DpEvent:
        """The event of the whole run."""
        return _composed(self.phases)

    def verify(self) -> None:
        """Recompute epsilon from the recorded events, with the accountant installed here.

        Raises:
            ValueError: the stated epsilon is smaller than the recomputed one by more than 1e-3 relative.
        """
        recomputed = epsilon_of(self.event, self.delta, self.accountant)
        if not recomputed <= self.epsilon * (1 + 1e-3):
            raise ValueError(
                f"epsilon {self.epsilon} of the statement is below the {recomputed} that its events give; "
                "do not rely on it and make the statement again from the run."
            )

    def to_json(self) -> str:
        """The statement as JSON; `from_json` reads it back."""
        fields: dict[str, Any] = {"format_version": FORMAT_VERSION}
        for field in dataclasses.fields(self):
            fields[field.name] = getattr(self, field.name)
        fields["epsilon"] = "infinite" if math.isinf(self.epsilon) else self.epsilon
        fields["phases"] = [_phase_to_dict(phase) for phase in self.phases]
        return json.dumps(fields, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "PrivacyStatement":
        """The statement that `to_json` wrote.

        Args:
            text: JSON.

        Returns:
            A statement equal to the one written.

        Raises:
            ValueError: not JSON, of another format version, or with missing or unknown fields.
        """
        fields = json.loads(text)
        version = fields.pop("format_version", None) if isinstance(fields, dict) else None
        if version != FORMAT_VERSION:
            raise ValueError(
                f"format_version of the statement must be {FORMAT_VERSION}, got {version!r}; "
                "read it with the jaxdp version that wrote it."
            )
        try:
            fields["phases"] = tuple(
                Phase(**(phase | {"event": event_from_dict(phase["event"])})) for phase in fields["phases"]
            )
            fields["epsilon"] = math.inf if fields["epsilon"] == "infinite" else fields["epsilon"]
            for name in ("outside_the_guarantee", "private_outputs"):
                fields[name] = tuple(fields[name])
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise ValueError(f"the statement has a missing or unknown field: {error}.") from error

    def to_text(self) -> str:
        """The statement as one page of plain text, at most 90 columns wide."""
        return render(self)


def _composed(phases: Sequence[Phase]) -> DpEvent:
    return dp_accounting.ComposedDpEvent([phase.event for phase in phases])


def _phase_to_dict(phase: Phase) -> dict[str, Any]:
    fields = {field.name: getattr(phase, field.name) for field in dataclasses.fields(phase)}
    return fields | {"event": event_to_dict(phase.event)}
