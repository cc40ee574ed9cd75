"""The machine as the dispatcher's own rules run it, event by event: slow, and the specification.

`kernels.py` must give the same records, draw for draw. Also the one that keeps every request, for
traces. Each instant is settled in one order: what finishes, what arrives, who pulls; the worker
that has been free longest pulls first.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from deeprecsys.core import FloatArray, Policy, Records, Requests, Schedule, Status
from deeprecsys.machines.service_time import Tables, drawn_s
from deeprecsys.rules.dispatch import Dispatcher, offloads

_NO_DRAWS = np.zeros(0)

Slice = tuple[int, int, int]  # query, first item, item after the last


def replay(
    schedule: Schedule,
    policy: Policy,
    workers: int,
    tables: Tables,
    rng: np.random.Generator,
    accelerators: Sequence[Tables] = (),
    draws: FloatArray = _NO_DRAWS,
) -> tuple[Records, Requests]:
    """Every query and every request of a run from an idle machine.

    draws: the chance of each query that is offloaded, in order of arrival. Requests of an
    accelerator stand as of workers from `workers` on.
    """
    run = _Replay(schedule, policy, workers, tables, rng, accelerators, draws)
    while (now := run.next_s()) < math.inf:
        run.finish(now)
        run.arrive(now)
        run.offload(now)
        run.pull(now)
    return run.records(), run.requests()


class _Replay:
    """A run under way: who is idle, who is busy until when, and what is known of each query."""

    def __init__(
        self,
        schedule: Schedule,
        policy: Policy,
        workers: int,
        tables: Tables,
        rng: np.random.Generator,
        accelerators: Sequence[Tables],
        draws: FloatArray,
    ) -> None:
        n = len(schedule)
        self.schedule, self.policy, self.workers = schedule, policy, workers
        self.tables, self.rng = tables, rng
        self.accelerators, self.draws = accelerators, draws
        self.rules = Dispatcher(accelerators=len(accelerators))
        self.arrivals, self.sizes = schedule.arrival_s.tolist(), schedule.size.tolist()
        self.row = 0  # the next query
        self.chance: dict[int, float] = {}  # of queries that are offloaded
        self.start_s, self.finish_s = schedule.arrival_s.copy(), schedule.arrival_s.copy()
        self.worker, self.device = np.full(n, -1), np.zeros(n, np.int16)
        self.waits_for = list(range(len(accelerators)))  # accelerators that are idle
        self.idle = [(0.0, w) for w in range(workers)]  # since when, and who
        self.busy: list[tuple[float, int, list[Slice]]] = []  # until when, who, at what
        self.trace: list[tuple[int, int, int, int, float, float]] = []

    def next_s(self) -> float:
        """When something happens next; infinity once nothing does."""
        arrival = self.arrivals[self.row] if self.row < len(self.arrivals) else math.inf
        return min(arrival, self.busy[0][0] if self.busy else math.inf)

    def finish(self, now: float) -> None:
        while self.busy and self.busy[0][0] == now:
            _, mine, slices = heapq.heappop(self.busy)
            on_cores = mine < self.workers
            if on_cores:
                heapq.heappush(self.idle, (now, mine))
            else:
                self.waits_for.append(mine - self.workers)
            for query, lo, hi in slices:
                if self.rules.finish(query, hi - lo):
                    self.finish_s[query], self.worker[query] = now, mine if on_cores else -1

    def arrive(self, now: float) -> None:
        while self.row < len(self.arrivals) and self.arrivals[self.row] == now:
            size = self.sizes[self.row]
            if size:
                self.rules.add(self.row, size, self.policy)
                if self.accelerators and offloads(self.policy, size):
                    self.chance[self.row] = float(self.draws[len(self.chance)])
            self.row += 1

    def offload(self, now: float) -> None:
        for mine in list(self.waits_for):
            if slices := self.rules.pull_offloaded(mine, now):
                self.waits_for.remove(mine)
                items, chance = sum(hi for _, _, hi in slices), self.chance[slices[0][0]]
                self._begin(now, drawn_s(self.accelerators[mine], items, chance),
                            self.workers + mine, slices)  # fmt: skip
                for query, _, _ in slices:
                    self.device[query] = mine + 1

    def pull(self, now: float) -> None:
        while self.idle and (slices := self.rules.pull(self.idle[0][1], now, len(self.idle))):
            since, mine = heapq.heappop(self.idle)
            items = sum(hi - lo for _, lo, hi in slices)
            begun = sum(lo == 0 for _, lo, _ in slices)
            busy = self.workers - len(self.idle)
            cost = cost_s(self.tables, items, begun, busy, now, now - since, self.rng)
            self._begin(now, cost, mine, slices)

    def _begin(self, now: float, cost: float, mine: int, slices: list[Slice]) -> None:
        """A request, by a worker or by an accelerator."""
        heapq.heappush(self.busy, (now + cost, mine, slices))
        for query, lo, hi in slices:
            self.start_s[query] = now if lo == 0 else self.start_s[query]
            self.trace.append((query, lo, hi, mine, now, now + cost))

    def records(self) -> Records:
        return Records.from_columns({
            "arrival_s": self.schedule.arrival_s, "start_s": self.start_s,
            "finish_s": self.finish_s, "size": self.schedule.size, "worker": self.worker,
            "status": np.full(len(self.schedule), Status.OK), "device": self.device,
        })  # fmt: skip

    def requests(self) -> Requests:
        trace = sorted(self.trace, key=lambda request: request[-1])
        columns = zip(*trace, strict=True) if trace else [()] * 6
        names = ("query", "lo", "hi", "worker", "start_s", "finish_s")
        return Requests.from_columns(dict(zip(names, columns, strict=True)))


def cost_s(
    tables: Tables, items: int, begun: int, busy: int, now: float, idle: float, rng: Any
) -> float:
    """Seconds of a request that begins `begun` queries as the `busy`-th at work, on a worker
    that was idle so long."""
    at = float(tables.level[busy])
    mean_s, row = float(tables.mean_s[0, items]), 0
    if len(tables.mean_s) > 1:
        below = min(int(at), len(tables.mean_s) - 2)
        low, high = tables.mean_s[below : below + 2, items].tolist()
        mean_s, row = low + (at - below) * (high - low), below + (at - below >= 0.5)
    quantiles = tables.spread.shape[2]
    if tables.exponential:
        mean_s *= rng.standard_exponential()
    elif quantiles > 1:
        mean_s *= float(tables.spread[row, tables.group[items], int(rng.random() * quantiles)])
    extra_s = float(tables.extra_s[np.searchsorted(tables.idle_s, idle, "right") - 1])
    seconds = mean_s + (extra_s + begun * tables.query_s)
    if len(tables.weather) > 1:
        seconds *= float(tables.weather[int(now / tables.weather_step_s) % len(tables.weather)])
    return seconds
