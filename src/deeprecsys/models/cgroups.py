"""The control groups of this process and those above them, whose limits hold for it as well.

Knows where they are, not what they say: `memory` reads what they leave of the memory,
`engine.quotas` what of the processor.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_MOUNT = "sys/fs/cgroup"
# Where version 1 mounts a controller, with which it may share a folder; version 2 has one tree.
_MOUNTS = {
    "cpu": ("cpu", "cpu,cpuacct", "cpuacct,cpu"),
    "memory": ("memory",),
}
_UNIFIED = ("", "unified")


def folders(controller: str, root: Path = Path("/")) -> Iterator[tuple[int, Path]]:
    """Version and folder of each, the process's own first; whether it is there is not asked."""
    for version, group in sorted(_groups(controller, root)):
        # Where only the container's own part is mounted, the path may lead out of it.
        path = PurePosixPath(*(part for part in PurePosixPath(group).parts if part not in "/.."))
        for mount in _UNIFIED if version == 2 else _MOUNTS[controller]:
            for above in (path, *path.parents):
                yield version, root / _MOUNT / mount / above


def _groups(controller: str, root: Path) -> set[tuple[int, str]]:
    """Version and path of those that may limit this process; see cgroups(7)."""
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
        elif controller in controllers.split(","):
            found.add((1, path))
    return found
