"""Answers over gRPC that their clients do not read: gRPC keeps them as long as the client stays.

Nobody can take such a call back, so what is bounded is what is handed over: a connection that holds
some gets no more beyond a quarter of the whole, nor once the whole is full; one that holds none is
always answered. In the event loop's thread.
"""

from __future__ import annotations

from collections import Counter

from deeprecsys.protocol.reasons import Reason
from deeprecsys.serving.bounds import over


class Unread:
    """limit: of bytes, of all connections."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = Counter[str]()  # by connection
        self._sum = 0

    def add(self, peer: str, size: int) -> None:
        """An answer of so many bytes is handed over, until `remove`. Refusal: it may not be."""
        held = self._held[peer]
        if held and (held + size > self._limit // 4 or self._sum + size > self._limit):
            message = "overloaded: too many answers are not read"
            raise over(Reason.OVERLOADED, message, "max-unsent-mb")
        self._held[peer] += size
        self._sum += size

    def remove(self, peer: str, size: int) -> None:
        self._held[peer] -= size
        self._sum -= size
        if not self._held[peer]:
            del self._held[peer]


__all__ = ["Unread"]
