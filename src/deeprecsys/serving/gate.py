"""How many gRPC messages may be received at once: what is on its way is not counted yet.

gRPC says how long a message is only when it is whole, so the gate counts messages instead of
bytes. Connections take turns, and none has more than half of the places; who holds one for long
while others wait loses it.

A message becomes bytes in the event loop, in one piece: 60 MB stop it for 20 ms, and nobody can cut
that. So whoever sent a long one waits before its next, in proportion. In the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from deeprecsys.protocol.reasons import Reason
from deeprecsys.serving.bounds import Bounds, over
from deeprecsys.serving.dataplane import clock

_LEASE_S = 0.25  # a message that takes longer makes room for those that wait
_LONG_BYTES, _BYTES_A_S = 8 << 20, 64 << 20  # of one client's long messages: 2 % of the loop


class Gate:
    """`async with gate.place(peer, client): read`, then `gate.came(client, bytes)`. places: as many
    of the longest messages as are a quarter of the bytes that may wait."""

    def __init__(self, bounds: Bounds, places: int | None = None) -> None:
        self._places = places or max(1, bounds.waiting_bytes // bounds.body_bytes // 4)
        self._most = (self._places + 1) // 2  # of one connection
        self._body_s = bounds.body_s
        self._reading: dict[_Place, None] = {}  # by age
        self._held: dict[str, int] = {}  # places, by connection
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # by connection, in turn
        self._rests_s: dict[str, float] = {}  # until when each client does

    @asynccontextmanager
    async def place(self, peer: str, client: str) -> AsyncIterator[None]:
        """Refusal where the message takes too long. client: of whom peer is one connection."""
        while True:
            while (rest_s := self._rest_s(client)) > 0:
                await asyncio.sleep(rest_s)
            if len(self._reading) < self._places and self._held.get(peer, 0) < self._most:
                break
            await self._turn(peer)
            if self._rest_s(client) <= 0:
                break
            self._admit()  # it waits again, and its turn is the next one's
        place = _Place(peer)
        self._take(place)
        late = place.loop.call_later(self._body_s, place.end, "body-s")
        try:
            yield
        except asyncio.CancelledError:
            if not place.ended:
                raise
            message = "the message did not come in time"
            raise over(Reason.SLOW, message, place.ended) from None
        finally:
            late.cancel()
            self._leave(place)

    def came(self, client: str, size: int) -> None:
        """A message of so many bytes; said before its place is left."""
        if size > _LONG_BYTES:
            now_s = clock()
            self._rests_s = {who: until for who, until in self._rests_s.items() if until > now_s}
            self._rests_s[client] = max(now_s, self._rests_s.get(client, now_s)) + size / _BYTES_A_S

    def _rest_s(self, client: str) -> float:
        return self._rests_s.get(client, 0.0) - clock()

    async def _turn(self, peer: str) -> None:
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.setdefault(peer, deque()).append(turn)
        lease = loop.call_later(_LEASE_S, self._evict)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._admit()  # it was this one's turn: the next one's
            raise
        finally:
            lease.cancel()

    def _take(self, place: _Place) -> None:
        self._reading[place] = None
        self._held[place.peer] = self._held.get(place.peer, 0) + 1

    def _leave(self, place: _Place) -> None:
        self._reading.pop(place, None)
        self._held[place.peer] -= 1
        if not self._held[place.peer]:
            del self._held[place.peer]
        self._admit()

    def _admit(self) -> None:
        """The next that waits, of the first connection in turn that may have one more."""
        if len(self._reading) >= self._places:
            return
        for peer, turns in list(self._waiting.items()):
            if self._held.get(peer, 0) >= self._most:
                continue
            del self._waiting[peer]
            while turns:
                turn = turns.popleft()
                if not turn.done():
                    if turns:
                        self._waiting[peer] = turns  # last now
                    turn.set_result(None)
                    return

    def _evict(self) -> None:
        now_s = clock()
        for place in self._reading:
            if now_s - place.began_s >= _LEASE_S:
                place.end("max-waiting-mb")
            return


class _Place:
    """A message that is being received, by the current task."""

    __slots__ = ("_task", "began_s", "ended", "loop", "peer")

    def __init__(self, peer: str) -> None:
        self.peer, self.began_s, self.ended = peer, clock(), ""
        self.loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()

    def end(self, option: str) -> None:
        if not self.ended and self._task is not None:
            self.ended = option
            self._task.cancel()


__all__ = ["Gate"]
