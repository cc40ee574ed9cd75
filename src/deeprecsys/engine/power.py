"""Meters of energy where the machine has them: RAPL for the processors, NVML for NVIDIA's.

Says joules between `start` and `joules`, of what has a meter; the rest is not mentioned.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

from deeprecsys.analysis.usage import CORES

POWERCAP = Path("/sys/class/powercap")


class Meter:
    """cuda: (name, device number) of each accelerator that is here."""

    def __init__(self, cuda: Sequence[tuple[str, int]] = (), powercap: Path = POWERCAP) -> None:
        self._packages = [
            p for p in sorted(powercap.glob("intel-rapl:*")) if p.name.count(":") == 1
        ]
        self._cuda = [(name, handle) for name, k in cuda if (handle := _nvml_device(k)) is not None]
        self.start()

    def start(self) -> None:
        self._before = self._read()

    def joules(self) -> dict[str, float]:
        """Since `start`, by "cores" (whole processors, DRAM apart) and accelerators' names."""
        found: dict[str, float] = {}
        for key, now in self._read().items():
            if key not in self._before:
                continue
            used = now - self._before[key]
            if used < 0 and isinstance(key, Path):  # the counter went around
                used += _number(key / "max_energy_range_uj") or 0.0
            name = CORES if isinstance(key, Path) else key
            scale = 1e-6 if isinstance(key, Path) else 1e-3
            found[name] = found.get(name, 0.0) + scale * used
        return found

    def _read(self) -> dict[Path | str, float]:
        found: dict[Path | str, float] = {}
        for package in self._packages:
            if (value := _number(package / "energy_uj")) is not None:
                found[package] = value
        for name, handle in self._cuda:
            if (value := _nvml_millijoules(handle)) is not None:
                found[name] = value
        return found


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):  # not there, or for root only
        return None


def _nvml() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return library if library.nvmlInit_v2() == 0 else None


def _nvml_device(number: int) -> ctypes.c_void_p | None:
    library, handle = _nvml(), ctypes.c_void_p()
    if library is None or library.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(handle)):
        return None
    return handle


def _nvml_millijoules(handle: ctypes.c_void_p) -> float | None:
    """Since the driver was loaded; None on devices before Volta, which do not count it."""
    library, value = _nvml(), ctypes.c_ulonglong()
    if library is None or library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value)):
        return None
    return float(value.value)
