"""File descriptors: every connection is one, and a server that has none left cannot even say so.

The event loop then closes what comes, without an answer. So a connection that takes one of the
last few is refused while it can still be told. Knows no protocol.
"""

from __future__ import annotations

import resource
from contextlib import suppress

_MOST_SPARE = 64


def allow_many() -> None:
    """Raises the process's limit as far as it may: the usual 1,024 is a soft one."""
    with suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def spare() -> int:
    """How many are kept to refuse connections with: a quarter of few, 64 of many."""
    return min(_MOST_SPARE, limit() // 4)


def left(number: int) -> int:
    """How many there are beyond this one, which was just opened: a new one is the lowest free."""
    return limit() - 1 - number


def backlog(wanted: int) -> int:
    """Connections that may come at once: no more than can be refused. Others' kernels wait."""
    return min(wanted, max(1, spare() // 2)) if limit() < 2 * wanted else wanted


__all__ = ["allow_many", "backlog", "left", "limit", "spare"]
