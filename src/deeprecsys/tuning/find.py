"""`find_capacity`: the search's bracket, then rounds on fresh seeds for the last percents."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from deeprecsys.core import SLA, Policy, System, UserError
from deeprecsys.tuning.capacity import (
    FINE,
    Capacity,
    Effort,
    Interrupted,
    Probe,
    Run,
    capacity_of,
    saturation_rate,
    search_rate,
)
from deeprecsys.tuning.interleave import Contestant, elasticity, interleave
from deeprecsys.tuning.study import Observer
from deeprecsys.workload import Workload

# Of the time there is, for the search; the rest is for the rounds. Either needs so many runs.
_SEARCH, _RUNS = 0.5, 8


def find_capacity(
    system: System,
    workload: Workload,
    sla: SLA,
    policy: Policy | None = None,
    *,
    effort: Effort | None = None,
    budget_s: float | None = None,
    observer: Observer | None = None,
) -> Capacity:
    """The highest rate (queries/s) at which `system` under `policy` holds `sla`.

    effort: how long to measure (default: `FINE`, with runs as short as `budget_s` asks).
    With a 95 % interval where time allowed the rounds, else with the search's bracket; see
    `Capacity`. A rate of 0 means that none does, or that `budget_s` was too short to find one
    (then `decided` is False). observer: told of the runs; when it says stop, the answer is what
    the runs until then say. Raises UserError for a budget that is not positive.
    """
    if budget_s is not None and not budget_s > 0:
        raise UserError(f"the time budget must be positive, not {budget_s:g} s")
    began, total_s = time.monotonic(), math.inf if budget_s is None else budget_s
    if effort is None:
        effort = FINE if budget_s is None else FINE.within(_SEARCH * budget_s, _RUNS)
        effort = effort.on(system.facts())
    policy, runs, seen = policy or Policy(), list[Run](), observer or Observer()

    def on_run(policy: Policy, run: Run) -> None:
        runs.append(run)
        seen.on_run(policy, run)

    probe = Probe(
        system, workload, sla, stop=seen.stop, on_progress=seen.on_progress, on_run=on_run
    )
    try:
        found = search_rate(probe, policy, effort, until=began + _SEARCH * total_s)
        if found.rate_qps == 0:
            return found
        known = system.facts().service_s is not None
        ceiling = saturation_rate(probe, policy) if known else math.inf
        slope = elasticity(found.runs, found.rate_qps, ceiling)
        one = Contestant(policy, found.rate_qps, slope)
        interleave(probe, [one], lambda r: effort.duration_s(r, sla), until=began + total_s)
        return one.capacity(found)
    except Interrupted:
        return replace(capacity_of(runs, effort.tolerance, None), decided=False)
