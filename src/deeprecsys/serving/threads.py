"""Threads for what would keep the event loop for long; short jobs do not wait behind long ones.

Clients take turns, and one whose job computed for long rests before its next, in proportion: so
much of a core that it has of each thread at most, and the others' queries have the rest. Daemons,
so that none keeps a process from ending. Knows no queries. What waits is bounded by its bytes
(`bounds.Budget`).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

Job = Callable[[], None]
_LONG_S, _REST = 0.02, 3.0  # a job of so much of a core's time; times that, its client rests


class Threads:
    """Two, which begin with their first job."""

    def __init__(self) -> None:
        self._lines: dict[bool, _Line] = {}

    def submit(self, job: Job, client: str, *, long: bool = False) -> None:
        """From one thread. The job handles its own failures."""
        if (line := self._lines.get(long)) is None:
            line = self._lines[long] = _Line()
            name = "long jobs" if long else "short jobs"
            threading.Thread(target=line.work, name=name, daemon=True).start()
        line.add(job, client)

    def close(self) -> None:
        """What waits is not done."""
        for line in self._lines.values():
            line.close()


class _Line:
    """Jobs of one thread."""

    def __init__(self) -> None:
        self._jobs: dict[str, deque[Job]] = {}  # by client, in turn
        self._rests_s: dict[str, float] = {}  # until when each client does
        self._closed = False
        self._changed = threading.Condition()

    def add(self, job: Job, client: str) -> None:
        with self._changed:
            self._jobs.setdefault(client, deque()).append(job)
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def work(self) -> None:
        while (found := self._next()) is not None:
            client, job = found
            began_s = time.thread_time()
            job()
            took_s = time.thread_time() - began_s
            del found, job  # and the body that it read
            if took_s > _LONG_S:
                self._rests_s[client] = time.monotonic() + _REST * took_s

    def _next(self) -> tuple[str, Job] | None:
        with self._changed:
            while not self._closed:
                now_s = time.monotonic()
                self._rests_s = {who: s for who, s in self._rests_s.items() if s > now_s}
                for client in self._jobs:
                    if client not in self._rests_s:
                        return client, self._taken(client)
                rests_s = [self._rests_s[client] - now_s for client in self._jobs]
                self._changed.wait(min(rests_s, default=None))
            return None

    def _taken(self, client: str) -> Job:
        """Its next job; its others come after everybody else's."""
        jobs = self._jobs.pop(client)
        job = jobs.popleft()
        if jobs:
            self._jobs[client] = jobs
        return job


__all__ = ["Threads"]
