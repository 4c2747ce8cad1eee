"""jaxdp inside other libraries; each module is named after the library that it fits, and none imports it."""

from jaxdp.interop import jax_privacy

__all__ = ["jax_privacy"]
