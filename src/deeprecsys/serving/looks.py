"""When what is read now came: a busy loop looks at its sockets late, and clients wait meanwhile.

The loop reads what it finds ready, one after the other, and looks again. What it finds at once came
while it was busy with what it had found before, so it counts from that look on; what it waited for
came just now. In the event loop's thread.
"""

from __future__ import annotations

import asyncio

from deeprecsys.serving.dataplane import clock

_AT_ONCE_S = 1e-3  # a look that waits for less has found something


class Looks:
    """late: what is read now was found at once. lag_s: the longest that the loop was busy between
    two looks, or that something stood in a queue before it, since it was asked last."""

    def __init__(self) -> None:
        self._reading = False  # what the last look found
        self.late = False
        self._began_s = self._ended_s = self._came_s = -1.0
        self._lag_s = 0.0

    def came_s(self, loop: asyncio.AbstractEventLoop, now_s: float) -> float:
        """The earliest that what is read now can have come."""
        if not self._reading:
            self._reading = True
            self.late = late = now_s - self._ended_s < _AT_ONCE_S
            self._came_s, self._began_s = (self._began_s if late else now_s), now_s
            loop.call_soon(self._ended)  # once all that was found is read
        return self._came_s

    def waited(self, seconds: float) -> None:
        """So long stood what is read now in a queue that the loop does not see."""
        self._lag_s = max(self._lag_s, seconds)

    def lag_s(self) -> float:
        lag_s, self._lag_s = self._lag_s, 0.0
        return lag_s

    def _ended(self) -> None:
        self._reading = False
        self._ended_s = clock()
        self._lag_s = max(self._lag_s, self._ended_s - self._began_s)


__all__ = ["Looks"]
