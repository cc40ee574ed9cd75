"""How much memory a process may still take, so that a model too large is refused in one line.

Knows nothing of models. `load_model` calls it before any table is allocated.
"""

from __future__ import annotations

from pathlib import Path

import psutil

from deeprecsys.models.cgroups import folders

_FILES = {  # by version: limit, usage, statistics, reclaimable
    1: (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "memory.stat",
        "total_inactive_file",
    ),
    2: ("memory.max", "memory.current", "memory.stat", "inactive_file"),
}


def available_bytes(root: Path = Path("/")) -> int:
    """Free memory of the machine, or what a limit of the containers leaves if that is less."""
    free = int(psutil.virtual_memory().available)
    every = folders("memory", root)
    limits = (_left_in_cgroup(folder, *_FILES[version]) for version, folder in every)
    return max(0, min([free, *(left for left in limits if left is not None)]))


def _left_in_cgroup(root: Path, limit: str, usage: str, stat: str, reclaim: str) -> int | None:
    """Limit minus usage; page cache that the kernel would drop does not count as used."""
    try:
        ceiling = int((root / limit).read_text())  # version 2 says "max" for none: ValueError
        used = int((root / usage).read_text())
        lines = (root / stat).read_text().splitlines()
        cached = sum(int(v) for k, v in (line.split() for line in lines) if k == reclaim)
    except (OSError, ValueError):
        return None
    return ceiling - used + cached
