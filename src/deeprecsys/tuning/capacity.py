"""The highest rate at which a policy holds its target: bracket, bisect, confirm.

Knows systems only as something that runs a schedule and returns records (`core.System`).
A `Probe` is one run at one rate, stopped as soon as it is decided; `find_capacity` chooses the
rates. What the runs could not decide stays open between the two ends of the interval.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from deeprecsys.core import SLA, FloatArray, Policy, Records, System, UserError
from deeprecsys.metrics import Summary, summarize, verdict_so_far
from deeprecsys.service_time import query_work_s
from deeprecsys.workload import Workload

# Rates within this of each other count as one; the issue of interest is a few percent.
TOLERANCE = 0.03
# Below this share of what the cores could do at all, the question is whether the idle machine
# meets the target.
_FLOOR = 1 / 64
_IDLE_LOAD = 0.02
_IDLE_QUERIES = 120
_CONFIRMATIONS = 3
_RETRY = 50  # the turn (seed) of a second try


@dataclass(frozen=True, slots=True)
class Run:
    """One run at one rate. `summary` is of the part that was decided when it stopped early."""

    rate_qps: float
    seed: int
    summary: Summary
    stopped_early: bool
    records: Records | None = field(default=None, repr=False, compare=False)

    @property
    def passed(self) -> bool:
        """Established, or, if undecided, by the point estimate."""
        if self.summary.meets_sla is None:
            return bool(self.summary.percentile_s <= self.summary.target_s)
        return self.summary.meets_sla

    @property
    def decided(self) -> bool:
        return self.summary.meets_sla is not None

    def to_dict(self) -> dict[str, Any]:
        summary = self.summary.to_dict()
        kept = ("p50_s", "p95_s", "p99_s", "p95_interval_s", "meets_sla", "queries", "duration_s")
        return {
            "rate_qps": self.rate_qps,
            **{name: summary[name] for name in kept},
            "percentile_s": summary.get("percentile_s"),
            "overloaded": summary.get("overloaded"),
            "limited_by": summary.get("limited_by"),
            "generator_lag_p99_s": summary["generator_lag_p99_s"],
            "seed": self.seed,
            "stopped_early": self.stopped_early,
        }


@dataclass(frozen=True, slots=True)
class Capacity:
    """rate_qps: the highest rate that passed and was confirmed; 0 if none did.

    interval_qps: from the highest rate established to pass to the lowest established to fail
    (infinity if none was); what lies between was not decided. decided: the interval is as
    narrow as asked for. idle_p95_s: latency percentile of the idle machine, where it was asked.
    """

    rate_qps: float
    interval_qps: tuple[float, float]
    decided: bool
    runs: tuple[Run, ...] = ()
    idle_p95_s: float | None = None

    def to_dict(self) -> dict[str, Any]:
        lo, hi = self.interval_qps
        return {
            "rate_qps": self.rate_qps,
            "interval_qps": [lo, hi if math.isfinite(hi) else None],
            "decided": self.decided,
            "idle_p95_s": self.idle_p95_s,
        }


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure: a run lasts `least_s` to `most_s`, aiming at `queries` queries."""

    tolerance: float = TOLERANCE
    queries: int = 1500
    least_s: float = 3.0
    most_s: float = 20.0
    confirm: bool = True

    def duration_s(self, rate_qps: float, sla: SLA) -> float:
        """Long enough for the queries asked for and, so that a queue can build up, 50 targets."""
        wanted = max(self.queries / rate_qps, 50 * sla.latency_s)
        return min(self.most_s, max(self.least_s, wanted))


# A first look at every policy, then a careful one at those that can still be the best.
COARSE = Effort(tolerance=0.10, queries=800, least_s=2.0, most_s=10.0, confirm=False)
FINE = Effort()


class Interrupted(Exception):
    """The owner asked to stop; what was measured is with the callbacks."""


