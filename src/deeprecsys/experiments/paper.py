"""The paper's results at scale, one function each, from profiles: `simulate MODEL --paper NAME`.

Each answers rows of (what, the paper's figure and how sure it is, ours). [S] is certain, [R] is
recalled, [2] second hand, as the project's notes on the paper mark them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from deeprecsys.analysis.metrics import percentile
from deeprecsys.core import SLA, Policy
from deeprecsys.fleet.fleet import Fleet, FleetDay, Kind
from deeprecsys.machines.service_time import ServiceTime, query_work_s
from deeprecsys.simulation import Simulator
from deeprecsys.tuning import find_capacity, tune
from deeprecsys.workload import Workload
from deeprecsys.workload.mix import Mix, Share

HANDFUL, WHOLE = 5, 300
_DAY_QUERIES, _HANDFUL_QUERIES = 8_000_000, 2_000_000
_HOURS, _HOUR_QUERIES = 24, 40_000
_SIZES = ("production", "lognormal", "fixed:270")


@dataclass(frozen=True)
class Row:
    what: str
    paper: str
    ours: str


@dataclass(frozen=True)
class Case:
    """A model on machines of `workers` cores, by its service time and published target."""

    model: str
    service: ServiceTime
    sla: SLA
    workers: int = 40
    seed: int = 0

    @property
    def machine(self) -> Simulator:
        return Simulator(self.service, self.workers, seed=self.seed)

    def workload(self, sizes: str = "production") -> Workload:
        return Workload(sizes=sizes, seed=self.seed)

    def tuned(self, sizes: str = "production", factor: float = 1.0) -> tuple[Policy, float] | None:
        """The best policy and its capacity."""
        sla = SLA(factor * self.sla.latency_s, self.sla.percentile)
        best = tune(self.machine, self.workload(sizes), sla).best
        return None if best is None else (best.policy, best.capacity.rate_qps)


def optimum(case: Case) -> list[Row]:
    """The optimal batch size against target and size law."""
    rows = []
    for factor in (0.5, 1.0, 1.5):
        found = []
        for sizes in _SIZES:
            best = case.tuned(sizes, factor)
            found.append(f"{sizes} {best[0].batch_size}" if best else f"{sizes} –")
        rows.append(
            Row(
                f"{case.model}, optimal batch size at {factor:g}× its target",
                "moves with model, target, size law and hardware [S]",
                ", ".join(found),
            )
        )
    return rows


def lognormal(case: Case) -> list[Row]:
    """What tuning for lognormal sizes costs under production sizes."""
    mistaken, right = case.tuned("lognormal"), case.tuned("production")
    if mistaken is None or right is None:
        return [Row(f"{case.model}, tuned for lognormal sizes", "1.2–1.7× [R]", "no rate holds it")]
    workload = Workload(seed=case.seed + 77)
    rates = [
        find_capacity(case.machine, workload, case.sla, policy).rate_qps
        for policy in (right[0], mistaken[0])
    ]
    return [
        Row(
            f"{case.model}, tuned for production sizes over tuned for lognormal, under production",
            "1.2–1.7× [R]",
            f"{rates[0] / rates[1]:.2f}× (batch {right[0].batch_size}, {mistaken[0].batch_size})",
        )
    ]


def handful(case: Case) -> list[Row]:
    """A handful of machines against the whole fleet, each with its share of the traffic."""
    best = case.tuned()
    if best is None:
        return [Row(f"{case.model}, {HANDFUL} machines", "within 10 % [R]", "no rate holds it")]
    policy, capacity = best
    days = [_day(case, policy, machines, 0.6 * capacity, "poisson", _HANDFUL_QUERIES)
            for machines in (HANDFUL, WHOLE)]  # fmt: skip
    return [
        Row(
            f"{case.model}, p95 and p99 of {HANDFUL} machines over those of {WHOLE}, random choice",
            "tail within 10 % [R]",
            _tails(days, 3),
        )
    ]


def tail(case: Case) -> list[Row]:
    """Fleet-wide p95 and p99 before and after tuning, under a daily load."""
    what = f"{case.model}, fleet-wide p95 and p99 of the static setting over the tuned, daily load"
    paper = "p95 1.39×, p99 1.31× [R]; over 30 % lower latency [S]"
    best = case.tuned()
    static = Policy(-(-1000 // case.workers))
    rate = find_capacity(case.machine, case.workload(), case.sla, static).rate_qps
    if best is None or not rate:
        return [Row(what, paper, "the static setting holds the target at no rate")]
    # At the peak, 4/3 of the mean, nearly all that the static setting can do.
    days = [_day(case, policy, 100, 0.7 * rate, "daily", _DAY_QUERIES)
            for policy in (static, best[0])]  # fmt: skip
    return [Row(what, paper, f"{_tails(days)} (batch {best[0].batch_size})")]


def quarter(case: Case) -> list[Row]:
    """The share of the work in the largest quarter of the queries."""
    sizes = np.sort(case.workload().sample_sizes(200_000))
    work = query_work_s(case.service, sizes, Policy(128))
    largest = slice(3 * len(sizes) // 4, None)
    return [
        Row(
            f"{case.model}, share of the execution time in the largest quarter of the queries",
            "about half [R]",
            f"{work[largest].sum() / work.sum():.0%} (of the items "
            f"{sizes[largest].sum() / sizes.sum():.0%})",
        )
    ]


def retune(case: Case) -> list[Row]:
    """A day with the policy tuned for its peak, with the best one of every hour, and adaptive.

    The peak is 90 % of the capacity, the trough half of the peak. p95 of each hour, averaged.
    """
    best = case.tuned()
    if best is None:
        return [Row(f"{case.model}, re-tuned every hour", "–", "no rate holds it")]
    peak, capacity = best
    batches = sorted({16 << k for k in range(7)} | {peak.batch_size})
    adaptive = Policy(16, adaptive=True, most_items=max(16, peak.batch_size))
    hours: dict[str, list[float]] = {"peak": [], "hourly": [], "adaptive": []}
    for hour in range(_HOURS):
        rate = 0.9 * capacity * (0.75 - 0.25 * np.cos(2 * np.pi * hour / _HOURS))
        schedule = Workload(seed=case.seed + hour).schedule(rate_qps=rate, queries=_HOUR_QUERIES)
        p95 = {
            policy: percentile(case.machine.run(schedule, policy).latency_s, 95)
            for policy in (adaptive, *map(Policy, batches))
        }
        hours["adaptive"].append(p95.pop(adaptive))
        hours["peak"].append(p95[Policy(peak.batch_size)])
        hours["hourly"].append(min(p95.values()))
    means = {name: float(np.mean(p95)) * 1e3 for name, p95 in hours.items()}
    night = {name: p95[0] * 1e3 for name, p95 in hours.items()}
    return [
        Row(
            f"{case.model}, p95 of an hour, mean over a day (at night): policy of the peak, "
            "best of each hour, adaptive",
            "–",
            ", ".join(f"{means[name]:.1f} ({night[name]:.1f}) ms" for name in hours),
        )
    ]


RESULTS: dict[str, Callable[[Case], list[Row]]] = {
    "optimum": optimum,
    "lognormal": lognormal,
    "handful": handful,
    "tail": tail,
    "quarter": quarter,
    "retune": retune,
}


def _day(
    case: Case, policy: Policy, machines: int, machine_qps: float, arrivals: str, queries: int
) -> FleetDay:
    """As many seconds of a fleet as `queries` take; a day of that length."""
    kind = Kind("m", machines, case.workers, {case.model: case.service}, {case.model: policy})
    seconds = queries / (machines * machine_qps)
    if arrivals.startswith("daily"):
        arrivals = f"daily:{seconds!r}"
    mix = Mix([Share(case.model, machines * machine_qps)], arrivals, case.seed)
    return Fleet([kind], "random", seed=case.seed).stream(mix.pieces(seconds), seconds)


def _tails(days: Sequence[FleetDay], decimals: int = 2) -> str:
    """p95 and p99 of the first day over those of the second."""
    one, other = days
    ratios = (one.percentile_s(p) / other.percentile_s(p) for p in (95, 99))
    return ", ".join(f"{ratio:.{decimals}f}×" for ratio in ratios)


def table(rows: Sequence[Row]) -> str:
    """In Markdown."""
    body = "".join(f"| {row.what} | {row.paper} | {row.ours} |\n" for row in rows)
    return "| what | the paper | simulated |\n|---|---|---|\n" + body
