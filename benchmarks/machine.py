"""Facts about the machine that belong beside every number: no host names, no paths."""

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

import jax

# glibc gives large arrays that are freed back to the system. Their next pages are zeroed one by one, so that a step
# with a GB of temporary arrays takes up to twice its time, in one round or program and not in another.
_KEEPING = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36)}

_PACKAGES = ("jaxdp", "jax", "jaxlib", "flax", "optax", "jax-privacy", "numpy")


def keep_freed_memory() -> None:
    """Start this program again with an allocator that keeps what was freed, if it is glibc's."""
    missing = {name: value for name, value in _KEEPING.items() if name not in os.environ}
    if missing and platform.libc_ver()[0] == "glibc":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})


def facts(dtype: str) -> dict[str, Any]:
    """Processor, cores, devices and versions."""
    device = jax.devices()[0]
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "platform": device.platform,
        "device_kind": device.device_kind,
        "devices": jax.device_count(),
        "dtype": dtype,
        "matmul_precision": str(jax.config.jax_default_matmul_precision),
        "load_average": load_average(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
    }


def cpu_model() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_average() -> float | None:
    """Mean number of busy processes of the last minute: timings need it near the benchmark's own."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def free_bytes() -> int | None:
    """Memory that a step may take on the device, or None where it cannot be told."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
