"""What a server holds at most and how long it waits, and the counting of bytes that follows.

Every bound is an option of `serve` (`docs/security.md` lists them); what is refused by one says
which, and is counted under its name. Knows no protocol.
"""

from __future__ import annotations

import ctypes
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deeprecsys.protocol.reasons import Reason, Refusal

if TYPE_CHECKING:
    from deeprecsys.serving.native import NativeHttp

_LONG_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Bounds:
    """body_bytes: of one request, also once decompressed. waiting_bytes: of the bodies of all
    that are not answered yet. unsent_bytes: of all answers that their clients do not read;
    pipe_bytes: of one connection's, beyond which its next request waits. calls: of gRPC, at once.
    client_qps: queries/s of one client (None: any).

    Seconds: head_s, body_s from the first byte of a request's head or body to its last; send_s for
    an answer to be read; idle_s between requests; drain_s in which a server that is to end still
    takes what comes.
    """

    body_bytes: int = 64 << 20
    waiting_bytes: int = 1 << 30
    connections: int = 4096
    unsent_bytes: int = 128 << 20
    pipe_bytes: int = 64 << 10
    calls: int = 1024
    candidates: int = 65_536
    client_qps: float | None = None
    head_s: float = 10.0
    body_s: float = 60.0
    send_s: float = 60.0
    idle_s: float = 75.0
    drain_s: float = 5.0


def over(reason: Reason, message: str, option: str) -> Refusal:
    """A refusal by the bound that this option sets."""
    return Refusal(reason, f"{message} (--{option})", option)


class Budget:
    """Bytes that may be held at once, by all requests; used from any thread."""

    def __init__(self, limit: int, option: str) -> None:
        self.limit, self._option = limit, option
        self.held = 0
        self.native: NativeHttp | None = None  # which holds some, too
        self._owed = False
        self._lock = threading.Lock()

    def hold(self) -> Hold:
        return Hold(self, self._lock)

    def owes(self) -> bool:
        """Were long bodies released since it was asked last, whose memory malloc may have kept?"""
        owed, self._owed = self._owed, False
        return owed

    @property
    def elsewhere(self) -> int:
        return self.native.held if self.native else 0

    def take(self, count: int) -> None:
        """Under the lock, as `release`."""
        self.held += count
        if self.native is not None:
            self.native.hold(self.held)

    def release(self, count: int) -> None:
        self.take(-count)
        self._owed = self._owed or count > _LONG_BYTES

    def refusal(self) -> Refusal:
        message = "overloaded: too many bytes wait already"
        return over(Reason.OVERLOADED, message, self._option)


class Hold:
    """What one request holds of a budget, until it is released; then it can hold no more."""

    __slots__ = ("_budget", "_lock", "_released", "bytes")

    def __init__(self, budget: Budget, lock: threading.Lock) -> None:
        self._budget, self._lock = budget, lock
        self.bytes = 0
        self._released = False

    def add(self, count: int) -> None:
        """So many bytes more are here. Refusal if that is more than may wait, or if whoever asked
        has gone."""
        budget = self._budget
        with self._lock:
            if self._released:
                raise Refusal(Reason.CANCELLED, "the client has gone")
            if budget.held + budget.elsewhere + count > budget.limit:
                raise budget.refusal()
            budget.take(count)
            self.bytes += count

    def release(self) -> None:
        with self._lock:
            self._budget.release(self.bytes)
            self.bytes, self._released = 0, True


def give_back() -> None:
    """Tells malloc to return what it keeps. An engine lets it keep what it frees, for the sake of
    its requests' tensors, which are of one size; of long bodies, which are not, that was 1.4 GB.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


__all__ = ["Bounds", "Budget", "Hold", "give_back", "over"]
