"""A privacy statement as plain text for people."""

import math
import textwrap

from jaxdp.accounting._events import randomized_releases
from jaxdp.accounting._phase import Phase, Stated

_WIDTH = 90
_LABEL = 24


def render(statement: Stated) -> str:
    """One page: the guarantee, what was run, what is not covered."""
    lines = ["PRIVACY STATEMENT", "=" * _WIDTH, ""]
    lines += _paragraph(_guarantee(statement))
    if statement.private_outputs:
        names = ", ".join(statement.private_outputs)
        warning = (
            f"WARNING: this run also wrote values without noise: {names}. They are not covered "
            "by the guarantee; whoever sees them can learn more than epsilon allows. Do not publish them."
        )
        lines += ["", *_paragraph(warning)]
    lines += ["", "Guarantee", "-" * _WIDTH]
    lines += _row("epsilon, delta", f"{_number(statement.epsilon)}, {_number(statement.delta)}")
    lines += _row("adjacency", statement.adjacency)
    lines += _row("unit of privacy", statement.unit_of_privacy)
    lines += _row("setting", statement.setting)
    lines += _row("released", statement.released)
    lines += _row("hyperparameters", statement.hyperparameter_tuning)
    lines += _row("accountant", f"{statement.accountant} of {statement.accounting_library}")
    lines += _row("epsilon is the bound by", _bound(statement)) if statement.bound else []
    lines += _row("software", f"jaxdp {statement.jaxdp_version}")
    for position, phase in enumerate(statement.phases, start=1):
        lines += ["", f"Phase {position} of {len(statement.phases)}: {phase.name}", "-" * _WIDTH]
        lines += _phase(phase)
    lines += ["", "Outside the guarantee", "-" * _WIDTH]
    for item in statement.outside_the_guarantee:
        lines += textwrap.wrap(item, _WIDTH, initial_indent="* ", subsequent_indent="  ")
    return "\n".join(lines) + "\n"


def _guarantee(statement: Stated) -> str:
    if math.isinf(statement.epsilon):
        return (
            "This run has no privacy guarantee: its epsilon is infinite. "
            "Treat the model like the data it was trained on."
        )
    epsilon, delta = _number(statement.epsilon), _number(statement.delta)
    return (
        f"What is released is ({epsilon}, {delta})-differentially private under {statement.adjacency} "
        f"adjacency. Unit of privacy: {statement.unit_of_privacy}. With or without any one unit, the "
        f"probability of any outcome is at most e^{epsilon} times as large, plus {delta}."
    )


def _bound(statement: Stated) -> str:
    """Whose bound was the smallest, in words."""
    names = {"pld": "privacy loss distributions (pld)", "rdp": "Rényi divergences (rdp)"}
    compared = ", the smaller of pld and rdp where both apply" if statement.accountant == "pld" else ""
    return f"{names.get(statement.bound, statement.bound)}{compared}; rounding is counted"


def _phase(phase: Phase) -> list[str]:
    norm = "see mechanism" if phase.clipping_norm is None else _number(phase.clipping_norm)
    return [
        *_row("mechanism", phase.mechanism),
        *_row("steps", str(phase.num_steps)),
        *_row("noise multiplier", f"{phase.noise_multiplier:.6g}"),
        *_row("clipping norm", norm),
        *(_row("rounding", _rounding(phase)) if phase.rounding is not None else []),
        *(_row("grid", _grid(phase)) if phase.grid is not None else []),
        *[line for words in _estimates(phase) for line in _row("norm estimates", words)],
        *_row("sampling", phase.sampling),
        *_row("examples", str(phase.num_examples)),
        *_row("sampling probability", f"{phase.sampling_probability:.6g}"),
        *_row("expected batch size", f"{phase.expected_batch_size:.10g}"),
        *_row("padded batch size", str(phase.padded_batch_size)),
        *_row("event", repr(phase.event).replace("DpEvent(", "(")),
    ]


def _rounding(phase: Phase) -> str:
    added = _number(100 * (phase.rounding or 0.0))
    return (
        f"in floating point one example moves the sum by at most {added} % more than the clipping norm, which "
        "the noise covers"
    )


def _grid(phase: Phase) -> str:
    added = _number(100 * (phase.grid or 0.0))
    return (
        "the sum and the noise are rounded to multiples of a public power of two, which moves the sum by at most "
        f"{added} % more, which the noise covers"
    )


def _estimates(phase: Phase) -> list[str]:
    """How estimated norms were accounted for; empty where norms are exact."""
    return list(dict.fromkeys(release.analysis() for release in randomized_releases(phase.event)))


def _row(label: str, value: str) -> list[str]:
    return textwrap.wrap(value, _WIDTH, initial_indent=f"{label:<{_LABEL}}", subsequent_indent=" " * _LABEL) or [label]


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH)


def _number(value: float) -> str:
    """Short, and rounded up: a statement must not promise more than was proved."""
    if value == 0 or math.isinf(value):
        return "infinite" if value else "0"
    digits = 4 - math.floor(math.log10(abs(value))) - 1
    rounded = math.ceil(round(value * 10.0**digits, 6)) / 10.0**digits
    return f"{rounded:.10g}"
