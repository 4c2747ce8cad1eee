"""Objects that must not take part in arithmetic: scaling them would silently change a sensitivity."""

from typing import Any, NoReturn

# What array code reads first; each is answered with the sentence instead of "has no attribute".
_OF_ARRAYS = frozenset(
    {"T", "astype", "at", "dtype", "imag", "mean", "ndim", "real", "reshape", "shape", "size", "sum"}
)


class Inert:
    """Refuses arithmetic and conversion to an array with the sentence in `_refusal`."""

    _refusal = ""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(self._refusal)

    # Without `__jax_array__`: JAX looks for it only to complain about it in words of its own.
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __pow__ = __rpow__ = __matmul__ = __rmatmul__ = __neg__ = __abs__ = __array__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = _refuse

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            self._refusal if name in _OF_ARRAYS else f"{type(self).__name__!r} object has no attribute {name!r}"
        )
