"""Do reported intervals hold the truth? Capacities of a simulated machine that counts as live.

`python benchmarks/truth.py [--seeds N] [--tunes N] [--first N] [--load LAW ...] [--verbose]`
`python benchmarks/truth.py --summaries N`: of percentiles instead, by N runs of each length.

The machine of `machines.service_time` laws is wrapped so that the search treats it as a real one:
runs are as short and stopped as early, budgets count its time. The truth is bisected over runs of
12,000,000 queries, once, and kept in `runs/true-capacities.json`. Minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import deeprecsys as drs
from deeprecsys.analysis.metrics import percentile
from deeprecsys.core import SLA, Policy
from deeprecsys.machines.service_time import Profile, ServiceTime, query_work_s
from deeprecsys.simulation import Simulator
from deeprecsys.tuning import find_capacity, tune

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from as_live import AsLive

TARGET, WORKERS, BATCH = SLA(0.100), 2, 512
BASE_S, PER_ITEM_S = 2e-4, 16e-6
FIRST = 800  # seeds on which nothing was chosen
BUDGET_S = 230.0  # of `deeprecsys tune` with its default method
TRUTHS = Path("runs/true-capacities.json")
_TRUE_QUERIES = 12_000_000
# Of a request's time: squared variation 8, lognormal.
_HEAVY = math.sqrt(math.log(1 + 8.0))


def heavy_tailed() -> ServiceTime:
    """Requests of the same means, lognormal around them, as a profile of 4,000 quantiles each."""
    from scipy import special

    spread = np.exp(_HEAVY * special.ndtri((np.arange(4000) + 0.5) / 4000))
    profile = Profile({"workers": WORKERS})
    for batch in (1, 16, 64, 256, 512, 1024):
        seconds = (BASE_S + PER_ITEM_S * batch) * spread / spread.mean()
        profile = profile.with_visit((batch, WORKERS), seconds)
    return ServiceTime.from_profile(profile)


def as_measured(service: ServiceTime, samples: int = 60) -> ServiceTime:
    """What a machine thinks of itself: like an engine, so many requests of each size, at a moment
    when it was a tenth faster."""
    drawn, profile = np.random.default_rng(5), Profile({"workers": WORKERS})
    for batch in (1, 16, 64, 256, 512, 1024):
        mean_s = BASE_S + PER_ITEM_S * batch
        spread = np.ones(samples)
        if service.profile is not None:
            spread = np.exp(_HEAVY * drawn.standard_normal(samples) - _HEAVY**2 / 2)
        profile = profile.with_visit((batch, WORKERS), 0.9 * mean_s * spread)
    return ServiceTime.from_profile(profile)


@dataclass(frozen=True)
class Load:
    """A workload and a service-time law, with the target that makes the machine well used."""

    arrivals: str
    service: ServiceTime
    sla: SLA = TARGET

    def machine(self, twin: bool = True) -> AsLive:
        thought = Simulator(as_measured(self.service), WORKERS)
        return AsLive(Simulator(self.service, WORKERS), thought if twin else None)


LOADS = {
    "poisson": Load("poisson", ServiceTime.linear(BASE_S, PER_ITEM_S)),
    "bursty": Load("bursty", ServiceTime.linear(BASE_S, PER_ITEM_S)),
    "heavy-tailed": Load("poisson", heavy_tailed()),
}


def true_rate(name: str, batch: int) -> float:
    """The capacity in queries/s, to 0.05 %: bisected over long runs, and kept."""
    load, key = LOADS[name], f"{name} {batch}"
    known = json.loads(TRUTHS.read_text()) if TRUTHS.is_file() else {}
    if key not in known:
        known[key] = _bisected(load, Policy(batch))
        TRUTHS.parent.mkdir(exist_ok=True)
        TRUTHS.write_text(json.dumps(known, indent=1) + "\n")
    return float(known[key])


def _bisected(load: Load, policy: Policy) -> float:
    simulator = Simulator(load.service, WORKERS)
    work = drs.Workload(arrivals=load.arrivals, seed=4242)
    low, high = 20.0, 600.0
    while high > low * 1.0005:
        rate = math.sqrt(low * high)
        pieces = work.pieces(rate_qps=rate, queries=_TRUE_QUERIES)
        held = simulator.stream(pieces, policy, load.sla).percentile_s <= load.sla.latency_s
        low, high = (rate, high) if held else (low, rate)
    return math.sqrt(low * high)


@dataclass(frozen=True)
class Answer:
    """What one call said, with the truth beside it."""

    rate: float
    truth: float
    interval: tuple[float, float]
    decided: bool
    seconds: float
    detail: dict[str, Any]

    @property
    def holds(self) -> bool:
        return self.interval[0] <= self.truth <= self.interval[1]


def capacities(name: str, seeds: range) -> Iterator[Answer]:
    """`find_capacity` at the default budget, one call a seed."""
    load, truth = LOADS[name], true_rate(name, BATCH)
    for seed in seeds:
        machine = load.machine()
        work = drs.Workload(arrivals=load.arrivals, seed=1000 * seed)
        found = find_capacity(machine, work, load.sla, Policy(BATCH), clock=machine.clock())
        yield Answer(found.rate_qps, truth, found.interval_qps, found.decided, machine.now_s,
                     {"runs": machine.runs})  # fmt: skip


def tunings(name: str, seeds: range) -> Iterator[tuple[Answer, Answer | None]]:
    """`tune` at the budget of the command line: the best policy's capacity, and the speed-up."""
    load = LOADS[name]
    for seed in seeds:
        machine = load.machine()
        work = drs.Workload(arrivals=load.arrivals, seed=1000 * seed)
        study = tune(machine, work, load.sla, budget_s=BUDGET_S, clock=machine.clock())
        if study.best is None:
            yield Answer(0.0, 1.0, (0.0, math.inf), False, machine.now_s, {}), None
            continue
        best, capacity = study.best.policy, study.best.capacity
        truth = true_rate(name, best.batch_size)
        detail = {"batch": best.batch_size, "runs": machine.runs}
        answer = Answer(capacity.rate_qps, truth, capacity.interval_qps, capacity.decided,
                        machine.now_s, detail)  # fmt: skip
        ratio, base = study.speedup, true_rate(name, study.baseline.policy.batch_size)
        yield (
            answer,
            ratio
            and Answer(ratio.ratio, truth / base, ratio.interval, True, machine.now_s, detail),
        )


