"""A machine in virtual time, first come, first served: truth for tests of what is above it."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable

import numpy as np

from deeprecsys.core import (
    Facts,
    FloatArray,
    IntArray,
    Policy,
    Records,
    Schedule,
    Status,
    System,
    Watch,
)
from deeprecsys.tuning import Clock


class ToyMachine:
    """`workers` workers; a request of n items takes `service_s(n)`, times lognormal noise."""

    def __init__(
        self,
        service_s: Callable[[float], float],
        workers: int = 2,
        noise: float = 0.0,
        hint: bool = True,
        disturbed: Callable[[int], float] = lambda run: 0.0,
        twin: System | None = None,
    ) -> None:
        self.service_s, self.workers, self.noise, self.hint = service_s, workers, noise, hint
        self.runs: list[tuple[float, Policy]] = []
        self.now_s = 0.0
        self._disturbed = disturbed
        self.twin = twin

    def clock(self) -> Clock:
        """Virtual: a run takes as long as its records say."""
        return Clock(lambda: self.now_s, self._pause)

    def _pause(self, seconds: float) -> None:
        self.now_s += seconds

    def facts(self) -> Facts:
        hint = np.vectorize(self.service_s, otypes=[float]) if self.hint else None
        return Facts(workers=self.workers, service_s=hint, twin=self.twin)

    def disturbance(self) -> float:
        return self._disturbed(len(self.runs))

    def run(self, schedule: Schedule, policy: Policy, *, watch: Watch | None = None) -> Records:
        rate = len(schedule) / schedule.duration_s if len(schedule) else 0.0
        self.runs.append((rate, policy))
        start, finish, worker = self._serve(schedule, policy)
        arrival, began_s = schedule.arrival_s, self.now_s

        def records(now: float, unfinished: Status) -> Records:
            rows = int(np.searchsorted(arrival, now, "right"))
            done = finish[:rows] <= now
            return Records.from_columns(
                {
                    "arrival_s": arrival[:rows],
                    "start_s": np.where(start[:rows] <= now, start[:rows], math.nan),
                    "finish_s": np.where(done, finish[:rows], math.nan),
                    "size": schedule.size[:rows],
                    "worker": np.where(done, worker[:rows], -1),
                    "status": np.where(done, Status.OK, unfinished),
                }
            )

        # A watch looks when something happens, at most every 0.1 s.
        events = np.sort(np.concatenate([arrival, finish])) if watch is not None else arrival[:0]
        look = np.searchsorted(events, 0.1)
        while look < len(events):
            now = float(events[look])
            self.now_s = began_s + now
            if watch is not None and watch(records(now, Status.PENDING), now):
                return records(now, Status.CANCELLED)
            look = np.searchsorted(events, now + 0.1)
        self.now_s = began_s + finish.max(initial=0.0)
        return records(math.inf, Status.CANCELLED)

    def _serve(self, schedule: Schedule, policy: Policy) -> tuple[FloatArray, FloatArray, IntArray]:
        """Start and finish of each query, and who finished it: first come, first served."""
        assert not policy.adaptive
        batch, size = policy.batch_size, schedule.size
        counts = -(-size // batch)
        items = np.full(counts.sum(), batch)
        items[np.cumsum(counts) - 1] = size - (counts - 1) * batch
        known, which = np.unique(items, return_inverse=True)
        seconds = np.array([self.service_s(int(n)) for n in known])[which]
        if self.noise:
            seconds *= np.random.default_rng(len(self.runs)).lognormal(0.0, self.noise, len(items))
        seconds /= 1.0 - self.disturbance()
        start, finish = np.full(len(size), math.nan), np.zeros(len(size))
        worker = np.full(len(size), -1)
        free = [(0.0, who) for who in range(self.workers)]
        requests = iter(seconds.tolist())
        for row, (arrives, cuts) in enumerate(
            zip(schedule.arrival_s.tolist(), counts.tolist(), strict=True)
        ):
            begins, ends, last = math.inf, 0.0, -1
            for request_s in itertools.islice(requests, cuts):
                idle_s, who = free[0]
                now = max(arrives, idle_s)
                begins = min(begins, now)
                if now + request_s > ends:
                    ends, last = now + request_s, who
                heapq.heapreplace(free, (now + request_s, who))
            start[row], finish[row], worker[row] = begins, ends, last
        return start, finish, worker
