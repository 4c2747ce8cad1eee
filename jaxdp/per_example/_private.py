"""Objects that must not take part in arithmetic: scaling them would silently change a sensitivity."""

from typing import Any, ClassVar, NoReturn

from jaxdp._shown import of_shapes

# What array code reads first; each is answered with the sentence instead of "has no attribute".
_OF_ARRAYS = frozenset(
    {"T", "astype", "at", "dtype", "imag", "mean", "ndim", "real", "reshape", "shape", "size", "sum"}
)


class Inert:
    """Refuses arithmetic and conversion to an array with a sentence, and shows no values.

    Attributes:
      _what: what reached arithmetic, the beginning of the sentence.
      _advice: what to do instead, its end; it also follows the shapes in `repr`, which is all that JAX and optax print
        of an object where they, and not these methods, refuse it.
    """

    _what: ClassVar[str] = ""
    _advice: ClassVar[str] = ""
    # As `shown` asks it.
    _shows_shapes: ClassVar[bool] = True
    _private: ClassVar[bool] = False

    def __repr__(self) -> str:
        return f"{of_shapes(self)} ({self._advice})"

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(f"{self._what}: {self._advice}.")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __divmod__ = __rdivmod__ = _refuse
    __pow__ = __rpow__ = __matmul__ = __rmatmul__ = __neg__ = __pos__ = __abs__ = __array__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __round__ = _refuse
    __float__ = __int__ = __complex__ = __index__ = __bool__ = _refuse
    __len__ = __iter__ = __contains__ = __getitem__ = _refuse

    def __format__(self, spec: str) -> str:
        return str(self) if not spec else self._refuse()

    def __getattr__(self, name: str) -> NoReturn:
        # JAX asks whatever it cannot read for this, and would print the object if it were merely missing.
        if name == "__jax_array__" and self._private:
            self._refuse()
        raise AttributeError(
            f"{self._what}: {self._advice}."
            if name in _OF_ARRAYS
            else f"{type(self).__name__!r} object has no attribute {name!r}"
        )


class Private(Inert):
    """Likewise, of what no noise was added to yet: it is not copied or stored either."""

    _private = True

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        del protocol
        raise TypeError(f"a {type(self).__name__} is private, so it is neither copied nor stored: {self._advice}.")
