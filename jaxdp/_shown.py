"""What may be seen of values that can be private: shapes and dtypes, never what is in them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

# Settings, such as a method's name or a sensitivity.
_PLAIN = (bool, int, float, str, type(None))


def shown(value: Any) -> str:
    """A value in one line: shape and dtype of an array, the structure of a container, the type of anything else."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is not None and isinstance(shape, tuple):
        return f"{dtype}[{','.join(map(str, shape))}]"
    if getattr(type(value), "_shows_shapes", False) or type(value).__repr__ is of_shapes:
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_field(k)}: {shown(x)}" for k, x in value.items()) + "}"
    if isinstance(value, list | tuple):
        # Of many rows of text or numbers the number says enough.
        if value and all(isinstance(x, str | bytes | int | float) for x in value):
            return f"<{len(value)} {type(value[0]).__name__}>"
        inside = ", ".join(map(shown, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    return type(value).__name__


def setting(value: Any) -> str:
    """What was given for a setting, for the sentence that refuses it: an array in its place can be a private one."""
    return repr(value) if _is_plain(value) else shown(value)


def of_shapes(self: Any) -> str:
    """The `__repr__` of a dataclass or named tuple that holds arrays: errors of JAX and of optax print it, and logs."""
    data = dataclasses.is_dataclass(self)
    names = [x.name for x in dataclasses.fields(self) if x.repr] if data else type(self)._fields
    # Of objects that refuse arithmetic, a field that is not set yet would be answered with that refusal.
    found = vars(self) if data else self._asdict()
    inside = ", ".join(f"{n.lstrip('_')}={_field(found[n])}" for n in names if n in found)
    return f"{type(self).__name__}({inside})"


def _field(value: Any) -> str:
    return repr(value) if isinstance(value, _PLAIN) else shown(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, (*value.keys(), *value.values())))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)
