"""What this process's containers let it use of the processor: control groups, versions 1 and 2.

The limit of a group holds for all that is in it, so of a process's group and those above the
tightest counts. What cannot be read or understood limits nothing here, and is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")
_MOUNT = "sys/fs/cgroup"
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
    """Where each limit would be: of every group of the process, and of those above it."""
    for version, group in _groups(root):
        mounts = ("", "unified") if version == 2 else ("cpu", "cpu,cpuacct", "cpuacct,cpu")
        name = "cpu.max" if version == 2 else "cpu.cfs_quota_us"
        # Where only the container's own part is mounted, the path may lead out of it.
        path = PurePosixPath(*(part for part in PurePosixPath(group).parts if part not in "/.."))
        for mount in mounts:
            for above in (path, *path.parents):
                yield root / _MOUNT / mount / above / name


def _groups(root: Path) -> set[tuple[int, str]]:
    """Version and path of those that may limit this process's processor time; see cgroups(7)."""
    found = {(1, "/"), (2, "/")}
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return found
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            found.add((2, path))
        elif "cpu" in controllers.split(","):
            found.add((1, path))
    return found


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
