"""JSON files of a run: read with a sentence for whatever is wrong, and sealed where a changed bit must be noticed."""

import hashlib
import json
from pathlib import Path
from typing import Any

from jaxdp._files import write_text
from jaxdp.training._errors import UserError

_SEAL = "sha256"


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path, kind: type = dict) -> Any:
    """A JSON file that the run wrote, a table unless another kind is asked for."""
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{path} is damaged, as it is no JSON: {_FIX}.") from None
    if not isinstance(value, kind):
        raise UserError(f"{path} is damaged, as it is no {'table' if kind is dict else kind.__name__}: {_FIX}.")
    return value


def read_text(path: Path) -> str:
    """A text file that the run wrote."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {_FIX}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged, as it is no text: {_FIX}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {_FIX}.") from None
    if not text.strip():
        raise UserError(f"{path} is empty: {_FIX}.")
    return text


_FIX = "restore it from a backup, or start a new run with `jaxdp train`"


def seal_of(fields: dict[str, Any]) -> str:
    """SHA-256 of JSON values, whatever their order in a file."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def sealed(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON values together with their seal."""
    return fields | {_SEAL: seal_of(fields)}


def is_intact(fields: Any) -> bool:
    """Whether values are those that were sealed."""
    return isinstance(fields, dict) and fields.get(_SEAL) == seal_of({k: v for k, v in fields.items() if k != _SEAL})


def write_sealed(path: Path, fields: dict[str, Any]) -> None:
    """Secret values, whole or not at all."""
    write_text(path, json.dumps(sealed(fields), indent=2) + "\n", private=True)


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote, or a sentence."""
    fields = read_json(path)
    if not is_intact(fields):
        raise UserError(f"{path} is damaged or was edited, as its checksum is another: {_FIX}.")
    return {name: value for name, value in fields.items() if name != _SEAL}
