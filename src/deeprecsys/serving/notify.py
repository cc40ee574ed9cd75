"""What systemd is told of a server: the protocol of sd_notify(3), without its library.

A message is lines of NAME=VALUE, one datagram to the socket that NOTIFY_SOCKET names; without
that variable nothing is sent. Knows no server: whoever runs one says when it takes queries, when it
reads its configuration again, when it ends, and once a second that it lives. What goes wrong is
logged once, and ends nothing.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Mapping

# systemd takes messages at once; where it does not, the event loop waits no longer than this.
_SEND_S = 0.1


def message(**said: object) -> bytes:
    """One NAME=VALUE a line. A line's end in a value becomes a blank: it would begin another."""
    lines = (f"{name}={' '.join(str(value).split())}" for name, value in said.items())
    return "\n".join(lines).encode(errors="replace")


def address(socket_name: str) -> str | None:
    """Where to send to: a path, or after "@" a name in the kernel's own list (an abstract socket);
    None for what is neither."""
    if socket_name.startswith("@"):
        return "\0" + socket_name[1:]
    return socket_name if socket_name.startswith("/") else None


def feed_s(environment: Mapping[str, str], pid: int) -> float | None:
    """How often the watchdog wants to hear that this process lives: half of the time after which
    it ends it. None: never, or it watches another process."""
    if environment.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    text = environment.get("WATCHDOG_USEC", "")
    limit_us = int(text) if text.isdecimal() else 0
    return limit_us / 2e6 or None


class Supervisor:
    """systemd, or nobody. `environment`: of this process, whose number is `pid`."""

    def __init__(
        self,
        environment: Mapping[str, str],
        pid: int,
        log: Callable[..., None] = lambda *_, **__: None,
    ) -> None:
        self.address = address(environment.get("NOTIFY_SOCKET", ""))
        self.feed_s = feed_s(environment, pid)
        self._log, self._failed = log, False
        self._fed_s = -math.inf

    def ready(self, status: str) -> None:
        """Queries are taken; also once a configuration was read again."""
        self._tell(READY=1, STATUS=status)

    def reloading(self, status: str) -> None:
        """The configuration is read again: `ready` must follow."""
        # On the clock that systemd compares with, which Python's is on Linux.
        self._tell(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000, STATUS=status)

    def stopping(self, status: str) -> None:
        self._tell(STOPPING=1, STATUS=status)

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self._tell(STATUS=status)

    def alive(self, now_s: float) -> None:
        """For who says so once a second: it is passed on as often as the watchdog needs it."""
        if self.feed_s is not None and now_s - self._fed_s >= self.feed_s:
            self._fed_s = now_s
            self._tell(WATCHDOG=1)

    def _tell(self, **said: object) -> None:
        if self.address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
                channel.settimeout(_SEND_S)
                channel.sendto(message(**said), self.address)
        except (OSError, ValueError) as error:  # ValueError: a name that no socket can have
            if not self._failed:
                self._failed = True
                self._log("systemd not told", what=next(iter(said)), why=str(error))


__all__ = ["Supervisor", "address", "feed_s", "message"]
