"""The privacy statement: what is guaranteed, for whom, by which mechanism, and what is not."""

import dataclasses
import importlib.metadata
import json
import math
from collections.abc import Sequence
from typing import Any

import dp_accounting
from dp_accounting import DpEvent

from jaxdp.accounting._accountant import epsilon_of, guarantee
from jaxdp.accounting._events import Sampling, checked_clipping
from jaxdp.accounting._serialization import event_from_dict, event_to_dict
from jaxdp.accounting._statement_text import render

FORMAT_VERSION = 1

OUTSIDE_THE_GUARANTEE = (
    "the data on which the initial weights were trained beforehand",
    "the held-out data on which accuracy is reported",
    "the label set and the tokenizer, taken as public",
    "the number of training examples, taken as public",
    "hyperparameters chosen by looking at the training data, by other runs on it included",
    "that the noise is made of floating-point numbers, of finite precision and range, and not of real ones",
    "the pseudorandom generator (Threefry-2x32), taken as truly random, and the secrecy of its key",
    "time, memory use and other side channels of the computer that trains",
)


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase of a run: the same noisy release repeated. `Phase.of` makes one from the objects that run.

    Attributes:
        name: what the phase trains, e.g. `"fine-tuning"`.
        mechanism: what one step releases, in words.
        event: the event of the whole phase; epsilon is computed from it.
        num_steps: number of noisy releases.
        noise_multiplier: standard deviation of the noise divided by the sensitivity.
        clipping_norm: bound on the norm of one example's contribution; None where no single number is.
        sampling: how batches are drawn, in words.
        num_examples: number of training examples; public.
        sampling_probability: probability that an example is drawn in a step.
        expected_batch_size: mean number of examples in a batch.
        padded_batch_size: most examples in a batch.
        rounding: by what share of the clipping norm the noise is larger for what floating-point rounding may add to
            one example's influence on the sum; None in statements that do not say.
        grid: by what share more for rounding sums and noise to a public grid; None where there is no grid.
    """

    name: str
    mechanism: str
    event: DpEvent
    num_steps: int
    noise_multiplier: float
    clipping_norm: float | None
    sampling: str
    num_examples: int
    sampling_probability: float
    expected_batch_size: float
    padded_batch_size: int
    rounding: float | None = None
    grid: float | None = None

    @classmethod
    def of(
        cls,
        *,
        name: str,
        mechanism: str,
        clip: object,
        sampling: Sampling,
        noise_multiplier: float | int,
        num_steps: int,
        clipping_norm: float | int | None = None,
        rounding: float | None = None,
        grid: float | None = None,
    ) -> "Phase":
        """The phase that these objects run, so that no number is typed in twice.

        Args:
            name: what the phase trains.
            mechanism: what one step releases, in words.
            clip: the clipping, whose event is used.
            sampling: how batches are drawn.
            noise_multiplier: standard deviation of the noise divided by the sensitivity.
            num_steps: number of noisy releases, at least 1.
            clipping_norm: bound on the norm of one example's contribution; None where no single number is.
            rounding: what `per_example_grad(loss)(params, batch).slack().total` says of the gradients.
            grid: the grid given to `add_gaussian_noise`.

        Returns:
            The phase with its event.

        Raises:
            ValueError: `num_steps` below 1.
            TypeError: `clip` has no `dp_event`.
        """
        release = checked_clipping(clip).dp_event(float(noise_multiplier))
        return cls(
            name=name,
            mechanism=mechanism,
            event=sampling.event(release, num_steps),
            num_steps=num_steps,
            noise_multiplier=float(noise_multiplier),
            clipping_norm=None if clipping_norm is None else float(clipping_norm),
            sampling=sampling.description,
            num_examples=sampling.num_examples,
            sampling_probability=sampling.sampling_probability,
            expected_batch_size=sampling.expected_batch_size,
            padded_batch_size=sampling.padded_batch_size,
            rounding=rounding,
            grid=grid,
        )


@dataclasses.dataclass(frozen=True)
class PrivacyStatement:
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

    phases: tuple[Phase, ...]
    epsilon: float
    delta: float
    accountant: str
    accounting_library: str
    jaxdp_version: str
    adjacency: str = "add-or-remove-one"
    unit_of_privacy: str = "one example (one row of the training data)"
    setting: str = "central: whoever trains sees the data; the guarantee is against whoever sees what is released"
    released: str = "the model after every step, thus every checkpoint and everything computed from them"
    hyperparameter_tuning: str = "not covered: the guarantee is for this one run"
    outside_the_guarantee: tuple[str, ...] = OUTSIDE_THE_GUARANTEE
    private_outputs: tuple[str, ...] = ()
    bound: str = ""

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
            jaxdp_version=_jaxdp_version(),
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


def _jaxdp_version() -> str:
    try:
        return importlib.metadata.version("jaxdp")
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"
