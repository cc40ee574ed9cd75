"""When a gRPC call came: they are handed over one by one, and the others stand in gRPC's own queue.

Under load that queue is where calls wait, for seconds, while everything behind it looks quick. How
many stand there gRPC tells (channelz), for a third of a millisecond each time, so it is asked every
few milliseconds, and only where calls are found at once: call number n had come at the first time
that n had come. What gRPC has ended it says at once, and our loop learns a little later, so a call
that was answered just now counts as ended; one whose client does not read its answer has not, for
as long as it likes. Calls that end in its queue never end in its books (the client has
gone, or sent too much metadata), so what seems to wait where no call came for a while is what was
lost so. In the event loop's thread.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable

from deeprecsys.serving.looks import Looks

_ASK_S = 5e-3
_EASE_S = 0.02  # a loop at ease that took no call for so long finds none in the queue
_READ_S = 0.2  # an answer that was not read by then will not be soon


class GrpcQueue:
    """waiting: how many calls were begun by clients and are neither taken nor ended, beside so many
    that are open. open: taken, and not answered. answered: by the time, not yet ended by gRPC."""

    def __init__(self, looks: Looks, waiting: Callable[[int], int]) -> None:
        self._looks, self._waiting = looks, waiting
        self._taken = self._lost = 0
        self._entered_s = -1.0
        self.open = set[object]()
        self.answered: dict[object, float] = {}
        self._asked_s = -1.0
        self._queued: deque[tuple[int, float]] = deque()  # the last call that had come, and when

    def enter(self, call: object, loop: asyncio.AbstractEventLoop, now_s: float) -> float:
        """It is taken, and open until `leave`: the earliest that it can have come."""
        looked_s = self._looks.came_s(loop, now_s)
        self._taken += 1
        self.open.add(call)
        ease = not self._looks.late and now_s - self._entered_s > _EASE_S
        self._entered_s, last = now_s, False  # last: no other stands behind it
        if (self._looks.late or self._queued) and now_s - self._asked_s >= _ASK_S:
            self._asked_s = now_s
            begun = self.waiting(now_s)
            self._lost = begun if ease else min(self._lost, begun)
            waiting = begun - self._lost
            if not (last := waiting == 0):
                self._queued.append((self._taken + waiting, looked_s))
        while self._queued and (self._queued[0][0] < self._taken or ease):
            self._queued.popleft()
        came_s = min(looked_s, self._queued[0][1]) if self._queued else looked_s
        if last:
            self._queued.clear()
        self._looks.waited(now_s - came_s)
        return came_s

    def leave(self, call: object, now_s: float) -> None:
        """It is answered."""
        if call in self.open:
            self.open.discard(call)
            self.answered[call] = now_s

    def ended(self, call: object) -> None:
        """gRPC has ended it."""
        self.open.discard(call)
        self.answered.pop(call, None)

    def waiting(self, now_s: float) -> int:
        """How many calls stand in gRPC's queue, or were lost."""
        unread = sum(now_s - at_s > _READ_S for at_s in self.answered.values())
        return self._waiting(len(self.open) + unread)

    def looked(self, loop: asyncio.AbstractEventLoop, now_s: float) -> None:
        """A message is taken: what is done with it is done before the loop looks again."""
        self._looks.came_s(loop, now_s)


def newest_server() -> Callable[[int], int]:
    """`GrpcQueue.waiting` of the server that began last here; none, where gRPC cannot tell."""
    try:
        from grpc._cython import cygrpc  # what the package grpcio-channelz asks, too

        number, end = 0, False
        while not end:
            page = json.loads(cygrpc.channelz_get_servers(number + 1 if number else 0))
            number = max([number, *(int(s["ref"]["serverId"]) for s in page.get("server", ()))])
            end = page.get("end", True)
    except (ImportError, AttributeError, KeyError, ValueError):
        return lambda _: 0

    def waiting(open_: int) -> int:
        data = json.loads(cygrpc.channelz_get_server(number))["server"]["data"]
        begun, *ended = (
            int(data.get(name, 0)) for name in ("callsStarted", "callsSucceeded", "callsFailed")
        )
        return begun - sum(ended) - open_

    return waiting


__all__ = ["GrpcQueue", "newest_server"]
