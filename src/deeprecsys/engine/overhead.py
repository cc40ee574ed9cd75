"""What a request costs beside its execution in a tight loop: taking its query, turning to it,
waking up, being cold; and how the machine's pace changes while it works.

A profile is measured back to back, and these are tenths of a millisecond that matter to small
requests. Estimated from traced runs at several loads, larger and smaller requests in turn: the same
queries in another number of requests. The simulator adds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from scipy.optimize import lsq_linear

from deeprecsys.core import EXACT, Execution, FloatArray, Policy, Records, Requests, Schedule
from deeprecsys.machines.service_time import (
    WEATHER_STEP_S,
    Overhead,
    Profile,
    ServiceTime,
    Tables,
    query_work_s,
)
from deeprecsys.workload import Workload

# Loads, and whether requests are of the batch size with the most items a second or a quarter of
# it: costs differ where caches overflow, so they are measured where the best policies are.
RUNS = ((0.3, 1), (0.8, 4), (0.55, 1), (0.9, 1), (0.5, 4))
# Idle times from which another cost is told apart: none at all, then about thirds of a decade.
EDGES_S = (0.0, 1e-6, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
_LEAST = 12  # requests, for a word on an idle time
_LEAST_WORK_S = 0.3 * WEATHER_STEP_S  # for a word on the pace of a stretch
# A live request may seem faster than the profile, which met a slower hour, by no more than this.
_MOST_FASTER = 0.1
_SEED = 77


class Traced(Protocol):
    """What is needed of an engine."""

    @property
    def workers(self) -> int: ...

    def traced_run(self, schedule: Schedule, policy: Policy) -> tuple[Records, Requests]: ...


@dataclass(frozen=True, slots=True)
class Costs:
    """Of requests, in one row each: when they began, how long their worker had been idle, what
    they cost and were expected to, and whether they began a query."""

    start_s: FloatArray
    idle_s: FloatArray
    cost_s: FloatArray
    expected_s: FloatArray
    first: FloatArray


def measure_overhead(
    engine: Traced,
    profile: Profile,
    *,
    budget_s: float,
    indices: str,
    execution: Execution = EXACT,
) -> Profile:
    """The profile with its `overhead`, from runs of `budget_s` together.

    execution: how the engine executes its requests.
    """
    law = ServiceTime.from_profile(profile, extrapolate=True)
    items, seconds = profile.mean_s(max(profile.busy_levels))
    best = int(items[np.argmax(items / seconds)])
    tables = law.tables(best, engine.workers)
    workload = Workload(indices=indices, seed=_SEED)
    found = []
    for load, part in RUNS:
        policy = Policy(max(1, best // part), execution=execution)
        work_s = query_work_s(law, workload.sample_sizes(1000), policy).mean()
        schedule = workload.schedule(
            rate_qps=load * engine.workers / float(work_s), duration_s=budget_s / len(RUNS)
        )
        if len(schedule):
            records, requests = engine.traced_run(schedule, policy)
            found.append(costs(records, requests, tables, engine.workers))
    return profile.with_overhead(estimate(found)) if found else profile


def costs(records: Records, requests: Requests, tables: Tables, workers: int) -> Costs:
    """Of each request that was not its worker's first.

    A worker is idle until the query it takes was handed over; what passes from then, or from the
    end of its last request, to the end of this one is the cost. Expected is the profile's mean
    for its items and the others at work.
    """
    rows = requests[np.lexsort((requests.start_s, requests.worker))]
    same = np.append(False, rows.worker[1:] == rows.worker[:-1])
    before_s = np.append(np.nan, rows.finish_s[:-1])
    handed_s = records.submit_s[rows.query]
    at = np.interp(1 + _others_at_work(rows, workers), np.arange(workers + 1), tables.level)
    low = np.minimum(at.astype(int), max(len(tables.mean_s) - 2, 0))
    high, items = np.minimum(low + 1, len(tables.mean_s) - 1), rows.hi - rows.lo
    expected_s = (1 - (at - low)) * tables.mean_s[low, items]
    expected_s += (at - low) * tables.mean_s[high, items]
    # A later slice of a query whose first worker was still waking is nobody's idle time.
    kept = same & ((rows.lo == 0) | (before_s >= handed_s))
    return Costs(
        rows.start_s[kept],
        np.maximum(handed_s - before_s, 0.0)[kept],
        (rows.finish_s - np.maximum(before_s, handed_s))[kept],
        expected_s[kept],
        (rows.lo == 0)[kept].astype(float),
    )


def estimate(runs: Sequence[Costs]) -> Overhead:
    """Least squares of what each request cost on top: by idle time, by query, by its own length.

    The extreme hundredths are left out: they are stalls of the machine.
    """
    every = Costs(*(np.concatenate([getattr(run, name) for run in runs])
                    for name in Costs.__slots__))  # fmt: skip
    if not len(every.cost_s):  # so short a time that every request was its worker's first
        return Overhead()
    extra_s = every.cost_s - every.expected_s
    ratio = extra_s / every.expected_s
    kept = (ratio >= np.quantile(ratio, 0.01)) & (ratio <= np.quantile(ratio, 0.99))
    of = np.searchsorted(EDGES_S, every.idle_s[kept], side="right") - 1
    bins = np.flatnonzero(np.bincount(of, minlength=len(EDGES_S)) >= _LEAST)
    if not len(bins):
        return Overhead()
    # An idle time too seldom seen takes its neighbour's.
    nearest = bins[np.abs(bins[None, :] - of[:, None]).argmin(axis=1)]
    columns = [*(nearest[None, :] == bins[:, None]), every.first[kept], every.expected_s[kept]]
    matrix = np.array(columns, float).T
    weight = 1 / np.sqrt(every.expected_s[kept])  # a long request varies more
    bounds = [0.0] * (len(bins) + 1) + [-_MOST_FASTER], np.inf
    with np.errstate(divide="ignore", invalid="ignore"):  # a few requests may all be alike
        found = lsq_linear(matrix * weight[:, None], extra_s[kept] * weight, bounds=bounds).x
    if not np.isfinite(found).all():
        return Overhead()
    by_idle_s = [(EDGES_S[k], float(seconds)) for k, seconds in zip(bins, found, strict=False)]
    by_idle_s[0] = (0.0, by_idle_s[0][1])
    mean = Overhead(tuple(by_idle_s), float(found[-2]), float(found[-1]))
    weather = np.concatenate([_pace(run, mean) for run in runs])
    if len(weather) < _LEAST:
        return mean
    return replace(mean, weather=tuple((weather / weather.mean()).tolist()))


def _pace(run: Costs, overhead: Overhead) -> FloatArray:
    """Cost over what was expected, by stretch; a stretch with little work is left out."""
    idle_s, extra_s = np.array(overhead.by_idle_s).T
    extra = extra_s[np.searchsorted(idle_s, run.idle_s, "right") - 1]
    expected_s = run.expected_s * (1 + overhead.slower) + extra + overhead.query_s * run.first
    stretch = (np.maximum(run.start_s, 0.0) / WEATHER_STEP_S).astype(int)
    cost, expected = np.bincount(stretch, run.cost_s), np.bincount(stretch, expected_s)
    known = expected > _LEAST_WORK_S
    return np.asarray(cost[known] / expected[known])


def _others_at_work(requests: Requests, workers: int) -> FloatArray:
    """Mean number of other workers that execute during each request."""
    shared_s = np.zeros(len(requests))
    for worker in range(workers):
        mine = requests[np.flatnonzero(requests.worker == worker)]
        if len(mine):
            edges = np.column_stack([mine.start_s, mine.finish_s]).ravel()
            worked_s = np.repeat(np.cumsum(mine.finish_s - mine.start_s), 2)
            worked_s[::2] -= mine.finish_s - mine.start_s
            until_s = np.interp(requests.finish_s, edges, worked_s)
            during_s = until_s - np.interp(requests.start_s, edges, worked_s)
            shared_s += np.where(requests.worker == worker, 0.0, during_s)
    return np.asarray(shared_s / np.maximum(requests.finish_s - requests.start_s, 1e-12))
