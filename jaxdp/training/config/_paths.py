"""Paths in a configuration file: relative to the file, and absolute from then on."""

import os
from collections.abc import Collection
from pathlib import Path

from jaxdp.training.config._config import Config
from jaxdp.training.config._task_sections import NAMED_SOURCES

# A field, and the words that are names of something else than a file.
_FIELDS = {
    ("data", "source"): frozenset(NAMED_SOURCES),
    ("data", "path"): frozenset(),
    ("data", "cache"): frozenset(),
    ("model", "path"): frozenset({"minilm", "smollm2", "convnet", "vit"}),
}


def with_absolute_paths(config: Config, folder: Path, typed: Collection[str]) -> Config:
    """Take relative paths as relative to the file's folder, those that were typed to where they were typed."""
    for (section, field), names in _FIELDS.items():
        part = getattr(config, section)
        value = getattr(part, field)
        if value is not None and value not in names:
            found = _absolute(value, Path.cwd() if f"{section}.{field}" in typed else folder)
            config = config.model_copy(update={section: part.model_copy(update={field: found})})
    return config


def _absolute(value: str, folder: Path) -> str:
    # "package:NAME/PATH" is no path, and a word that names nothing there may be a name that was misspelt.
    if ":" in value.partition("/")[0] or not (set("./") & set(value) or os.path.exists(folder / value)):
        return value
    return str(folder.absolute() / os.path.expanduser(value))
