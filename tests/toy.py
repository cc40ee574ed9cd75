"""A machine in virtual time that obeys the pure dispatcher: truth for tests of what is above it."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

import numpy as np

from deeprecsys.core import Facts, Policy, Records, Schedule, Status, System, Watch
from deeprecsys.rules.dispatch import Dispatcher
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
        slow = 1.0 / (1.0 - self.disturbance())
        rng = np.random.default_rng(len(self.runs))
        rules = Dispatcher()
        n = len(schedule)
        start, finish = np.full(n, math.nan), np.full(n, math.nan)
        worker = np.full(n, -1)
        events: list[tuple[float, int, int, int]] = []  # finish, worker, query, items
        idle = list(range(self.workers))
        arrivals = schedule.arrival_s.tolist()
        sizes = schedule.size.tolist()
        row, look_s, stopped_s, began_s = 0, 0.1, math.inf, self.now_s

        def records(rows: int, now: float) -> Records:
            done = finish[:rows] <= now
            return Records.from_columns(
                {
                    "arrival_s": schedule.arrival_s[:rows],
                    "start_s": start[:rows],
                    "finish_s": np.where(done, finish[:rows], math.nan),
                    "size": schedule.size[:rows],
                    "worker": worker[:rows],
                    "status": np.where(done, Status.OK, Status.PENDING),
                }
            )

        while row < n or events:
            arrives = arrivals[row] if row < n else math.inf
            now = min(arrives, events[0][0] if events else math.inf)
            if watch is not None and now >= look_s:
                look_s = now + 0.1
                self.now_s = began_s + now
                if watch(records(row, now), now):
                    stopped_s = now
                    break
            if arrives <= now:
                rules.add(row, sizes[row], policy)
                row += 1
            else:
                _, free, query, items = heapq.heappop(events)
                idle.append(free)
                if rules.finish(query, items):
                    finish[query], worker[query] = now, free
            while idle and (slices := rules.pull(idle[-1], now)):
                free = idle.pop()
                for query, lo, hi in slices:
                    if lo == 0:
                        start[query] = now
                    seconds = slow * self.service_s(hi - lo)
                    if self.noise:
                        seconds *= rng.lognormal(0.0, self.noise)
                    heapq.heappush(events, (now + seconds, free, query, hi - lo))
        ended_s = float(np.nanmax(finish, initial=0.0)) if math.isinf(stopped_s) else stopped_s
        self.now_s = began_s + ended_s
        partial = records(row, stopped_s)
        status = np.where(partial.status == Status.PENDING, Status.CANCELLED, partial.status)
        columns = {name: getattr(partial, name) for name in ("arrival_s", "start_s", "finish_s")}
        return Records.from_columns(
            columns | {"size": partial.size, "worker": partial.worker, "status": status}
        )
