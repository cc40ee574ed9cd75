"""What this process's containers let it use of the processor: control groups, versions 1 and 2.

The limit of a group holds for all that is in it, so of a process's group and those above the
tightest counts. What cannot be read or understood limits nothing here, and is told. So is what a
quota that is no whole number of cores means for whole workers (`said`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from deeprecsys.models.cgroups import folders

ROOT = Path("/")
_USUAL_PERIOD_US = 100_000


@dataclass(frozen=True, slots=True)
class Quota:
    """cores: worth of time, None without a limit. unread: files that were not understood.
    period_s: in each of which it may use so much. file: whose limit it is."""

    cores: float | None = None
    unread: tuple[str, ...] = ()
    period_s: float = field(default=_USUAL_PERIOD_US / 1e6, compare=False)
    file: str = field(default="", compare=False)


def tightest(root: Path | None = None) -> Quota:
    """Of this process; `root` is that of the file system."""
    root = root or ROOT
    limits: list[tuple[float, float, str]] = []
    unread: list[str] = []
    for file in dict.fromkeys(_files(root)):
        name = f"/{file.relative_to(root)}"
        try:
            limits += [(*limit, name) for limit in _limit(file)]
        except FileNotFoundError:  # this group, or this version, is not here
            continue
        except (OSError, ValueError):
            unread.append(name)
    if not limits:
        return Quota(unread=tuple(unread))
    cores, period_s, name = min(limits, key=lambda limit: limit[0])
    return Quota(cores, tuple(unread), period_s, name)


def said(workers: int, quota: Quota) -> str:
    """How so many workers fit a quota: what of it they leave, or by how much it is overdrawn."""
    if quota.cores is None:
        return "no quota"
    some = f"{workers} worker{'s' * (workers > 1)}"
    left = quota.cores - workers
    of = f"quota of {_cores(quota.cores)}: {some}"
    if left > 0:
        return f"{of}, {_cores(left)} left for reading and answering"
    if left == 0:
        return f"{of}, a core each"
    want, stop_ms = "want" if workers > 1 else "wants", stopped_s(workers, quota) * 1e3
    return (
        f"{of} {want} {_cores(-left)} more; busy, all stop for {stop_ms:.0f} of every "
        f"{quota.period_s * 1e3:.0f} ms"
    )


def stopped_s(workers: int, quota: Quota) -> float:
    """For how long of each period busy workers stand still, once the quota is used up."""
    if quota.cores is None:
        return 0.0
    return max(0.0, quota.period_s * (1 - quota.cores / workers))


def _cores(count: float) -> str:
    if count < 1:
        return f"{count:.2g} of a core"
    return f"{count:.3g} core{'s' * (count != 1)}"


def _files(root: Path) -> Iterator[Path]:
    """Where each limit would be."""
    for version, folder in folders("cpu", root):
        yield folder / ("cpu.max" if version == 2 else "cpu.cfs_quota_us")


def _limit(file: Path) -> list[tuple[float, float]]:
    """Cores and period; nothing where there is no limit. ValueError if that is no limit at all."""
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
    return [(int(quota) / period_us, period_us / 1e6)]


def _read(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []
