"""What machine this is: cores this process may use, caches, memory, versions.

Reads /proc, /sys and the container's limits; measures nothing (see `limits.py`).
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import re
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from deeprecsys.engine import quotas


def usable_cores() -> list[int]:
    """Cores of this process's affinity mask, as many as the container's quota pays for."""
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
    else:
        cores = list(range(os.cpu_count() or 1))
    quota = cpu_quota()
    return cores if quota is None else cores[: max(1, math.floor(quota))]


def own_cores() -> bool:
    """Are the usable cores this process's own? Then a worker may be bound to each.

    A container with a quota sees all cores of its node, and so does every other: bound to the
    lowest, they would share these. A mask that leaves cores out is somebody's choice.
    """
    if not hasattr(os, "sched_getaffinity"):
        return False
    mask, quota = len(os.sched_getaffinity(0)), cpu_quota()
    return mask < (os.cpu_count() or mask) and (quota is None or quota >= mask)


def cpu_quota() -> float | None:
    """Cores' worth of time that this process's containers allow it, or None without a limit."""
    return quotas.tightest().cores


@cache
def last_level_cache_bytes() -> int:
    """Size of the largest cache that core 0 sees; 32 MiB if the kernel does not say."""
    sizes = [
        _parse_size(text)
        for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")
        if (text := _read(str(index / "size")))
    ]
    return max(sizes, default=32 << 20)


@cache
def machine() -> dict[str, Any]:
    """A plain description for results: processor, cores, caches, memory, system."""
    return {
        "cpu": cpu_name(),
        "cores": len(usable_cores()),
        "quota": cpu_quota(),
        "simd": simd(),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


@cache
def versions() -> dict[str, str]:
    """Python's and the installed packages' that a result can depend on."""
    found = {"python": platform.python_version()}
    for name in ("deeprecsys", "torch", "numpy", "scipy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo") or "", re.MULTILINE)
    return match.group(1).strip() if match else platform.processor() or platform.machine()


def cpu_flags() -> str | None:
    """The kernel's list of what the first processor can do."""
    match = re.search(
        r"^(?:flags|Features)\s*:\s*(.+)$", _read("/proc/cpuinfo") or "", re.MULTILINE
    )
    return match.group(1) if match else None


def simd() -> str:
    """The widest vector instructions of the processor that matter to a matrix product."""
    flags = set((cpu_flags() or "").split())
    for flag, name in (
        ("avx512f", "AVX-512"),
        ("avx2", "AVX2"),
        ("sve", "SVE"),
        ("asimd", "NEON"),
        ("sse4_2", "SSE4.2"),
    ):
        if flag in flags:
            return name
    return "unknown"


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _parse_size(text: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return int(text.rstrip("KMG")) * units.get(text[-1], 1)
