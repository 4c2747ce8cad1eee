"""Help that fits the terminal, and the part of `jaxdp train --help` that lists the fields of a configuration."""

import inspect
import re
import shutil
import textwrap
import typing

from pydantic import BaseModel

_INTRODUCTION = """\
The file has the sections below. Every field can be changed for one run as --section.field value, and in a phase as
--phase.NUMBER.field or --phase.NAME.field. Fields with a star must be given. All of [privacy] but enabled, [clipping]
and [denoise] have a meaning only with privacy.enabled = true; a field that does nothing is refused.
"""

_EXAMPLES = """\
In use:
  jaxdp train configs/tweets.toml
  jaxdp train configs/tweets.toml --privacy.epsilon 3 --run-dir runs/mine
  jaxdp train configs/tweets.toml --phase.1.learning_rate 0.05 --phase.1.steps 200
  jaxdp train configs/movie_sentences.toml --data.source a.csv \\
    --data.text_column review --data.label_column stars
"""


def width() -> int:
    """Columns that help may fill."""
    return min(max(shutil.get_terminal_size().columns - 1, 50), 120)


def described(doc: str | None, fields: str = "") -> str:
    """A docstring whose description fits the terminal; what its arguments mean is laid out by the parser."""
    # Python 3.13 takes the indentation off by itself.
    text, _, arguments = inspect.cleandoc(doc or "").partition("\nArgs:")
    parts = ["\n".join(_wrapped(paragraph)) for paragraph in re.split(r"\n\s*\n", text.strip())]
    parts += [fields] if fields else []
    return "\n\n".join(parts) + (f"\n\nArgs:{arguments}" if arguments else "")


def fields() -> str:
    """All fields with what they mean."""
    # Here, not above: the other commands do without.
    from jaxdp.training.config._config import Config
    from jaxdp.training.config._phase import PhaseConfig

    lines = _wrapped(_INTRODUCTION)
    for name, info in Config.model_fields.items():
        model = PhaseConfig if name == "phase" else typing.cast(type[BaseModel], info.annotation)
        lines += ["", f"[[{name}]]" if name == "phase" else f"[{name}]"]
        for field, what in model.model_fields.items():
            default = "" if what.is_required() or what.default in (None, "", ()) else f" ({_shown(what.default)})"
            said = (what.description or "").replace("; only with privacy.enabled = true", "")
            text = f"{field}{'*' if what.is_required() else ''}: {said}{default}"
            lines += textwrap.wrap(
                text, width(), initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False
            )
    return "\n".join([*lines, "", *_EXAMPLES.splitlines()])


def _wrapped(paragraph: str) -> list[str]:
    """A paragraph in lines that fit; lines that are indented, such as examples, stay as they are."""
    lines, plain = [], []
    for line in [*paragraph.splitlines(), " "]:
        if not line.startswith(" "):
            plain.append(line.strip())
            continue
        if plain:
            lines += textwrap.wrap(" ".join(plain), width(), break_on_hyphens=False)
            plain = []
        lines += [line] if line.strip() else []
    return lines


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, tuple) else str(value)
