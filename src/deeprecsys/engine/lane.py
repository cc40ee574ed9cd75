"""The threads of one accelerator: one begins its requests, the other answers them in order.

Knows a device and what its owner (`lanes`) hands it; nothing of rules and queues. As many
requests as the device's `depth` are begun and not ended, so that it can copy one while it computes
another. The next is asked for only once there is room: what waits till then can still be joined.
A device that failed is tried again after a while, with a request of ours, and comes back once that
succeeds; one that hangs keeps its threads until it lets them go.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol

from deeprecsys.engine.process import flush_denormals
from deeprecsys.runtimes import Device

# After a failure the device is tried again after so long, and after twice that each time it fails
# before it has done so many requests.
FIRST_PAUSE_S, MOST_PAUSE_S = 0.1, 60.0
_SOUND_AFTER = 100


class Owner(Protocol):
    """What a lane asks, from its threads."""

    def next_offloaded(self, lane: int) -> Any:
        """A request to begin; empty: none waits, so sleep at the gate; None: go home."""
        ...

    def begin_offloaded(self, lane: int, request: Any) -> Any:
        """Hands it to the device; a ticket."""
        ...

    def done_offloaded(self, lane: int, request: Any) -> None: ...

    def lose(self, lane: int, error: BaseException) -> None:
        """The device failed: `next_offloaded` answers None until it is `found`."""
        ...

    def is_lost(self, lane: int) -> bool: ...
    def found(self, lane: int) -> None: ...


class Lane:
    """Ends by itself once its owner has no more. probe: a small request, begun and ended."""

    def __init__(
        self, owner: Owner, number: int, device: Device, probe: Callable[[Device], None]
    ) -> None:
        self._owner, self._number, self.device, self._probe = owner, number, device, probe
        self.gate = threading.Semaphore(0)  # opened when there may be something to do
        self._ending = threading.Event()
        self._shift = _Shift(self)
        name = f"accelerator-{number}"
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)
        self.start = self._thread.start

    def interrupt(self) -> None:
        """The device is lost, or there will be no more: who sleeps looks again."""
        self.gate.release()
        self._shift.room.release()

    def end(self) -> None:
        """Once what waits is done, it closes the device, and ends."""
        self._ending.set()
        self.interrupt()

    def join(self, timeout_s: float) -> bool:
        """Has it ended?"""
        self._thread.join(max(0.0, timeout_s))
        return not self._thread.is_alive()

    def _live(self) -> None:
        pause_s = FIRST_PAUSE_S / 2
        while self._shift_ends_in_loss():
            sound = self._shift.done >= _SOUND_AFTER
            pause_s = FIRST_PAUSE_S if sound else min(2 * pause_s, MOST_PAUSE_S)
            if not self._comes_back(pause_s):
                return
            self._shift = _Shift(self)
            self._owner.found(self._number)
        self.device.close()

    def _shift_ends_in_loss(self) -> bool:
        self._shift.work()
        return self._owner.is_lost(self._number)

    def _comes_back(self, pause_s: float) -> bool:
        """Waits until it does; False: the engine ends first."""
        while not self._ending.wait(pause_s):
            try:
                self._probe(self.device)
            except Exception as error:
                self._owner.lose(self._number, error)
                pause_s = min(2 * pause_s, MOST_PAUSE_S)
            else:
                return True
        return False

    def next(self) -> Any:
        return self._owner.next_offloaded(self._number)

    def begin(self, request: Any) -> Any:
        return self._owner.begin_offloaded(self._number, request)

    def finish(self, request: Any, ticket: Any) -> None:
        self.device.end(ticket)
        self._owner.done_offloaded(self._number, request)

    def fail(self, error: BaseException) -> None:
        self._owner.lose(self._number, error)
        self.interrupt()


class _Shift:
    """While the device is there: until it fails, or nothing is left to do. done: requests."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self.room = threading.Semaphore(lane.device.depth)
        self._begun: SimpleQueue[tuple[Any, Any] | None] = SimpleQueue()
        self.done = 0

    def work(self) -> None:
        ender = threading.Thread(
            target=self._guarded, args=(self._end,), name="accelerator-end", daemon=True
        )
        ender.start()
        self._guarded(self._begin)
        self._begun.put(None)
        ender.join()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            flush_denormals()
            self._lane.device.enter_thread()
            work()
        except BaseException as error:
            self._lane.fail(error)

    def _begin(self) -> None:
        while True:
            self.room.acquire()
            while not (request := self._lane.next()):
                if request is None:
                    return
                self._lane.gate.acquire()
            self._begun.put((request, self._lane.begin(request)))

    def _end(self) -> None:
        while (begun := self._begun.get()) is not None:
            self._lane.finish(*begun)
            self.done += 1
            self.room.release()