def said(what: str, answers: list[Answer]) -> str:
    """One line of the table."""
    if not answers:
        return f"| {what} | 0 | | | | | |"
    held = sum(a.holds for a in answers)
    over = np.array([a.rate / a.truth for a in answers])
    width = [math.log(a.interval[1] / a.interval[0]) / 2 if a.interval[0] > 0 else math.inf
             for a in answers]  # fmt: skip
    undecided = sum(not a.decided for a in answers)
    return (
        f"| {what} | {held} of {len(answers)} | {over.mean():.3f} | {over.min():.2f} to "
        f"{over.max():.2f} | ±{np.median(width):.1%} | {undecided} | "
        f"{np.mean([a.seconds for a in answers]):.0f} s |"
    )


SUMMARIES = {
    "poisson": (2000, 8000, 32_000),
    "bursty": (2000, 32_000, 128_000),
    "bursty:4,0.2,1000": (2000, 32_000),
}
SUMMARY_COLUMNS = (
    "arrivals", "queries", "how", "p50 ends", "holds", "p95 ends", "holds", "overloaded",
    "enough_queries",
)  # fmt: skip
SUMMARY_HEADER = f"| {' | '.join(SUMMARY_COLUMNS)} |\n{'| --- ' * len(SUMMARY_COLUMNS)}|"


def summaries(arrivals: str, lengths: tuple[int, ...], runs: int) -> Iterator[str]:
    """Lines of a table: runs at 80 % of saturation, against percentiles of 3,000,000 queries."""
    law, policy = ServiceTime.linear(BASE_S, PER_ITEM_S), Policy(BATCH)
    machine = Simulator(law, WORKERS)
    work_s = query_work_s(law, drs.Workload().sample_sizes(200_000), policy).mean()
    rate = 0.8 * WORKERS / work_s

    def schedule(seed: int, queries: int) -> drs.Schedule:
        return drs.Workload(arrivals=arrivals, seed=seed).schedule(rate_qps=rate, queries=queries)

    latency_s = machine.run(schedule(4242, 3_000_000), policy).latency_s
    true_s = [percentile(latency_s, p) for p in (50, 95)]
    for queries in lengths:
        drawn = [schedule(90_000 + seed, queries) for seed in range(runs)]
        for how, found in (
            ("summarize", [drs.summarize(machine.run(one, policy)) for one in drawn]),
            ("stream", [machine.stream([one], policy) for one in drawn]),
        ):
            cells = []
            for ends, truth in zip(("p50_interval_s", "p95_interval_s"), true_s, strict=True):
                ended = [i for s in found if math.isfinite((i := getattr(s, ends))[1])]
                held = sum(low <= truth <= high for low, high in ended)
                cells += [f"{len(ended)} of {runs}", f"{held / len(ended):.1%}" if ended else "–"]
            more = [s.enough_queries for s in found if s.enough_queries]
            enough = f"{np.median(more):,.0f}" if more else "–"
            over = sum(s.overloaded for s in found) / runs
            yield (f"| {arrivals} | {queries:,} | {how} | {' | '.join(cells)} | {over:.1%} | "
                   f"{enough} |")  # fmt: skip


HEADER = """| | holds the truth | answer / truth | range | median width | undecided | time |
| --- | --- | --- | --- | --- | --- | --- |"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, default=100)
    options.add_argument("--tunes", type=int, default=20)
    options.add_argument("--first", type=int, default=FIRST)
    options.add_argument("--load", nargs="*", default=list(LOADS))
    options.add_argument("--summaries", type=int, default=0)
    options.add_argument("--verbose", action="store_true")
    asked = options.parse_args()
    if asked.summaries:
        print(SUMMARY_HEADER, flush=True)
        for arrivals, lengths in SUMMARIES.items():
            for line in summaries(arrivals, lengths, asked.summaries):
                print(line, flush=True)
        return
    print(HEADER, flush=True)
    seeds, tunes = (range(asked.first, asked.first + n) for n in (asked.seeds, asked.tunes))
    for name in asked.load:
        began, found = time.monotonic(), list(capacities(name, seeds))
        print(said(f"find_capacity, {name}", found), flush=True)
        studies = list(tunings(name, tunes))
        best = [answer for answer, _ in studies]
        print(said(f"tune, {name}: best", best), flush=True)
        print(said(f"tune, {name}: speed-up", [r for _, r in studies if r]), flush=True)
        if asked.verbose:
            for one in [*found, *best]:
                print(one)
        print(f"# {name}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
