"""Threads for what would keep the event loop for long; short jobs do not wait behind long ones.

Daemons, so that none keeps a process from ending. Knows no queries. What waits is bounded by its
bytes (`bounds.Budget`).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

Job = Callable[[], None]


class Threads:
    """Two, which begin with their first job."""

    def __init__(self) -> None:
        self._queues: dict[bool, queue.SimpleQueue[Job]] = {}

    def submit(self, job: Job, *, long: bool = False) -> None:
        """From one thread. The job handles its own failures."""
        if long not in self._queues:
            self._queues[long] = queue.SimpleQueue()
            name = "long jobs" if long else "short jobs"
            threading.Thread(target=self._work, args=(long,), name=name, daemon=True).start()
        self._queues[long].put(job)

    def close(self) -> None:
        for jobs in self._queues.values():
            jobs.put(_end)

    def _work(self, long: bool) -> None:
        jobs = self._queues[long]
        while (job := jobs.get()) is not _end:
            job()


def _end() -> None:
    raise AssertionError("unreachable: it ends a thread")


__all__ = ["Threads"]
