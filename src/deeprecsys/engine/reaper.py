"""What is due while every worker is busy (deadlines, devices that hang): one thread that sleeps
until the next is."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from deeprecsys.engine.ledger import clock


class Reaper:
    """Expires deadlines on time while every worker is busy; a thread only once it is needed."""

    def __init__(self, expire: Callable[[float], float]) -> None:
        self._expire = expire
        self._wake = threading.Event()
        self._due_s = math.inf
        self._stopped = False
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def watch(self, due_s: float) -> None:
        """Something is due then, which `expire` will see from now on."""
        if self._thread is None:
            self._start()
        if due_s < self._due_s:
            self._wake.set()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)
                self._thread.start()

    def stop(self, within_s: float) -> None:
        self._stopped = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(max(0.0, within_s))
        # Group and reaper know each other; a closed engine's model should be freed at once.
        self._expire = lambda now: math.inf

    def _run(self) -> None:
        while not self._stopped:
            self._wake.clear()
            # What is added while it looks (the owner of an expired query may ask again at once)
            # is compared with no time at all, and so ends the sleep before it has begun.
            self._due_s = math.inf
            self._due_s = self._expire(clock())
            wait_s = min(self._due_s - clock(), 60.0)
            if wait_s > 0:
                self._wake.wait(wait_s)
