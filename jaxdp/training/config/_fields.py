"""What the sections of a configuration are made of: numbers with bounds, texts, and when a field has a meaning."""

import dataclasses
import json
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

# Every number has both bounds, so that none reaches an allocation, a compiler or float32 unchecked.
Positive = Annotated[float, Field(ge=1e-9, le=1e9, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
# Between these, neither the number nor one minus it vanishes in float32.
Share = Annotated[float, Field(ge=1e-6, le=0.999999, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, le=0.999999, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=0, le=0.99, allow_inf_nan=False)]
Epsilon = Annotated[float, Field(ge=1e-6, le=1e4, allow_inf_nan=False)]
Noise = Annotated[float, Field(ge=1e-4, le=1e7, allow_inf_nan=False)]
Delta = Annotated[float, Field(ge=1e-100, lt=1, allow_inf_nan=False)]
Steps = Annotated[int, Field(ge=1, le=1_000_000_000)]
Rows = Annotated[int, Field(ge=1, le=2_000_000_000)]
Examples = Annotated[float, Field(ge=1e-6, le=2e9, allow_inf_nan=False)]
Length = Annotated[int, Field(ge=4, le=1_048_576)]
Width = Annotated[int, Field(ge=1, le=65_536)]
Count = Annotated[int, Field(ge=1, le=4_096)]

_LONGEST_TEXT = 4096


def _printable(text: str) -> str:
    if text and not text.isprintable():
        raise ValueError(
            f"%FIELD% is {shown(text)}: leave characters out that cannot be printed, or that are no UTF-8."
        )
    return _readable(text)


def _readable(text: str) -> str:
    if len(text) > _LONGEST_TEXT:
        raise ValueError(f"%FIELD% has {len(text):,} characters: give at most {_LONGEST_TEXT:,}.")
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"%FIELD% is {shown(text)}: leave characters out that are no UTF-8.")
    return text


def _not_empty(text: str) -> str:
    if not text.strip():
        raise ValueError("%FIELD% is empty: give a text, or leave it out.")
    return text


def _names_a_file(path: str) -> str:
    if not path.strip():
        raise ValueError("%FIELD% is an empty text: name a file or a directory, or remove the field.")
    return path


Name = Annotated[str, AfterValidator(_not_empty), AfterValidator(_printable)]
FilePath = Annotated[str, AfterValidator(_names_a_file), AfterValidator(_printable)]
Column = Annotated[str, AfterValidator(_not_empty), AfterValidator(_readable)]
Text = Annotated[str, AfterValidator(_readable)]
Names = Annotated[tuple[Name, ...], Field(max_length=1000)]
Selection = Text | Names


@dataclasses.dataclass(frozen=True)
class Kind:
    """Values that a test tells, in words."""

    words: str
    test: Callable[[Any], bool]

    def __call__(self, value: Any) -> bool:
        return self.test(value)


GIVEN = Kind("given", lambda value: value is not None)


@dataclasses.dataclass(frozen=True, init=False)
class Needs:
    """A field has a meaning only where another one has one of these values; elsewhere giving it is a mistake.

    Args:
      field: the other one, dotted; of a phase the same phase's, and with `any.phase.` in front that of any phase.
      values: what it must be, each a value or a `Kind`.
      word: "with" or "for", whichever reads better.
      named: whether a meaningless value is named in a warning instead of refused.
    """

    field: str
    values: tuple[Any, ...]
    word: str
    named: bool

    def __init__(self, field: str, *values: Any, word: str = "with", named: bool = False):
        for name, value in (("field", field), ("values", values), ("word", word), ("named", named)):
            object.__setattr__(self, name, value)

    def met_by(self, value: Any) -> bool:
        """Whether the other field's value gives this one a meaning."""
        return any(want(value) if isinstance(want, Kind) else want == value for want in self.values)

    def wanted(self) -> str:
        """The values in words."""
        return " or ".join(want.words if isinstance(want, Kind) else shown(want) for want in self.values)


class Section(BaseModel):
    """A section of the file: unknown fields and values of another type are errors, and bounds are said in help."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for info in cls.model_fields.values():
            said = [_range(bounds) for bounds in _bounds(info)] + [_choices(info)] + [_needs_words(info)]
            info.description = "; ".join([info.description or "", *filter(None, dict.fromkeys(said))])


def needs_of(info: FieldInfo) -> list[Needs]:
    """When a field has a meaning: where all of these are met."""
    return [item for item in info.metadata if isinstance(item, Needs)]


def shown(value: Any, limit: int = 80) -> str:
    """A value as it stands in a file, cut off where it is long."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=not (isinstance(value, str) and value.isprintable()))
    except RecursionError:
        return "a value nested too deep"
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def number_words(bound: float | int) -> str:
    """A bound in words."""
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def _bounds(info: FieldInfo) -> Iterator[dict[str, Any]]:
    """The bounds of the numbers that a field may be or hold, without repetition."""
    for metadata in (info.metadata, *_nested(info.annotation)):
        found: dict[str, Any] = {}
        for item in metadata:
            inner = item.metadata if isinstance(item, FieldInfo) else [item]
            for one in inner:
                found |= {key: getattr(one, key) for key in ("ge", "gt", "le", "lt") if hasattr(one, key)}
        if found:
            yield found


def _nested(annotation: Any) -> Iterator[tuple[Any, ...]]:
    """What is said beside the types inside an annotation."""
    if typing.get_origin(annotation) is Annotated:
        first, *metadata = typing.get_args(annotation)
        yield tuple(metadata)
        yield from _nested(first)
        return
    for argument in typing.get_args(annotation):
        yield from _nested(argument)


def _range(bounds: dict[str, Any]) -> str:
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is None or high is None:
        return ""
    begin = f"from {number_words(low)}" if "ge" in bounds else f"above {number_words(low)}"
    end = f"to {number_words(high)}" if "le" in bounds else f"to below {number_words(high)}"
    return f"{begin} {end}"


def _choices(info: FieldInfo) -> str:
    """The words that a field may be, where its description does not name them all."""
    arguments = [info.annotation, *typing.get_args(info.annotation)]
    words = [
        word
        for a in arguments
        if typing.get_origin(a) is Literal
        for word in typing.get_args(a)
        if isinstance(word, str)
    ]
    missing = any(f'"{word}"' not in (info.description or "") for word in words)
    return "one of " + ", ".join(f'"{word}"' for word in words) if missing else ""


def _needs_words(info: FieldInfo) -> str:
    """When a field has a meaning."""
    # The last one only: the others follow from it or are plain from the section.
    found = [need for need in needs_of(info) if not need.named]
    if not found:
        return ""
    need = found[-1]
    name = need.field.removeprefix("any.phase.").removeprefix("phase.")
    return f"only with {name} {need.wanted()}" if need.values == (GIVEN,) else f"only with {name} = {need.wanted()}"
