"""Which fields of a configuration do nothing, because of what another field says."""

from collections.abc import Iterator
from typing import Any

from jaxdp.training.config._fields import GIVEN, Needs, Section, needs_of, shown
from jaxdp.training.config._sections import Sections

# What asks for nothing cannot be in vain.
_OFF = (False, None, (), 0, "", "none", "record")


class NoMeaning(ValueError):
    """A field does nothing.

    Args:
      sentence: says so.
      field: its dotted name.
      because: the dotted name of the field that it depends on.
    """

    def __init__(self, sentence: str, field: str, because: str):
        super().__init__(sentence)
        self.field, self.because = field, because


def meaningless(config: Sections) -> Iterator[tuple[str, int | None, str, Needs]]:
    """Section, index of a phase, field, and what it needs, of every field that does nothing, given or not."""
    for section, index, table in _tables(config):
        for field, info in type(table).model_fields.items():
            for need in needs_of(info):
                if not any(need.met_by(value) for value in _values(config, table, need.field)):
                    yield section, index, field, need
                    break


def check_meaning(config: Sections) -> None:
    """Refuse what was given and does nothing."""
    for name, need, because, table in _given(config):
        if not need.named:
            raise NoMeaning(_sentence(config, name, need, because, table), name, because)


def named(config: Sections) -> list[str]:
    """Sentences about what was given and does nothing, but may stand."""
    return [_sentence(config, *found) for found in _given(config) if found[1].named]


def _given(config: Sections) -> Iterator[tuple[str, Needs, str, Section]]:
    """Name, what it needs, the name of that, and the table, of every field that was given and does nothing."""
    for section, index, field, need in meaningless(config):
        table = _table(config, section, index)
        value = getattr(table, field)
        off = value == type(table).model_fields[field].default and value in _OFF
        if field in table.model_fields_set and not off:
            prefix = section if index is None else f"phase.{index + 1}"
            because = need.field.replace("phase.", f"{prefix}.", 1) if need.field.startswith("phase.") else need.field
            yield f"{prefix}.{field}", need, because.removeprefix("any."), table


def _sentence(config: Sections, name: str, need: Needs, because: str, table: Section) -> str:
    if need.values == (GIVEN,):
        return f"{name} has no meaning without {because}: give that as well, or remove {name}."
    if need.field.startswith("any."):
        return f"{name} has no meaning, as no phase has {because.rpartition('.')[2]} = {need.wanted()}: remove it."
    own = need.field.rpartition(".")[2] if need.field.startswith("phase.") else because
    state = f"{own} = {shown(next(_values(config, table, need.field)))}"
    return (
        f"{name} has no meaning {need.word} {state}: it needs {because} = {need.wanted()}, so set that, or remove it."
    )


def _values(config: Sections, table: Section, field: str) -> Iterator[Any]:
    """The values of the field that another one in `table` depends on."""
    if field.startswith("any.phase."):
        yield from (getattr(phase, field.removeprefix("any.phase.")) for phase in config.phase)
    elif field.startswith("phase."):
        yield getattr(table, field.removeprefix("phase."))
    else:
        section, _, name = field.partition(".")
        yield getattr(getattr(config, section), name)


def _tables(config: Sections) -> Iterator[tuple[str, int | None, Section]]:
    for section in type(config).model_fields:
        value = getattr(config, section)
        if isinstance(value, tuple):
            yield from ((section, index, table) for index, table in enumerate(value))
        else:
            yield section, None, value


def _table(config: Sections, section: str, index: int | None) -> Section:
    value = getattr(config, section)
    return value if index is None else value[index]
