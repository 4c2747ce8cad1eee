"""What a loss may do that is no error and yet never meant: one random key for all examples, statistics of a batch."""

import contextlib
import functools
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxdp.per_example.tracing import _compat

# Primitives that draw numbers from their first operand.
_DRAWS = frozenset({"random_bits", "rng_bit_generator", "threefry2x32"})


def warn_of_shared_keys(closed: Any, num_params: int) -> None:
    """Warn where the loss draws from a key that no example decides; the jaxpr's first inputs are the parameters."""
    own = [i >= num_params for i in range(len(closed.jaxpr.invars))]
    if _draws_alike(closed.jaxpr, own)[0]:
        warnings.warn(
            "the loss draws random numbers from a key that does not come from the example, so that all examples share "
            "one dropout mask: carry a key per example in the batch, jax.random.split(key, batch_size), and draw from "
            "that (jaxdp.nnx.per_example_grad does so for NNX modules).",
            stacklevel=2,
        )


def _draws_alike(jaxpr: Any, own: Sequence[bool]) -> tuple[bool, list[bool]]:
    """Whether numbers are drawn from what no example decides, and which outputs an example decides."""
    known = dict(zip(jaxpr.invars, own, strict=True))
    is_own = lambda atom: not _compat.is_literal(atom) and known.get(atom, False)
    alike = False
    for eqn in jaxpr.eqns:
        operands = [is_own(v) for v in eqn.invars]
        inside, outs = _in_equation(eqn, operands)
        alike |= inside
        known.update(zip(eqn.outvars, outs, strict=True))
    return alike, [is_own(v) for v in jaxpr.outvars]


def _in_equation(eqn: Any, own: list[bool]) -> tuple[bool, list[bool]]:
    name, count = eqn.primitive.name, len(eqn.outvars)
    if name in _DRAWS:
        return not any(own), [any(own)] * count
    if name == "scan":
        jaxpr, _ = _compat.sub_jaxpr(eqn)
        consts, carried = _compat.scan_counts(eqn)
        # Twice: what is carried may become an example's in the first step.
        _, outs = _draws_alike(jaxpr, own)
        carry = [a or b for a, b in zip(own[consts : consts + carried], outs[:carried], strict=True)]
        alike, outs = _draws_alike(jaxpr, [*own[:consts], *carry, *own[consts + carried :]])
        return alike, outs
    if name == "cond":
        found = [_draws_alike(closed.jaxpr, own[1:]) for closed in eqn.params["branches"]]
        return any(alike for alike, _ in found), [own[0] or any(o) for o in zip(*(o for _, o in found), strict=True)]
    if "jaxpr" in eqn.params or "call_jaxpr" in eqn.params:
        jaxpr, _ = _compat.sub_jaxpr(eqn)
        if len(jaxpr.invars) == len(own) and len(jaxpr.outvars) == count:
            return _draws_alike(jaxpr, own)
    return False, [any(own)] * count


@contextlib.contextmanager
def watching_batch_statistics() -> Iterator[None]:
    """While a loss is traced, warn where a layer of a known library takes statistics of a batch of one example."""
    layers = [(sys.modules.get(module), "BatchNorm", training) for module, training in _LIBRARIES.items()]
    found = [(getattr(module, name), training) for module, name, training in layers if hasattr(module, name)]
    originals = [(cls, cls.__call__) for cls, _ in found]
    for cls, training in found:
        cls.__call__ = _watched(cls, training)
    try:
        yield
    finally:
        for cls, call in originals:
            cls.__call__ = call


def _watched(cls: Any, training: Callable[..., bool]) -> Callable:
    call = cls.__call__

    @functools.wraps(call)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        if training(self, *args, **kwargs):
            warnings.warn(
                f"{cls.__module__.split('.')[0]}'s BatchNorm is in training mode inside the loss of one example, which "
                "has no batch to take statistics of, so that they are lost and outputs may not depend on the example: "
                "use GroupNorm or LayerNorm, or evaluation mode with statistics of public data.",
                stacklevel=2,
            )
        return call(self, *args, **kwargs)

    return watched


def _flax_trains(self: Any, x: Any, use_running_average: bool | None = None, **_: Any) -> bool:
    chosen = self.use_running_average if use_running_average is None else use_running_average
    return not chosen and not getattr(self, "is_initializing", lambda: False)()


def _haiku_trains(self: Any, inputs: Any, is_training: bool, test_local_stats: bool = False, **_: Any) -> bool:
    del self, inputs
    return bool(is_training or test_local_stats)


_LIBRARIES: dict[str, Callable[..., bool]] = {
    "flax.nnx": _flax_trains,
    "flax.linen": _flax_trains,
    "haiku": _haiku_trains,
}
