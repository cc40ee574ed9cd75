"""One rate under one policy, live or simulated: what `bench` and `simulate` find."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deeprecsys.analysis.metrics import Summary, summarize
from deeprecsys.analysis.usage import Watts
from deeprecsys.core import EXACT, SLA, Policy, Schedule, System, UserError, Watch
from deeprecsys.experiments import evidence
from deeprecsys.experiments.result import Asked, Result, emulation, origin
from deeprecsys.report import text
from deeprecsys.workload import Workload

if TYPE_CHECKING:
    from deeprecsys.engine import Engine
    from deeprecsys.machines.service_time import ServiceTime

_KEYS = (
    "queries", "warm_up_queries", "duration_s", "throughput_qps", "items_per_s", "mean_s",
    "p50_s", "p95_s", "p99_s", "p50_interval_s", "p95_interval_s", "p99_interval_s", "by_size",
    "meets_sla", "overloaded", "limited_by", "effective_queries", "enough_queries", "errors",
    "generator_lag_p99_s",
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
    system: System | Engine,
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
    """One run at one rate (default: a trace's own) for 10 s, or as long as is asked for.

    watch may stop it: then what was answered counts. UserError for what cannot be scheduled.
    """
    began = time.monotonic()
    model = getattr(system, "model", None)
    policy = policy or Policy(execution=getattr(model, "execution", EXACT))
    schedule = scheduled(workload, rate_qps, duration_s, queries)
    made = evidence.run(system, schedule, policy, watch=watch, watts=watts)
    facts = system.facts()
    said = evidence.described(system, facts)
    if facts.virtual:
        said |= {"theory": theory(system, facts.workers, workload, rate_qps, policy),
                 "elapsed_s": time.monotonic() - began}  # fmt: skip
    else:
        said |= {name: facts.detail.get(name) for name in ("runtime", "accelerators")}
    return Bench(
        origin=origin("simulate" if facts.virtual else "bench"),
        found=summarize(made.records, sla),
        asked=asked or Asked.of(system, workload, sla),
        rate_qps=rate_of(schedule, rate_qps),
        policy=policy,
        system=said,
        used=made.used,
        interrupted=made.stopped,
        records=made.records,
        requests=made.requests,
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
    percentile = f"p{sla.percentile if sla else 95:g}"
    short = f"; {too_short(found, percentile)}" if found.enough_queries else ""
    return (
        f"{text.rate(found.throughput_qps)} queries/s, {found.items_per_s:,.0f} items/s"
        f"{verdict}{why}{errors}{short}"
    )


def too_short(found: Summary, percentile: str) -> str:
    """Where a percentile has no upper bound: how long a run would give it one."""
    queries = found.enough_queries or 0
    return (
        f"the run is too short to bound {percentile}: one of about "
        f"{text.about(queries, found.rate_qps)} could"
    )


def theory(
    system: Any, workers: int, workload: Workload, rate_qps: float | None, policy: Policy
) -> dict[str, Any] | None:
    """What queueing theory says, where a query is one request of an exponential time."""
    from deeprecsys.simulation.theory import mmc_mean_s, mmc_percentile_s

    law: ServiceTime | None = getattr(system, "service", None)
    one = workload.size_law.largest <= policy.batch_size and not policy.adaptive
    if law is None or law.law != "exponential" or not one:
        return None
    mean_s = float(law(1.0))  # type: ignore[arg-type]
    if workload.arrivals != "poisson" or rate_qps is None or rate_qps * mean_s >= workers:
        return None
    return {
        "name": f"M/M/{workers}, Erlang C",
        "mean_s": mmc_mean_s(rate_qps, mean_s, workers),
        **{f"p{p}_s": mmc_percentile_s(p, rate_qps, mean_s, workers) for p in (50, 95, 99)},
    }
