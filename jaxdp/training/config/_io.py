"""Configuration files: reading, overriding, writing, and what is wrong with them in one sentence."""

import difflib
import json
import re
import tomllib
import typing
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pydantic

from jaxdp._reading import read_text
from jaxdp.training._errors import UserError
from jaxdp.training.config._config import Config
from jaxdp.training.config._fields import number_words, shown
from jaxdp.training.config._meaning import NoMeaning, meaningless
from jaxdp.training.config._paths import with_absolute_paths
from jaxdp.training.config._phase import PhaseConfig

# A configuration is a page; deeper than sections, phases and lists nothing is read.
_LARGEST_FILE, _DEEPEST = 1 << 20, 6

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
        raw = tomllib.loads(read_text(path, "give the path of a TOML file", limit=_LARGEST_FILE))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.toml")], 1, 0.5)
        hint = f"did you mean {path.parent / near[0]}?" if near else "give the path of a TOML file."
        raise UserError(f"{path} does not exist: {hint}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}.") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deep: write sections of fields, as in configs/.") from None
    except ValueError as error:
        # What the reader says names the file itself; Python's own word on numbers of thousands of digits does not.
        named = str(error) if str(path) in str(error) else f"{path} is not valid TOML: {error}."
        raise UserError(named) from None
    raw = _tables(raw)
    typed = {_override(raw, name, value) for name, value in overrides}
    return with_absolute_paths(parse_config(raw, str(path), typed), path.parent, typed)


def parse_config(raw: dict[str, Any], source: str, typed: Collection[str] = ()) -> Config:
    """Check a parsed TOML document; what the fields in `typed` deprive of its meaning is left out of it."""
    if _depth(raw) > _DEEPEST:
        raise UserError(f"{source} is nested too deep: write sections of fields, as in configs/.")
    raw, typed = _tables(raw), set(typed)
    while True:
        try:
            return Config.model_validate(_tuples(raw))
        except pydantic.ValidationError as error:
            # The first one only: one sentence can be acted upon, a page of them cannot.
            first = error.errors()[0]
            cause = first.get("ctx", {}).get("error")
            overruled = (
                isinstance(cause, NoMeaning)
                and cause.field not in typed
                and (cause.because in typed or any(_is_of_a_phase(cause.because, name) for name in typed))
            )
            if not isinstance(cause, NoMeaning) or not overruled:
                raise UserError(f"{source}: {_sentence(first, raw)}") from None
            raw = _without(raw, cause.field)
            typed.add(cause.field)


def dump_config(config: Config) -> str:
    """The configuration as TOML, defaults included, fields without a meaning left out."""
    idle = set()
    for section, index, field, need in meaningless(config):
        table = getattr(config, section) if index is None else getattr(config, section)[index]
        if not need.named or field not in table.model_fields_set:
            idle.add((section, index, field))
    lines: list[str] = []
    for name, section in config.model_dump().items():
        several = isinstance(section, tuple)
        for index, table in enumerate(section if several else (section,)):
            place = (name, index if several else None)
            fields = [
                f"{key} = {_toml_value(value)}"
                for key, value in table.items()
                if value is not None and (*place, key) not in idle
            ]
            if fields:
                lines += [f"[[{name}]]" if several else f"[{name}]", *fields, ""]
    return "\n".join(lines)


def _tables(raw: dict[str, Any]) -> dict[str, Any]:
    """One phase may be written as a plain table."""
    return raw | {"phase": [raw["phase"]]} if isinstance(raw.get("phase"), dict) else raw


def _without(raw: dict[str, Any], name: str) -> dict[str, Any]:
    """The document without one field."""
    section, *middle, field = name.split(".")
    if not middle:
        return raw | {section: {key: value for key, value in raw[section].items() if key != field}}
    phases = list(raw[section])
    phases[int(middle[0]) - 1] = {k: v for k, v in phases[int(middle[0]) - 1].items() if k != field}
    return raw | {section: phases}


def _is_of_a_phase(because: str, name: str) -> bool:
    """Whether the field that something depends on is that of any phase, and this is one of them."""
    parts = name.split(".")
    return len(parts) == 3 and f"phase.{parts[2]}" == because


def _depth(value: Any) -> int:
    """How deep tables and lists are nested, without recursion."""
    depth, level = 0, [value]
    while level := [
        item for x in level if isinstance(x, dict | list) for item in (x.values() if isinstance(x, dict) else x)
    ]:
        depth += 1
        if depth > _DEEPEST:
            break
    return depth


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


def _override(raw: dict[str, Any], name: str, text: str) -> str:
    """Put one field in, and give back its name with the number of its phase."""
    parts = name.split(".")
    value = _typed(parts, text)
    if parts[0] == "phase":
        number, table = _phase_table(raw, parts[1:-1], name)
        name = f"phase.{number}.{parts[-1]}"
    elif len(parts) == 2 and all(parts):
        table = raw.setdefault(parts[0], {})
    else:
        raise UserError(f"--{name} is not a field: write --section.field value, such as --privacy.epsilon 3.")
    if isinstance(table, dict):
        table[parts[-1]] = value
    # Each of these rules the other out; typing one means to replace the other.
    rival = {"privacy.epsilon": "noise_multiplier", "privacy.noise_multiplier": "epsilon"}.get(name)
    if rival and isinstance(table, dict):
        table.pop(rival, None)
    return name


def _typed(parts: list[str], text: str) -> Any:
    """A value as typed on the command line: a text where the field is one, otherwise as it would stand in a file."""
    try:
        document = tomllib.loads(f"x = {text}")
        value = document["x"] if list(document) == ["x"] else text
    except (ValueError, RecursionError):
        value = text
    return text if _is_text(parts) and not isinstance(value, str) else value


