"""All models, by package: importing their modules lists them."""

from benchmarks.zoo import _control, _graphs, _language, _networks, _probabilistic, _solvers, _structured
from benchmarks.zoo._model import LISTED, Model

FIELDS = (_networks, _language, _solvers, _probabilistic, _graphs, _control, _structured)
MODELS: dict[str, Model] = {m.name: m for m in sorted(LISTED, key=lambda m: m.package)}

__all__ = ["FIELDS", "MODELS", "Model"]
