"""What this process's containers let it use of the processor: control groups, versions 1 and 2.

The limit of a group holds for all that is in it, so of a process's group and those above the
tightest counts. What cannot be read or understood limits nothing here, and is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deeprecsys.models.cgroups import folders

ROOT = Path("/")
_USUAL_PERIOD_US = 100_000


@dataclass(frozen=True, slots=True)
class Quota:
    """cores: worth of time, None without a limit. unread: files that were not understood."""

    cores: float | None = None
    unread: tuple[str, ...] = ()


def tightest(root: Path | None = None) -> Quota:
    """Of this process; `root` is that of the file system."""
    root = root or ROOT
    limits: list[float] = []
    unread: list[str] = []
    for file in dict.fromkeys(_files(root)):
        try:
            limits += _limit(file)
        except FileNotFoundError:  # this group, or this version, is not here
            continue
        except (OSError, ValueError):
            unread.append(f"/{file.relative_to(root)}")
    return Quota(min(limits, default=None), tuple(unread))


def _files(root: Path) -> Iterator[Path]:
    """Where each limit would be."""
    for version, folder in folders("cpu", root):
        yield folder / ("cpu.max" if version == 2 else "cpu.cfs_quota_us")


def _limit(file: Path) -> list[float]:
    """Cores, or nothing where there is no limit. ValueError if that is no limit at all."""
    words = file.read_text().split()
    if file.name != "cpu.max":
        words += _read(file.with_name("cpu.cfs_period_us"))
    if not words or len(words) > 2:
        raise ValueError(f"{file} says {words}")
    quota, period_us = words[0], int(words[1]) if words[1:] else _USUAL_PERIOD_US
    if quota == "max" or int(quota) == -1:
        return []
    if int(quota) <= 0 or period_us <= 0:
        raise ValueError(f"{file} says {words}")
    return [int(quota) / period_us]


def _read(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []
