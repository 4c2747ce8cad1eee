"""The part of `jaxdp train --help` that lists the fields of a configuration."""

import typing

from pydantic import BaseModel

from jaxdp.training._config import Config
from jaxdp.training._config_phase import PhaseConfig

_INTRODUCTION = """\
The file has the sections below. Every field can be changed for one run as --section.field value, and in a phase as
--phase.NUMBER.field or --phase.NAME.field. Fields with a star must be given.
"""

_EXAMPLES = """\
In use:
  jaxdp train configs/tweets.toml
  jaxdp train configs/tweets.toml --privacy.epsilon 3 --phase.1.learning_rate 0.05 --run-dir runs/mine
  jaxdp train configs/movie_sentences.toml --data.source a.csv --data.text_column review --data.label_column stars
"""


def fields() -> str:
    """All fields with what they mean, indented like a docstring."""
    lines = _INTRODUCTION.splitlines()
    for name, info in Config.model_fields.items():
        model = PhaseConfig if name == "phase" else typing.cast(type[BaseModel], info.annotation)
        lines += ["", f"[[{name}]]" if name == "phase" else f"[{name}]"]
        for field, what in model.model_fields.items():
            default = "" if what.is_required() or what.default in (None, "") else f" ({_shown(what.default)})"
            lines.append(f"  {field}{'*' if what.is_required() else ''}: {what.description}{default}")
    lines += ["", *_EXAMPLES.splitlines(), ""]
    return "\n".join("    " + line if line else "" for line in lines)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, tuple) else str(value)
