"""One rate under one policy, live or simulated: what `bench` and `simulate` find."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deeprecsys.analysis.metrics import Summary, summarize
from deeprecsys.analysis.usage import Watts, usage
from deeprecsys.core import SLA, Policy, Records, Schedule, Status, UserError, Watch
from deeprecsys.experiments.result import (
    Asked,
    Result,
    accelerators,
    emulation,
    losses,
    origin,
)
from deeprecsys.report import text
from deeprecsys.workload import Workload

if TYPE_CHECKING:
    from deeprecsys.engine import Engine
    from deeprecsys.machines.service_time import ServiceTime
    from deeprecsys.simulation import Simulator

# Queries at the beginning of a simulated run, of which every request is kept.
TRACED = 5_000
_KEYS = (
    "queries", "warm_up_queries", "duration_s", "throughput_qps", "items_per_s", "mean_s",
    "p50_s", "p95_s", "p99_s", "p50_interval_s", "p95_interval_s", "p99_interval_s", "by_size",
    "meets_sla", "overloaded", "limited_by", "effective_queries", "errors", "generator_lag_p99_s",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Bench(Result):
    """`found`: what the run's records say. system: what it said of itself."""

    found: Summary
    asked: Asked
    rate_qps: float
    policy: Policy
    system: Mapping[str, Any]
    used: Mapping[str, Any] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def verdict(self) -> str:
        where = "simulated: " if "simulated" in self.system else ""
        return f"{where}{emulation(self.system)}{sentence(self.found, self.asked.sla)}"

    def summary(self) -> dict[str, Any]:
        return {
            **self.asked.to_dict(),
            "rate_qps": self.rate_qps,
            "policy": self.policy.to_dict(),
            "interrupted": self.interrupted,
            "usage": dict(self.used),
            **self.system,
            **measured(self.found),
        }


def bench(
    engine: Engine,
    workload: Workload,
    policy: Policy | None = None,
    *,
    rate_qps: float | None = None,
    duration_s: float | None = None,
    queries: int | None = None,
    sla: SLA | None = None,
    watch: Watch | None = None,
    watts: Watts | None = None,
    asked: Asked | None = None,
) -> Bench:
    """One live run at one rate (default: a trace's own) for 10 s, or as long as is asked for.

    watch may stop it: then what was answered counts. UserError for what cannot be scheduled.
    """
    policy = policy or Policy()
    schedule = scheduled(workload, rate_qps, duration_s, queries)
    stopped = False

    def watching(so_far: Records, now_s: float) -> bool:
        nonlocal stopped
        stopped = watch is not None and watch(so_far, now_s)
        return stopped

    records, requests = engine.traced_run(schedule, policy, watch=watching)
    if stopped:  # what was under way says nothing of the machine
        finished = records.status != Status.CANCELLED
        records, requests = records[finished], requests.of(finished)
    facts = engine.facts()
    return Bench(
        origin=origin("bench"),
        found=summarize(records, sla),
        asked=asked or Asked.of(engine, workload, sla),
        rate_qps=rate_of(schedule, rate_qps),
        policy=policy,
        system={
            "workers": facts.workers,
            "accelerator": accelerators(facts),
            "lost": losses(engine),
            "input_pools": engine.pool_facts(),
            "runtime": engine.runtime.name,
            "accelerators": [dict(device.detail) for device in engine.devices],
        },
        used=usage(
            records, requests, facts.workers, facts.detail["accelerators"],
            watts=watts, measured=engine.joules(),
        ),
        interrupted=stopped,
        records=records,
        requests=requests,
    )  # fmt: skip


def simulate(
    simulator: Simulator,
    workload: Workload,
    policy: Policy | None = None,
    *,
    rate_qps: float | None = None,
    duration_s: float | None = None,
    queries: int | None = None,
    sla: SLA | None = None,
    watts: Watts | None = None,
    asked: Asked | None = None,
) -> Bench:
    """The same on a simulated machine; beside theory, where there is one for it."""
    began, policy = time.monotonic(), policy or Policy()
    schedule = scheduled(workload, rate_qps, duration_s, queries)
    records = simulator.run(schedule, policy)
    first, requests = simulator.traced_run(beginning(schedule), policy)
    facts = simulator.facts()
    devices = facts.detail["accelerators"]
    return Bench(
        origin=origin("simulate"),
        found=summarize(records, sla),
        asked=asked or Asked.of(simulator, workload, sla),
        rate_qps=rate_of(schedule, rate_qps),
        policy=policy,
        system={
            "workers": facts.workers,
            "accelerator": accelerators(facts),
            "simulated": dict(facts.detail),
            "theory": theory(simulator.service, facts.workers, workload, rate_qps, policy),
            "elapsed_s": time.monotonic() - began,
        },
        used=usage(first, requests, facts.workers, devices, watts=watts),
        records=records,
        requests=requests,
    )


def scheduled(
    workload: Workload, rate_qps: float | None, duration_s: float | None, queries: int | None
) -> Schedule:
    """UserError where no rate is known, or no query would arrive."""
    replayed = workload.arrivals.startswith("replay:")
    if rate_qps is None and not replayed:
        raise UserError("at which rate? give --qps; only --arrivals replay:FILE has its own")
    if duration_s is None and queries is None and not replayed:
        duration_s = 10.0
    schedule = workload.schedule(rate_qps=rate_qps, duration_s=duration_s, queries=queries)
    if not len(schedule):
        raise UserError("no query arrives in that time: give a higher --qps or more --duration-s")
    return schedule


def rate_of(schedule: Schedule, rate_qps: float | None) -> float:
    """What was asked for, or a trace's own."""
    return rate_qps or len(schedule) / max(schedule.duration_s, 1e-9)


def beginning(schedule: Schedule) -> Schedule:
    return Schedule(schedule.arrival_s[:TRACED], schedule.size[:TRACED], schedule.indices)


def measured(found: Summary) -> dict[str, Any]:
    """The part of a summary that a run's records say."""
    return {name: value for name, value in found.to_dict().items() if name in _KEYS}


def sentence(found: Summary, sla: SLA | None) -> str:
    word: dict[Any, str] = {True: "meets", False: "misses", None: "undecided whether it meets"}
    why = ", overloaded: the backlog grows" if found.overloaded else ""
    if found.limited_by:
        why = ", limited by the generator, not by the system"
    errors = "".join(f", {n} {name}" for name, n in found.errors.items())
    verdict = f"; {word[found.meets_sla]} {sla}" if sla else ""
    return (
        f"{text.rate(found.throughput_qps)} queries/s, {found.items_per_s:,.0f} items/s"
        f"{verdict}{why}{errors}"
    )


def theory(
    law: ServiceTime, workers: int, workload: Workload, rate_qps: float | None, policy: Policy
) -> dict[str, Any] | None:
    """What queueing theory says, where a query is one request of an exponential time."""
    from deeprecsys.simulation.theory import mmc_mean_s, mmc_percentile_s

    one = workload.size_law.largest <= policy.batch_size and not policy.adaptive
    if law.law != "exponential" or not one or workload.arrivals != "poisson" or rate_qps is None:
        return None
    mean_s = float(law(1.0))  # type: ignore[arg-type]
    if rate_qps * mean_s >= workers:
        return None
    return {
        "name": f"M/M/{workers}, Erlang C",
        "mean_s": mmc_mean_s(rate_qps, mean_s, workers),
        **{f"p{p}_s": mmc_percentile_s(p, rate_qps, mean_s, workers) for p in (50, 95, 99)},
    }