class Probe:
    """Runs one policy at a rate and says whether the target held.

    stop: asked all the time; True raises `Interrupted` after the current run is wound up.
    on_progress(policy, rate, records so far, seconds) and on_run(policy, run) are for display.
    """

    def __init__(
        self,
        system: System,
        workload: Workload,
        sla: SLA,
        *,
        stop: Callable[[], bool] = lambda: False,
        on_progress: Callable[[Policy, float, Records, float], None] = lambda *_: None,
        on_run: Callable[[Policy, Run], None] = lambda *_: None,
    ) -> None:
        self.system, self.workload, self.sla = system, workload, sla
        self.stop, self.on_progress, self.on_run = stop, on_progress, on_run

    def __call__(
        self,
        policy: Policy,
        rate_qps: float,
        duration_s: float,
        *,
        turn: int = 0,
        whole: bool = False,
        queries: int | None = None,
    ) -> Run:
        """`turn` picks the seed (0: the workload's own); `whole` forbids stopping early."""
        workload = self.workload.reseed(self.workload.seed + turn)
        schedule = workload.schedule(rate_qps=rate_qps, duration_s=duration_s, queries=queries)
        verdict: bool | None = None
        stopped_s = math.inf

        def watch(so_far: Records, now_s: float) -> bool:
            nonlocal verdict, stopped_s
            self.on_progress(policy, rate_qps, so_far, now_s)
            if not whole:
                verdict = verdict_so_far(so_far, now_s, self.sla, len(schedule))
            if verdict is not None or self.stop():
                stopped_s = now_s
                return True
            return False

        records = self.system.run(schedule, policy, watch=watch)
        if self.stop():
            raise Interrupted
        stopped = stopped_s < math.inf and len(records) > 0
        if stopped:  # judge only what was decided by then: who arrived a target earlier
            records = records[records.arrival_s <= stopped_s - self.sla.latency_s]
        summary = summarize(records, self.sla)
        if verdict is not None:
            summary = replace(summary, meets_sla=verdict)
        run = Run(rate_qps, workload.seed, summary, verdict is not None, records)
        self.on_run(policy, run)
        return run


def find_capacity(
    system: System,
    workload: Workload,
    sla: SLA,
    policy: Policy | None = None,
    *,
    effort: Effort = FINE,
    budget_s: float | None = None,
) -> Capacity:
    """The highest rate (queries/s) at which `system` under `policy` holds `sla`."""
    if budget_s is not None and not budget_s > 0:
        raise UserError(f"the time budget must be positive, not {budget_s:g} s")
    until = math.inf if budget_s is None else time.monotonic() + budget_s
    probe = Probe(system, workload, sla)
    return search_rate(probe, policy or Policy(), effort, until=until)


