"""Configuration files: reading, overriding, writing, and what is wrong with them in one sentence."""

import difflib
import json
import tomllib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic

from jaxdp.training._config import Config
from jaxdp.training._config_paths import with_absolute_paths
from jaxdp.training._config_phase import PhaseConfig
from jaxdp.training._errors import UserError

_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "string": "a text in quotes",
    "bool": "true or false",
    "tuple": "a list",
    "model": "a table",
}


def load_config(path: Path, overrides: Sequence[tuple[str, str]] = ()) -> Config:
    """Read a TOML file, change single fields, and check everything.

    Args:
      path: the TOML file.
      overrides: pairs of a dotted field and its value as typed, such as `("privacy.epsilon", "3")`; a phase is
        named by its number from 1 or its name, as in `phase.2.steps`.

    Returns:
      The checked configuration.

    Raises:
      UserError: one sentence that names the file, the field and the fix.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "small.toml"
      >>> _ = path.write_text('''
      ... data.source = "tweets"
      ... privacy.epsilon = 8.0
      ... [[phase]]
      ... train = "head"
      ... steps = 10
      ... batch_size = 64
      ... learning_rate = 0.1
      ... ''')
      >>> load_config(path, [("privacy.epsilon", "3")]).privacy.epsilon
      3.0
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.toml")], 1, 0.5)
        hint = f"did you mean {path.parent / near[0]}?" if near else "give the path of a TOML file."
        raise UserError(f"{path} does not exist: {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}): give the path of a TOML file.") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}.") from None
    for name, value in overrides:
        _override(raw, name, value)
    return with_absolute_paths(parse_config(raw, str(path)), path.parent, [name for name, _ in overrides])


def parse_config(raw: dict[str, Any], source: str) -> Config:
    """Check a parsed TOML document."""
    if isinstance(raw.get("phase"), dict):
        raw = raw | {"phase": [raw["phase"]]}
    try:
        return Config.model_validate(_tuples(raw))
    except pydantic.ValidationError as error:
        # The first one only: one sentence can be acted upon, a page of them cannot.
        raise UserError(f"{source}: {_sentence(error.errors()[0], raw)}") from None


def dump_config(config: Config) -> str:
    """The configuration as TOML, defaults included."""
    lines: list[str] = []
    for name, section in config.model_dump().items():
        tables = section if isinstance(section, tuple) else (section,)
        head = f"[[{name}]]" if isinstance(section, tuple) else f"[{name}]"
        for table in tables:
            lines += [head]
            lines += [f"{key} = {_toml_value(value)}" for key, value in table.items() if value is not None]
            lines += [""]
    return "\n".join(lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    # For strings, numbers and booleans JSON is a subset of TOML.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _tuples(value: Any) -> Any:
    """Lists as tuples, which frozen models hold."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _override(raw: dict[str, Any], name: str, text: str) -> None:
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        value = text
    parts = name.split(".")
    if parts[0] == "phase":
        table = _phase_table(raw, parts[1:-1], name)
    elif len(parts) == 2:
        table = raw.setdefault(parts[0], {})
    else:
        raise UserError(f"--{name} is not a field: write --section.field value, such as --privacy.epsilon 3.")
    if isinstance(table, dict):
        table[parts[-1]] = value
    # Each of these rules the other out; typing one means to replace the other.
    rival = {"privacy.epsilon": "noise_multiplier", "privacy.noise_multiplier": "epsilon"}.get(name)
    if rival and isinstance(table, dict):
        table.pop(rival, None)


def _phase_table(raw: dict[str, Any], middle: list[str], name: str) -> dict[str, Any]:
    phases = raw.get("phase")
    if isinstance(phases, dict):
        phases = raw["phase"] = [phases]
    phases = [p for p in phases if isinstance(p, dict)] if isinstance(phases, list) else []
    names = [str(p.get("name") or p.get("train", "")).replace(":", "") for p in phases]
    if not middle and len(phases) == 1:
        return phases[0]
    if len(middle) == 1 and middle[0].isdigit() and 1 <= int(middle[0]) <= len(phases):
        return phases[int(middle[0]) - 1]
    if len(middle) == 1 and names.count(middle[0]) == 1:
        return phases[names.index(middle[0])]
    raise UserError(
        f"--{name} names no phase: write --phase.N.field with N from 1 to {len(phases)}"
        + (f", or one of the names {', '.join(n for n in names if n)}." if any(names) else ".")
    )


def _sentence(error: Any, raw: dict[str, Any]) -> str:
    """A pydantic error in words."""
    location = [part for part in error["loc"] if not (isinstance(part, str) and part in _UNION_TAGS)]
    field = _field_name(location)
    kind, given, context = error["type"], error.get("input"), error.get("ctx", {})
    shown = json.dumps(given, default=str)
    if kind == "value_error":
        return str(context["error"]).replace("%FIELD%", field)
    if kind == "extra_forbidden":
        return _unknown(location)
    if kind == "missing":
        if len(location) == 1:
            return f"{'[[phase]]' if field == 'phase' else f'[{field}]'} is missing: add the section."
        if location[-2] == "betas":
            return f"{_field_name(location[:-1])} is {shown}: give two numbers."
        return f"{field} is missing: add it."
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        word = kind.replace("_", " ").replace("than equal", "than or equal to")
        bound = next(context[key] for key in ("gt", "ge", "lt", "le") if key in context)
        return f"{field} is {shown}: it must be {word} {bound:g}."
    if kind == "finite_number":
        return f"{field} is {shown}: it must be finite."
    if kind == "literal_error" or (location and location[-1] == "batch_size"):
        wanted = context.get("expected", '"full", or a positive number of examples').replace("'", '"')
        blocks = ", or a whole number of blocks" if location and location[-1] == "groups" else ""
        return f"{field} is {shown}: use {wanted}{blocks}."
    if kind == "too_short":
        return f"{field} is empty: add at least one [[phase]] table."
    wanted = next((words for name, words in _WANTED.items() if kind.startswith(name)), None)
    if location and location[-1] == "train":
        wanted = "a text in quotes, or a list of patterns"
    if location == ["phase"]:
        return "phase is not a list of tables: write [[phase]] with two brackets."
    return f"{field} is {shown}: give {wanted}." if wanted else f"{field}: {error['msg']}."


# What pydantic adds to the location of an error inside a union.
_UNION_TAGS = frozenset(
    {
        "str",
        "float",
        "constrained-float",
        "constrained-int",
        "literal['all','layer','param']",
        "literal['full']",
        "literal['rest']",
        "literal['cosine','tracy_widom']",
        "tuple[str, ...]",
        "int",
    }
)


def _field_name(location: Sequence[Any]) -> str:
    if location and location[0] == "phase" and len(location) > 1:
        rest = ".".join(map(str, location[2:]))
        return f"phase.{location[1] + 1}" + (f".{rest}" if rest else "")
    return ".".join(map(str, location)) or "the file"


def _unknown(location: Sequence[Any]) -> str:
    key = str(location[-1])
    if len(location) == 1:
        known, what, kind = list(Config.model_fields), f"[{key}] is not a section", "sections"
    else:
        section = PhaseConfig if location[0] == "phase" else Config.model_fields[str(location[0])].annotation
        known = list(typing.cast(type[pydantic.BaseModel], section).model_fields)
        what, kind = f"{_field_name(location)} is not a field", "fields"
    near = difflib.get_close_matches(key, known, 1, 0.5)
    fix = f'did you mean "{near[0]}"?' if near else f"the {kind} are {', '.join(known)}."
    return f"{what}: {fix}"
