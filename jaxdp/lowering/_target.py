"""Which platform a trace is for, and which forms of a computation are the quick ones there.

What a program computes is the same everywhere; how it is put to the compiler is not, and neither is how its sums are
rounded, which the certificates of norms count with.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding

_CHOSEN: contextvars.ContextVar[str | None] = contextvars.ContextVar("target", default=None)
_SHARDING: contextvars.ContextVar[NamedSharding | None] = contextvars.ContextVar("batch_sharding", default=None)

_KINDS = {"cpu": "cpu", "gpu": "gpu", "cuda": "gpu", "rocm": "gpu", "tpu": "tpu"}


class Forms(NamedTuple):
    """What is put to a compiler in another form than elsewhere.

    Attributes:
      few_at_a_time: products and loops over few examples instead of all. A CPU's compiler takes up to 4 times as long
        for those of many, once their factors or results are in no cache; other devices are kept busy by many only.
      patches: convolutions with examples first and features last, and sums of kernels' gradients from patches. A CPU's
        compiler makes other forms fast outside loops only.
      noise_in_blocks: the noise of all parameters drawn by one kernel, in blocks that stay in a cache. Elsewhere every
        parameter has a loop of its own, which is fused with nothing.
    """

    few_at_a_time: bool
    patches: bool
    noise_in_blocks: bool


_ON_A_CPU, _ELSEWHERE = Forms(True, True, True), Forms(False, False, False)


@contextlib.contextmanager
def target(platform: str) -> Iterator[None]:
    r"""Trace for another platform than the one that runs: for `jax.export` and ahead-of-time compilation.

    How a step is put to the compiler, and the unit roundoff $u$ that certified norms and the slack of a sum count with,
    depend on where it will run. They are taken from the mesh's devices where a placement names a mesh, and else from
    the default backend, which is wrong for a program that is exported to another one.

    Args:
      platform: `"cpu"`, `"gpu"` (or `"cuda"`, `"rocm"`) or `"tpu"`.

    Raises:
      ValueError: another platform.

    Traces that JAX keeps do not know what they were made for. So they are forgotten when the platform changes, on the
    way in and on the way out: what was compiled before is compiled again when it is called next.

    Example:
      >>> import jax, jax.numpy as jnp, jaxdp
      >>> norms = jax.jit(lambda w, x: jaxdp.per_example_grad(lambda w, x: jnp.sum(w * x))(w, x).squared_norms())
      >>> with jaxdp.target("tpu"):
      ...     exported = jax.export.export(norms, platforms=["tpu"])(jnp.ones(3), jnp.ones((2, 3)))
      >>> exported.platforms
      ('tpu',)
    """
    if platform not in _KINDS:
        raise ValueError(f"platform is {platform!r}: use one of {', '.join(map(repr, _KINDS))}.")
    kind = _KINDS[platform]
    changes = kind != current()
    token = _CHOSEN.set(kind)
    try:
        if changes:
            jax.clear_caches()
        yield
    finally:
        _CHOSEN.reset(token)
        if changes:
            jax.clear_caches()


@contextlib.contextmanager
def batch_sharded(sharding: NamedSharding | None) -> Iterator[None]:
    """While tracing inside, leading batch axes lie on the devices as `sharding` says; None for one device."""
    token = _SHARDING.set(sharding)
    try:
        yield
    finally:
        _SHARDING.reset(token)


def batch_sharding() -> NamedSharding | None:
    """How leading batch axes lie on the devices."""
    return _SHARDING.get()


def current() -> str:
    """The platform that is traced for: `"cpu"`, `"gpu"` or `"tpu"`, or what else JAX calls its own."""
    chosen = _CHOSEN.get()
    if chosen is not None:
        return chosen
    found = _of_mesh(_SHARDING.get()) or jax.default_backend()
    return _KINDS.get(found, found)


def _of_mesh(sharding: Any) -> str | None:
    devices = getattr(getattr(sharding, "mesh", None), "devices", None)
    return None if devices is None else devices.flat[0].platform


def forms() -> Forms:
    """The quick forms there."""
    return _ON_A_CPU if current() == "cpu" else _ELSEWHERE
