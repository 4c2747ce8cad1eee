"""Objects that must not take part in arithmetic: scaling them would silently change a sensitivity."""

from typing import Any, NoReturn


class Inert:
    """Refuses arithmetic and conversion to an array with the sentence in `_refusal`."""

    _refusal = ""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(self._refusal)

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __pow__ = __rpow__ = __matmul__ = __rmatmul__ = __neg__ = __abs__ = __array__ = __jax_array__ = _refuse