def _is_text(parts: list[str]) -> bool:
    """Whether a field holds a text and nothing else."""
    section = PhaseConfig if parts[0] == "phase" else _section(parts[0])
    info = section.model_fields.get(parts[-1]) if section is not None else None
    if info is None:
        return False
    return {_plain(kind) for kind in typing.get_args(info.annotation) or (info.annotation,)} <= {str, type(None)}


def _plain(kind: Any) -> Any:
    """A type without what is said beside it."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind


def _section(name: str) -> type[pydantic.BaseModel] | None:
    info = Config.model_fields.get(name)
    kind = None if info is None else info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel) else None


def _phase_table(raw: dict[str, Any], middle: list[str], name: str) -> tuple[int, dict[str, Any]]:
    """Number and table of the phase that an override names."""
    found = raw.get("phase")
    phases = [p for p in found if isinstance(p, dict)] if isinstance(found, list) else []
    names = [str(p.get("name") or p.get("train", "")).replace(":", "") for p in phases]
    if not middle and len(phases) == 1:
        return 1, phases[0]
    if len(middle) == 1 and middle[0] in map(str, range(1, len(phases) + 1)):
        return int(middle[0]), phases[int(middle[0]) - 1]
    if len(middle) == 1 and names.count(middle[0]) == 1:
        return names.index(middle[0]) + 1, phases[names.index(middle[0])]
    raise UserError(
        f"--{name} names no phase: write --phase.N.field with N from 1 to {len(phases)}"
        + (f", or one of the names {', '.join(n for n in names if n)}." if any(names) else ".")
    )


def _sentence(error: Any, raw: dict[str, Any]) -> str:
    """A pydantic error in words."""
    location = [part for part in error["loc"] if not (isinstance(part, str) and _UNION_TAG.fullmatch(part))]
    field = _field_name(location)
    kind, context = error["type"], error.get("ctx", {})
    given = shown(error.get("input"))
    if kind == "value_error":
        return str(context["error"]).replace("%FIELD%", field)
    if kind == "extra_forbidden":
        return _unknown(location)
    if kind == "missing":
        if len(location) == 1:
            return f"{'[[phase]]' if field == 'phase' else f'[{field}]'} is missing: add the section."
        if location[-2] == "betas":
            return f"{_field_name(location[:-1])} is {given}: give two numbers."
        return f"{field} is missing: add it."
    if kind in _NUMBERS:
        return number_sentence(field, error)
    if kind == "literal_error" or (location and location[-1] == "batch_size"):
        wanted = context.get("expected", '"full", or a positive number of examples').replace("'", '"')
        blocks = ", or a whole number of blocks" if location and location[-1] == "groups" else ""
        return f"{field} is {given}: use {wanted}{blocks}."
    if kind == "too_short":
        return f"{field} is empty: add at least one [[phase]] table."
    if kind == "too_long" and location[-1] != "betas":
        return f"{field} has more than {context.get('max_length')} entries: give fewer."
    if "betas" in location[-1:]:
        return f"{field} is {given}: give two numbers."
    wanted = next((words for name, words in _WANTED.items() if kind.startswith(name)), None)
    if location and location[-1] == "train":
        wanted = "a text in quotes, or a list of patterns"
    if location == ["phase"]:
        return "phase is not a list of tables: write [[phase]] with two brackets."
    return f"{field} is {given}: give {wanted or 'another value'}."


_NUMBERS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")


def number_sentence(name: str, error: Any) -> str:
    """What is wrong with a number, from a pydantic error."""
    kind, number, context = error["type"], error.get("input"), error.get("ctx", {})
    if kind == "finite_number":
        return f"{name} is {shown(number)}: it must be finite."
    if kind not in _NUMBERS:
        return f"{name} is {shown(number)}: give a number."
    word = kind.replace("_", " ").replace("than equal", "than or equal to")
    bound = next(context[key] for key in ("gt", "ge", "lt", "le") if key in context)
    if isinstance(number, int | float) and 0 < bound < 1 and not 0 < number < 1:
        # Nearer to zero or one than a float tells: the plain bound says more.
        word, bound = ("greater than", 0) if "greater" in word else ("less than", 1)
    return f"{name} is {shown(number)}: it must be {word} {number_words(bound)}."


# What pydantic adds to the location of an error inside a union: no field is named so.
_UNION_TAG = re.compile(r"str|float|int|bool|(?:constrained|nullable)-.*|.*\[.*")


def _field_name(location: Sequence[Any]) -> str:
    if location and location[0] == "phase" and len(location) > 1:
        rest = ".".join(map(str, location[2:]))
        return f"phase.{location[1] + 1}" + (f".{rest}" if rest else "")
    return ".".join(map(str, location)) or "the file"


def _unknown(location: Sequence[Any]) -> str:
    key = str(location[-1])
    if (len(location) > 1 and not key.isprintable()) or len(key) > 80:
        key = shown(key)
    if len(location) == 1:
        known, what, kind = list(Config.model_fields), f"[{key}] is not a section", "sections"
    else:
        section = PhaseConfig if location[0] == "phase" else Config.model_fields[str(location[0])].annotation
        known = list(typing.cast(type[pydantic.BaseModel], section).model_fields)
        what, kind = f"{_field_name(location)} is not a field", "fields"
    near = difflib.get_close_matches(key, known, 1, 0.5)
    fix = f'did you mean "{near[0]}"?' if near else f"the {kind} are {', '.join(known)}."
    return f"{what}: {fix}"
