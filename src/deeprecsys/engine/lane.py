"""The two threads of one accelerator: one begins its requests, the other answers them in order.

Knows a device and what its owner (a `Group`) hands it; nothing of rules and queues. As many
requests as the device's `depth` are begun and not ended, so that it can copy one while it computes
another. The next is asked for only once there is room: what waits till then can still be joined.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol

from deeprecsys.engine.process import flush_denormals
from deeprecsys.runtimes import Device


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
        """The device failed: `next_offloaded` answers None from now on."""
        ...


class Lane:
    """Ends by itself once its owner has no more, or its device failed."""

    def __init__(self, owner: Owner, number: int, device: Device) -> None:
        self._owner, self._number, self.device = owner, number, device
        self.gate = threading.Semaphore(0)  # opened when there may be something to do
        self._room = threading.Semaphore(device.depth)
        self._begun: SimpleQueue[tuple[Any, Any] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            for work, name in (
                (self._begin, f"accelerator-{number}-begin"),
                (self._end, f"accelerator-{number}-end"),
            )
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            flush_denormals()
            self.device.enter_thread()
            work()
        except BaseException as error:
            self._owner.lose(self._number, error)
            self.gate.release()
            self._room.release()
        finally:
            self._begun.put(None)

    def _begin(self) -> None:
        while True:
            self._room.acquire()
            while not (request := self._owner.next_offloaded(self._number)):
                if request is None:
                    return
                self.gate.acquire()
            self._begun.put((request, self._owner.begin_offloaded(self._number, request)))

    def _end(self) -> None:
        while (begun := self._begun.get()) is not None:
            request, ticket = begun
            self.device.end(ticket)
            self._owner.done_offloaded(self._number, request)
            self._room.release()
