"""What decides how a computation is rounded: processor, devices, flags, settings and versions."""

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy

import jaxdp
from jaxdp.numerics._normals import NUMBERS

# Instructions that a compiler may choose among; the other flags of a processor do no arithmetic.
_INSTRUCTIONS = re.compile(r"(pni|s?sse|avx|amx|fma|f16c|bmi|abm|popcnt|xop|gfni|vaes|vpclmul|sha|movbe|adx)\w*")
_PROCESSOR = {"vendor_id", "cpu family", "model", "model name", "CPU implementer", "CPU part", "CPU variant", "cpu"}
_VARIABLES = re.compile(
    r"LIBTPU_INIT_ARGS|NVIDIA_TF32_OVERRIDE|(PJRT_)?NPROC|GLIBC_TUNABLES"
    r"|TF_(XLA|CUDNN|DETERMINISTIC|ENABLE|FORCE|USE|NUM|DISABLE)_\w+"
    r"|(CUBLAS|CUBLASLT|CUDNN|NCCL|ROCBLAS|MIOPEN|HIPBLASLT|ONEDNN|DNNL|OMP|KMP|MKL|OPENBLAS|GOTO|BLIS|VECLIB)_\w+"
)
# Flags of XLA that change no number, or that say how many devices there are, which is looked at by itself.
_HARMLESS_FLAGS = re.compile(r"--xla_(dump_\w+|force_host_platform_device_count)")
# Settings of JAX that change no number, or only refuse programs: whatever is not named here is compared.
_HARMLESS_SETTINGS = re.compile(
    r"jax_(\w*compilation_cache\w*|persistent_cache\w*|raise_persistent_cache\w*|share_binary_between_hosts\w*"
    r"|log_\w+|logging_level|debug_log_modules|debug_nans|debug_infs|debug_key_reuse|debug_leaked\w*|dump_ir\w*"
    r"|explain_cache_misses|\w*traceback\w*|pprint\w*|tracer_error\w*|distributed_debug|compiler_detailed\w*"
    r"|captured_constants\w*|check_\w+|transfer_guard\w*|thread_guard|array_garbage\w*|hlo_source\w*|source_url\w*"
    r"|include_\w+|num_cpu_devices|platforms|platform_name|\w+_visible_devices|cpu_get\w*"
    r"|cross_host\w*|enable_checks|enable_preemption\w*|enable_recoverability|error_checking\w*"
    r"|numpy_rank_promotion|numpy_dtype_promotion|legacy_prng_key|disable_bwd_checks|mutable_array_checks"
    r"|pallas_enable_debug_checks|pallas_verbose_errors|cpu_enable_async_dispatch)"
)
_PACKAGES = ("numpy", "scipy", "flax", "optax")
_WORDS = {"cpu": "processor", "variables": "environment variable", "settings": "JAX setting", "device": "device"}


def versions() -> dict[str, str]:
    """The software that computes a run's numbers."""
    return {
        "jaxdp": jaxdp.__version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "noise": NUMBERS,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
    } | {name: importlib.metadata.version(name) for name in _PACKAGES if name != "numpy"}


def environment() -> dict[str, dict[str, Any]]:
    """Everything of this process that decides bits, as JSON values; how many devices there are is not in it."""
    device = jax.devices()[0]
    return {
        "versions": versions(),
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "runtime": " ".join(device.client.platform_version.split()),
        },
        "cpu": _processor() if device.platform == "cpu" else {},
        "variables": _variables(),
        "flags": _flags(os.environ.get("XLA_FLAGS", "")),
        "settings": _settings(),
    }


def devices() -> dict[str, int]:
    """How many devices and processes there are."""
    return {"devices": jax.device_count(), "processes": jax.process_count()}


def differences(was: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str]]:
    """(section, in words what differs), the most telling first."""
    found = []
    for section, values in now.items():
        before = was.get(section, {})
        for name in [*values, *(x for x in before if x not in values)]:
            if before.get(name) != values.get(name):
                found.append((section, _difference(section, name, before.get(name), values.get(name))))
    return found


def _difference(section: str, name: str, before: Any, after: Any) -> str:
    if section == "cpu" and name == "instructions":
        gone, new = sorted(set(before or ()) - set(after or ())), sorted(set(after or ()) - set(before or ()))
        parts = [f"lacks {' '.join(gone)}"] * bool(gone) + [f"also has {' '.join(new)}"] * bool(new)
        return f"this processor {' and '.join(parts)}"
    if section == "cpu" and name == "usable":
        return f"{before} processors could be used and now {after} can"
    if section == "flags":
        return f"XLA_FLAGS had {_flag(name, before)} and has {_flag(name, after)}"
    word = _WORDS.get(section)
    shown = ["not set" if x is None else str(x) if str(x) else "empty" for x in (before, after)]
    if section == "versions":
        shown = ["another" if before is None else str(before), str(after)]
    return f"{f'the {word} ' if word else ''}{name} was {shown[0]} and is {shown[1]}"


def _flag(name: str, value: str | None) -> str:
    return f"no {name}" if value is None else f"{name}={value}" if value else name


def _processor() -> dict[str, Any]:
    """Model and instructions, and how many of them there are: XLA cuts long sums into as many parts."""
    found: dict[str, Any] = {"machine": platform.machine(), "usable": _usable()}
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return found | {"model name": platform.processor()}
    fields = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    instructions = fields.get("flags")
    if instructions is not None:
        known = [x for x in instructions.split() if _INSTRUCTIONS.fullmatch(x)]
    else:
        known = fields.get("Features", "").split()
    return found | {x: fields[x] for x in sorted(_PROCESSOR & fields.keys())} | {"instructions": sorted(set(known))}


def _usable() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _variables() -> dict[str, str]:
    return {name: value for name, value in sorted(os.environ.items()) if _VARIABLES.fullmatch(name)}


def _flags(text: str) -> dict[str, str]:
    """XLA's flags by name; of one that is given twice the last counts."""
    if text and not text.lstrip().startswith("-"):
        # XLA then takes it for a file that holds them.
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return {"file": text}
    pairs = [flag.partition("=") for flag in text.split()]
    return {name: value for name, _, value in pairs if not _HARMLESS_FLAGS.fullmatch(name)}


def _settings() -> dict[str, str]:
    """JAX's settings as they are here, those of a `with` block included."""
    names = [name for name in jax.config.values if not _HARMLESS_SETTINGS.fullmatch(name)]
    return {name: str(getattr(jax.config, name, jax.config.values[name])) for name in sorted(names)}
