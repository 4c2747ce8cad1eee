"""Paths in a configuration file: relative to the file, and absolute from then on."""

import os
from pathlib import Path
from typing import Any

from jaxdp.training._config_task import NAMED_SOURCES

# A field, and the words that are names of something else than a file.
_FIELDS = {
    ("data", "source"): frozenset(NAMED_SOURCES),
    ("data", "path"): frozenset(),
    ("data", "cache"): frozenset(),
    ("model", "path"): frozenset({"minilm", "smollm2", "convnet", "vit"}),
}


def absolute_paths(raw: dict[str, Any], folder: Path) -> None:
    """Take relative paths of a parsed file as relative to a folder."""
    for section, field in _FIELDS:
        table = raw.get(section)
        if isinstance(table, dict) and field in table:
            table[field] = absolute_path(section, field, table[field], folder)


def absolute_path(section: str, field: str, value: Any, folder: Path) -> Any:
    """The same for one field; anything that is no relative path stays as it is."""
    names = _FIELDS.get((section, field))
    if names is None or not isinstance(value, str) or not value.strip() or value in names:
        return value
    # "package:NAME/PATH" is no path, and a word that names nothing there may be a name that was misspelt.
    if ":" in value.partition("/")[0] or not (set("./") & set(value) or os.path.exists(folder / value)):
        return value
    return str(folder.absolute() / os.path.expanduser(value))