def search_rate(
    probe: Probe,
    policy: Policy,
    effort: Effort,
    *,
    before: Sequence[Run] = (),
    until: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> Capacity:
    """`find_capacity` with runs of this policy that were made `before`, until a point in time."""
    runs = list(before)
    ceiling = saturation_rate(probe, policy)
    idle_s: float | None = None
    if not runs and _is_tail_tight(probe, policy):
        idle = _idle_run(probe, policy, ceiling, effort)
        idle_s = idle.summary.percentile_s
        runs.append(idle)
        if not idle.passed:
            return Capacity(0.0, (0.0, idle.rate_qps), idle.decided, tuple(runs), idle_s)
    while clock() < until:
        rate = _next_rate(runs, ceiling, effort.tolerance)
        if rate is None:
            break
        if rate < ceiling * _FLOOR:
            idle = _idle_run(probe, policy, ceiling, effort)
            idle_s = idle.summary.percentile_s
            runs.append(idle)
            if not idle.passed or idle.rate_qps >= rate:
                break
            continue
        run = probe(policy, rate, effort.duration_s(rate, probe.sla))
        if not run.passed and _surprising(run, runs, ceiling):
            runs.append(run)
            run = probe(policy, rate, effort.duration_s(rate, probe.sla), turn=_RETRY)
        runs.append(run)
    if effort.confirm:
        _confirm(probe, policy, effort, runs, until, clock)
    return capacity_of(runs, effort.tolerance, idle_s)


def saturation_rate(probe: Probe, policy: Policy) -> float:
    """Workers over the mean service time of a query: no rate beyond it can be held for long.

    100 queries/s where the system does not say how long a request takes.
    """
    facts = probe.system.facts()
    if facts.service_s is None:
        return 100.0
    work = query_work_s(facts.service_s, probe.workload.sample_sizes(4096), policy)
    return float(facts.workers / work.mean())


def _is_tail_tight(probe: Probe, policy: Policy) -> bool:
    """Would a large query alone, spread over idle workers, take most of the target?"""
    facts = probe.system.facts()
    if facts.service_s is None:
        return False
    sizes = probe.workload.sample_sizes(4096)
    large = np.array([np.sort(sizes)[int(len(sizes) * probe.sla.percentile / 100)]])
    return _alone_s(facts.service_s, large, policy, facts.workers) > 0.5 * probe.sla.latency_s


def _alone_s(
    service_s: Callable[[FloatArray], FloatArray], size: Any, policy: Policy, workers: int
) -> float:
    """Rounds of one query's requests over all workers, each as long as its largest request."""
    rounds: int = math.ceil(math.ceil(size[0] / policy.batch_size) / workers)
    return rounds * float(service_s(np.minimum(size, policy.batch_size).astype(float))[0])


def _surprising(run: Run, runs: Sequence[Run], ceiling: float) -> bool:
    """A failure where one would expect success deserves a second try, on another seed.

    On a shared machine a neighbour can stop both cores for a moment; a stop of 0.2 s fails a
    run of two seconds at any rate.
    """
    return run.rate_qps < 0.97 * max([ceiling, *(r.rate_qps for r in runs if r.passed)])


def _idle_run(probe: Probe, policy: Policy, ceiling: float, effort: Effort) -> Run:
    """So few queries that they hardly meet: the latency of the idle machine."""
    rate = ceiling * _IDLE_LOAD
    duration_s = max(effort.most_s, _IDLE_QUERIES / rate)
    return probe(policy, rate, duration_s, queries=_IDLE_QUERIES)


def _ends(runs: Sequence[Run]) -> tuple[float, float]:
    """(highest rate that passed below any failure, lowest rate that failed).

    Where a rate was tried twice the later run counts.
    """
    last = {r.rate_qps: r for r in runs}.values()
    fail = min((r.rate_qps for r in last if not r.passed), default=math.inf)
    return max((r.rate_qps for r in last if r.passed and r.rate_qps < fail), default=0.0), fail


def _next_rate(runs: Sequence[Run], ceiling: float, tolerance: float) -> float | None:
    """The rate to try next, or None when the bracket is narrow enough."""
    lo, hi = _ends(runs)
    if not runs:
        return 0.92 * ceiling
    if math.isinf(hi):
        return lo * (1.06 if lo > 0.8 * ceiling else 1.6) if lo < 0.8 * ceiling else lo * 1.06
    if lo == 0:
        return hi * (0.8 if hi > 0.6 * ceiling else 0.5)
    if hi <= lo * (1 + tolerance):
        return None
    return math.sqrt(lo * hi)


def _confirm(
    probe: Probe,
    policy: Policy,
    effort: Effort,
    runs: list[Run],
    until: float,
    clock: Callable[[], float],
) -> None:
    """Repeats the best rate on fresh seeds, stepping down where the repetition fails."""
    for turn in range(1, _CONFIRMATIONS + 1):
        lo, _ = _ends(runs)
        if lo == 0 or clock() >= until:
            return
        runs.append(probe(policy, lo, effort.duration_s(lo, probe.sla), turn=turn))
        if runs[-1].passed:
            return
        step = lo * (1 - effort.tolerance)
        if not any(r.passed and r.rate_qps >= step * 0.99 for r in runs if r.rate_qps < lo):
            runs.append(probe(policy, step, effort.duration_s(step, probe.sla), turn=turn))


def capacity_of(runs: Sequence[Run], tolerance: float, idle_s: float | None) -> Capacity:
    """What the runs of one policy say together; see `Capacity`."""
    rate, above = _ends(runs)
    last = {r.rate_qps: r for r in runs}.values()
    fail = min((r.rate_qps for r in last if r.decided and r.rate_qps >= above), default=math.inf)
    sure = max((r.rate_qps for r in last if r.decided and r.rate_qps <= rate), default=0.0)
    decided = fail <= sure * (1 + 3 * tolerance) if rate else math.isfinite(fail)
    return Capacity(rate, (sure, fail), decided, tuple(runs), idle_s)
