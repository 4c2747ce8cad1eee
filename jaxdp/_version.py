"""The version of what is installed: the tag that it was built from, or the commits since."""

import importlib.metadata

try:
    __version__ = importlib.metadata.version("jaxdp-training")
except importlib.metadata.PackageNotFoundError:
    __version__ = "0.0.0+unknown"
