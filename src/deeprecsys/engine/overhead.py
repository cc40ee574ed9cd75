"""What a request costs beside its execution in a tight loop: turning to it, waking up, being cold.

A profile is measured back to back. A live worker first finishes its last query's paperwork, or
wakes up, and after a pause its caches and clock are cold: tenths of a millisecond that matter to
small requests. Estimated from traced runs at several loads; the simulator adds it by how long the
worker has been idle.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from deeprecsys.core import FloatArray, Policy, Records, Requests, Schedule
from deeprecsys.service_time import Overhead, Profile, ServiceTime
from deeprecsys.workload import Workload

LOADS = (0.25, 0.5, 0.75, 0.9)
_POLICY = Policy(256)
# Idle times from which another cost is told apart: none at all, then about thirds of a decade.
EDGES_S = (0.0, 1e-6, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
_LEAST = 12  # requests, for a word on an idle time
_SEED = 77


class Traced(Protocol):
    """What is needed of an engine."""

    @property
    def workers(self) -> int: ...

    def traced_run(self, schedule: Schedule, policy: Policy) -> tuple[Records, Requests]: ...


def measure_overhead(engine: Traced, profile: Profile, *, budget_s: float, indices: str) -> Profile:
    """The profile with its `overhead`, from runs of `budget_s` together."""
    law = ServiceTime.from_profile(profile, extrapolate=True)
    tables = law.tables(_POLICY.batch_size, engine.workers)
    workload = Workload(indices=indices, seed=_SEED)
    sizes = workload.sample_sizes(1000)
    whole, rest = np.divmod(sizes, _POLICY.batch_size)
    query_s = float(np.mean(whole * tables.mean_s[-1, -1] + tables.mean_s[-1, rest] * (rest > 0)))
    found = []
    for load in LOADS:
        schedule = workload.schedule(
            rate_qps=load * engine.workers / query_s, duration_s=budget_s / len(LOADS)
        )
        if len(schedule):
            records, requests = engine.traced_run(schedule, _POLICY)
            found.append(extra(records, requests, tables, engine.workers))
    if not found:
        return profile
    return profile.with_overhead(by_idle_time(*np.concatenate(found, axis=1)))


def extra(
    records: Records, requests: Requests, tables: Any, workers: int
) -> tuple[FloatArray, FloatArray]:
    """(idle seconds, extra seconds) of each request that was not its worker's first.

    A worker is idle until the query it takes was handed over; what passes from then, or from the
    end of its last request, to the end of this one is its cost, and the profile's mean for its
    items and the others at work is what was to be expected.
    """
    order = np.lexsort((requests.start_s, requests.worker))
    sorted_ = requests[order]
    same = np.append(False, sorted_.worker[1:] == sorted_.worker[:-1])
    before_s = np.append(np.nan, sorted_.finish_s[:-1])
    handed_s = records.submit_s[sorted_.query]
    since_s = np.maximum(before_s, handed_s)
    items = sorted_.hi - sorted_.lo
    others = _others_at_work(sorted_, workers)
    at = np.interp(1 + others, np.arange(workers + 1), tables.level)
    low = np.minimum(at.astype(int), max(len(tables.mean_s) - 2, 0))
    high = np.minimum(low + 1, len(tables.mean_s) - 1)
    expected_s = tables.mean_s[low, items] * (1 - (at - low)) + tables.mean_s[high, items] * (
        at - low
    )
    # Later slices of a query whose first worker was still waking are nobody's idle time.
    first = same & ((sorted_.lo == 0) | (before_s >= handed_s))
    idle_s = np.maximum(handed_s - before_s, 0.0)
    cost_s = sorted_.finish_s - since_s - expected_s
    return idle_s[first], cost_s[first]


def by_idle_time(idle_s: FloatArray, extra_s: FloatArray) -> Overhead:
    """Mean extra seconds from each idle time on; an idle time too seldom seen takes its
    neighbour's. The extreme hundredths are left out: they are stalls of the machine."""
    found: list[tuple[float, float]] = []
    for lo, hi in zip(EDGES_S, (*EDGES_S[1:], np.inf), strict=True):
        values = np.sort(extra_s[(idle_s >= lo) & (idle_s < hi)])
        if len(values) >= _LEAST:
            cut = len(values) // 100
            found.append((lo, max(0.0, float(values[cut : len(values) - cut].mean()))))
    return tuple(found)


def _others_at_work(requests: Requests, workers: int) -> FloatArray:
    """Mean number of other workers that execute during each request."""
    shared_s = np.zeros(len(requests))
    length_s = requests.finish_s - requests.start_s
    for worker in range(workers):
        mine = requests[np.flatnonzero(requests.worker == worker)]
        edges = np.column_stack([mine.start_s, mine.finish_s]).ravel()
        done = np.append(0.0, np.cumsum(mine.finish_s - mine.start_s))
        known = np.column_stack([done[:-1], done[1:]]).ravel()
        if not len(edges):
            continue

        def busy_until(at: FloatArray, edges: FloatArray = edges, known: FloatArray = known) -> Any:
            return np.interp(at, edges, known)

        during_s = busy_until(requests.finish_s) - busy_until(requests.start_s)
        shared_s += np.where(requests.worker == worker, 0.0, during_s)
    return np.asarray(shared_s / np.maximum(length_s, 1e-12))
