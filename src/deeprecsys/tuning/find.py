"""`find_capacity`: the search's bracket, then rounds on fresh seeds for the last percents."""

from __future__ import annotations

import math
from dataclasses import replace

from deeprecsys.core import SLA, Policy, System, UserError
from deeprecsys.tuning.capacity import (
    FINE,
    WALL,
    Capacity,
    Clock,
    Effort,
    Interrupted,
    Probe,
    Run,
    capacity_of,
    search_rate,
)
from deeprecsys.tuning.interleave import MOST_LIVE, MOST_ROUNDS, Contestant, interleave
from deeprecsys.tuning.study import Observer
from deeprecsys.workload import Workload

# Of the time there is, for the search; the rest is for the rounds. Either needs so many runs.
_SEARCH, _RUNS = 0.3, 8
_ROUNDS_S = 240.0  # for the rounds at most, without a budget


def find_capacity(
    system: System,
    workload: Workload,
    sla: SLA,
    policy: Policy | None = None,
    *,
    effort: Effort | None = None,
    budget_s: float | None = None,
    observer: Observer | None = None,
    clock: Clock = WALL,
) -> Capacity:
    """The highest rate (queries/s) at which `system` under `policy` holds `sla`.

    effort: how long to measure (default: `FINE`, with runs as short as `budget_s` asks).
    With a 95 % interval where time allowed the rounds, else with the search's bracket; see
    `Capacity`. A rate of 0 means that none does, or that `budget_s` was too short to find one
    (then `decided` is False). observer: told of the runs; when it says stop, the answer is what
    the runs until then say. clock: what `budget_s` is counted by.
    Raises UserError for a budget that is not positive.
    """
    if budget_s is not None and not budget_s > 0:
        raise UserError(f"the time budget must be positive, not {budget_s:g} s")
    began, total_s = clock.now_s(), math.inf if budget_s is None else budget_s
    if effort is None:
        effort = FINE if budget_s is None else FINE.within(_SEARCH * budget_s, _RUNS)
        effort = effort.on(system.facts())
    policy, runs, seen = policy or Policy(), list[Run](), observer or Observer()

    def on_run(policy: Policy, run: Run) -> None:
        runs.append(run)
        seen.on_run(policy, run)

    probe = Probe(
        system,
        workload,
        sla,
        stop=seen.stop,
        on_progress=seen.on_progress,
        on_run=on_run,
        clock=clock,
    )
    try:
        found = search_rate(probe, policy, effort, until=began + _SEARCH * total_s)
        if found.rate_qps == 0:
            return found
        one = Contestant.at(policy, found.rate_qps, probe)
        ends = min(began + total_s, clock.now_s() + _ROUNDS_S)
        most = MOST_ROUNDS if system.facts().virtual else MOST_LIVE
        interleave(probe, [one], lambda r: effort.duration_s(r, sla), until=ends, most_rounds=most)
        return one.capacity(found)
    except Interrupted:
        return replace(capacity_of(runs, effort.tolerance, None), decided=False)
