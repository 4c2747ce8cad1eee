"""Events as plain dictionaries, so that a statement can be recomputed from its JSON."""

from typing import Any

import attr
import dp_accounting
from dp_accounting import DpEvent

from jaxdp.accounting._events import TruncatedPoissonDpEvent
from jaxdp.accounting._randomized_event import RandomizedGaussianDpEvent

_EVENT_CLASSES: dict[str, type[DpEvent]] = {
    cls.__name__: cls
    for cls in (
        dp_accounting.NoOpDpEvent,
        dp_accounting.NonPrivateDpEvent,
        dp_accounting.GaussianDpEvent,
        dp_accounting.LaplaceDpEvent,
        dp_accounting.dp_event.MixtureOfGaussiansDpEvent,
        dp_accounting.ZCDpEvent,
        dp_accounting.SelfComposedDpEvent,
        dp_accounting.ComposedDpEvent,
        dp_accounting.PoissonSampledDpEvent,
        dp_accounting.TruncatedSubsampledGaussianDpEvent,
        TruncatedPoissonDpEvent,
        RandomizedGaussianDpEvent,
    )
}


def event_to_dict(event: DpEvent) -> dict[str, Any]:
    """A DpEvent as nested dictionaries of plain values, for JSON; `event_from_dict` reads it back.

    Args:
        event: any event made of the kinds that `jaxdp.accounting` knows.

    Returns:
        `{"type": class name, field: value, ...}`.

    Raises:
        ValueError: the event is of a kind that cannot be written down.

    Example:
        >>> event_to_dict(dp_accounting.GaussianDpEvent(1.5))
        {'type': 'GaussianDpEvent', 'noise_multiplier': 1.5}
    """
    name = type(event).__name__
    if _EVENT_CLASSES.get(name) is not type(event):
        raise ValueError(f"event {name} cannot be written to a statement; use one of {', '.join(_EVENT_CLASSES)}.")
    fields = attr.asdict(event, recurse=False)
    return {"type": name} | {field: _to_plain(value) for field, value in fields.items()}


def event_from_dict(fields: dict[str, Any]) -> DpEvent:
    """The DpEvent that `event_to_dict` wrote.

    Args:
        fields: what `event_to_dict` returned, possibly through JSON.

    Returns:
        An event equal to the one written.

    Raises:
        ValueError: the dictionary names no known event. Nothing is ever imported by name.

    Example:
        >>> event_from_dict({"type": "GaussianDpEvent", "noise_multiplier": 1.5})
        GaussianDpEvent(noise_multiplier=1.5)
    """
    name = fields.get("type")
    cls = _EVENT_CLASSES.get(name) if isinstance(name, str) else None
    if cls is None:
        raise ValueError(f"event {name!r} is not known; use one of {', '.join(_EVENT_CLASSES)}.")
    return cls(**{field: _from_plain(value) for field, value in fields.items() if field != "type"})


def _to_plain(value: Any) -> Any:
    if isinstance(value, DpEvent):
        return event_to_dict(value)
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    return value


def _from_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return event_from_dict(value)
    if isinstance(value, list):
        return [_from_plain(item) for item in value]
    return value
