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
    n = len(schedule)
    rules = Dispatcher(accelerators=len(accelerators))
    device = np.zeros(n, np.int16)
    chance: dict[int, float] = {}
    waits_for = list(range(len(accelerators)))  # accelerators that are idle
    start_s, finish_s = schedule.arrival_s.copy(), schedule.arrival_s.copy()
    worker = np.full(n, -1)
    arrivals, sizes = schedule.arrival_s.tolist(), schedule.size.tolist()
    idle = [(0.0, w) for w in range(workers)]  # since when, and who
    busy: list[tuple[float, int, list[tuple[int, int, int]]]] = []  # until when, who, at what
    trace: list[tuple[int, int, int, int, float, float]] = []
    row = 0
    while row < n or busy:
        now = min(arrivals[row] if row < n else math.inf, busy[0][0] if busy else math.inf)
        while busy and busy[0][0] == now:
            _, mine, slices = heapq.heappop(busy)
            if mine < workers:
                heapq.heappush(idle, (now, mine))
            else:
                waits_for.append(mine - workers)
            for query, lo, hi in slices:
                if rules.finish(query, hi - lo):
                    finish_s[query], worker[query] = now, mine if mine < workers else -1
        while row < n and arrivals[row] == now:
            if sizes[row]:
                rules.add(row, sizes[row], policy)
                if accelerators and offloads(policy, sizes[row]):
                    chance[row] = float(draws[len(chance)])
            row += 1
        for mine in list(waits_for):
            if slices := rules.pull_offloaded(mine, now):
                waits_for.remove(mine)
                items = sum(hi for _, _, hi in slices)
                until = now + drawn_s(accelerators[mine], items, chance[slices[0][0]])
                heapq.heappush(busy, (until, workers + mine, slices))
                for query, lo, hi in slices:
                    start_s[query], device[query] = now, mine + 1
                    trace.append((query, lo, hi, workers + mine, now, until))
        while idle and (slices := rules.pull(idle[0][1], now, len(idle))):
            since, mine = heapq.heappop(idle)
            items = sum(hi - lo for _, lo, hi in slices)
            begun = sum(lo == 0 for _, lo, _ in slices)
            until = now + cost_s(tables, items, begun, workers - len(idle), now, now - since, rng)
            heapq.heappush(busy, (until, mine, slices))
            for query, lo, hi in slices:
                start_s[query] = now if lo == 0 else start_s[query]
                trace.append((query, lo, hi, mine, now, until))
    trace.sort(key=lambda request: request[-1])
    columns = zip(*trace, strict=True) if trace else [()] * 6
    names = ("query", "lo", "hi", "worker", "start_s", "finish_s")
    records = Records.from_columns({
        "arrival_s": schedule.arrival_s, "start_s": start_s, "finish_s": finish_s,
        "size": schedule.size, "worker": worker, "status": np.full(n, Status.OK), "device": device,
    })  # fmt: skip
    return records, Requests.from_columns(dict(zip(names, columns, strict=True)))


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
