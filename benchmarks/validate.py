"""Writes `docs/validation.md`: what simulation predicts beside what this machine does.

    make validate      # the eight models at full size, about 20 minutes
    python benchmarks/validate.py --models ncf wnd --add    # in parts: rows of other models stay

For each model the policy that simulation finds best; then turns of half a minute: part of a
profile, runs at 50, 70 and 90 % of the capacity and runs at it, another part. Machines drift, so
each turn is predicted from its own two parts, run by run on the same arrivals, and turns are
replications. What is left is split: a run's own requests say how much slower than its profile the
machine was in those seconds, and prediction at that pace has the model's error alone. First of all
the engine with a runtime that sleeps, which no drift can move.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import deeprecsys as drs
from deeprecsys.analysis.statistics import ratio_interval
from deeprecsys.core import SLA, Policy, Requests, UserError
from deeprecsys.engine import topology
from deeprecsys.machines.service_time import Overhead, Profile, ServiceTime, query_work_s
from deeprecsys.models import NAMES, Model, get_spec, load_model
from deeprecsys.runtimes.stub import FixedTime
from deeprecsys.simulation import Simulator
from deeprecsys.tuning import find_capacity, tune
from deeprecsys.tuning.capacity import FINE, Probe, search_rate
from deeprecsys.tuning.interleave import Contestant
from draw import draw

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "runs" / "validation.json"  # what rows are made of
PAGE, FIGURE = ROOT / "docs" / "validation.md", ROOT / "docs" / "validation.png"
WORKLOAD = drs.Workload()
SHARES = (0.5, 0.7, 0.9)
TURNS, PART_S, RUN_S, FULL = 5, 4.0, 4.0, 2
_FULL_TURN = 500  # seeds of the runs at the capacity

Known = tuple[float, float, float]  # a ratio with a 95 % interval over the turns


@dataclass
class Turn:
    """One turn's logs of predicted over measured: p95 by share, the same at the run's own pace,
    and that pace: how much slower its requests were than the profile's."""

    p95: dict[float, float]
    own_p95: dict[float, float]
    pace: float


@dataclass
class Case:
    """One model: predicted over measured capacity, and p95s by share of the measured one."""

    name: str
    sla: SLA
    policy: Policy
    measured: Known
    predicted_qps: float
    capacity: Known
    turns: list[Turn]

    def p95(self, share: float) -> Known:
        return ratio_interval(np.array([turn.p95[share] for turn in self.turns]))

    def own_p95(self, share: float) -> Known:
        return ratio_interval(np.array([turn.own_p95[share] for turn in self.turns]))

    @property
    def pace(self) -> Known:
        return ratio_interval(np.array([turn.pace for turn in self.turns]))


@dataclass
class Rows:
    """What the page's first part is made of; cases by model."""

    asleep: str
    cases: dict[str, Case]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", choices=NAMES, default=list(NAMES))
    parser.add_argument("--add", action="store_true", help="to the rows of the last run")
    parser.add_argument("--turns", type=int, default=TURNS, help="fewer, where time is short")
    wanted = parser.parse_args()
    if wanted.add and KEPT.is_file():
        kept = msgspec.json.decode(KEPT.read_bytes(), type=Rows)
    else:
        kept = Rows(sleeping(), {})
    print(kept.asleep, flush=True)
    written = PAGE.read_text()
    others = written[written.index("\n## ") :]  # what other commands write there
    for name in wanted.models:
        model = load_model(name)
        try:
            kept.cases[name] = validate(model, wanted.turns)
        except UserError as error:
            print(f"{name}: {error}", flush=True)
            continue
        finally:
            del model
        print(_row(kept.cases[name]), flush=True)
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_bytes(msgspec.json.encode(kept))
        cases = [kept.cases[known] for known in NAMES if known in kept.cases]
        PAGE.write_text(page(kept.asleep, cases) + others)
    print(f"wrote {PAGE}")


def validate(model: Model, times: int = TURNS) -> Case:
    with drs.Engine(model) as engine:
        first = engine.profile(budget_s=PART_S)
        target = get_spec(model.name).target
        sla, policy, guess_qps = _reachable(first, engine.workers, target)
        probe = Probe(engine, WORKLOAD, sla)
        found = search_rate(probe, policy, FINE.within(20, 8), until=probe.clock() + 20,
                            guess_qps=guess_qps)  # fmt: skip
        one = Contestant.at(policy, found.rate_qps or guess_qps, probe)
        turns, predicted, lasts_s = [], [], max(RUN_S, 250 / one.rate_qps)
        for number in range(times):
            parts = [engine.profile(budget_s=PART_S)]
            runs = {share: _traced(engine, share * one.rate_qps, policy, lasts_s, number)
                    for share in SHARES}  # fmt: skip
            for k in range(FULL):
                ((rate, ahead),) = one.estimator.ahead(one.rate_qps)
                turn = _FULL_TURN + FULL * number + k
                one.take([probe(policy, rate, lasts_s, turn=turn, whole=True, ahead=ahead)])
            parts.append(engine.profile(budget_s=PART_S))
            twin = engine.twin(_merged(parts))
            turns.append(_turn(twin, policy, runs))
            predicted.append(math.log(find_capacity(twin, WORKLOAD, sla, policy).rate_qps))
    known = [i for i, counted in enumerate(one.rounds) if counted is not None]
    if len(known) < times:
        raise UserError("others used the cores during most runs: measure when they do not")
    measured = one.log_rates(known)
    by_turn = [measured[[i // FULL == n for i in known]].mean() for n in range(times)
               if any(i // FULL == n for i in known)]  # fmt: skip
    ours = [predicted[n] for n in range(times) if any(i // FULL == n for i in known)]
    return Case(model.name, sla, policy, ratio_interval(measured, fitted=2),
                math.exp(float(np.mean(predicted))),
                ratio_interval(np.array(ours) - np.array(by_turn)), turns)  # fmt: skip


Run = tuple[drs.Schedule, drs.Records, Requests]


def _traced(engine: drs.Engine, rate: float, policy: Policy, lasts_s: float, turn: int) -> Run:
    schedule = WORKLOAD.reseed(200 + turn).schedule(rate_qps=rate, duration_s=2 * lasts_s)
    return schedule, *engine.traced_run(schedule, policy)


def _turn(twin: Simulator, policy: Policy, runs: dict[float, Run]) -> Turn:
    """Each run predicted on its own arrivals, by the profile and at its own pace."""
    p95, own, paces = {}, {}, {}
    for share, (schedule, records, requests) in runs.items():
        simulated, theirs = twin.traced_run(schedule, policy)
        pace = _busy_s(requests) / _busy_s(theirs)
        dense = replace(schedule, arrival_s=schedule.arrival_s / pace)
        paced = pace * twin.run(dense, policy).latency_s
        seen = np.percentile(records.latency_s, 95)
        p95[share] = math.log(np.percentile(simulated.latency_s, 95) / seen)
        own[share] = math.log(np.percentile(paced, 95) / seen)
        paces[share] = math.log(pace)
    return Turn(p95, own, float(np.mean(list(paces.values()))))


def _busy_s(requests: Requests) -> float:
    return float((requests.finish_s - requests.start_s).sum())


def sleeping() -> str:
    """The live engine with requests of fixed time, against the same law simulated."""
    law, policy, workers = ServiceTime.linear(2e-2, 2e-4), Policy(128), 4
    model = load_model("ncf", scale=0.001)
    rate = 0.7 * workers / float(np.mean(law(np.array([128.0, 128.0, 14.0]))) * 2.5)
    load = WORKLOAD.reseed(7).schedule(rate_qps=rate, duration_s=40)
    with drs.Engine(model, workers, FixedTime(law)) as engine:
        live = engine.run(load, policy).latency_s
    simulated = Simulator(law, workers).run(load, policy).latency_s
    mean, p95 = (
        live.mean() / simulated.mean(),
        np.percentile(live, 95) / np.percentile(simulated, 95),
    )
    return (
        f"Engine with requests of a fixed time over the simulation of the same schedule "
        f"({len(load):,} queries, {workers} workers): mean {mean:.3f}, p95 {p95:.3f}."
    )


def _reachable(profile: Profile, workers: int, target: SLA) -> tuple[SLA, Policy, float]:
    """The published target, or the first of its doubles at which the machine is well used.

    Under a target that only an almost idle machine meets, capacity says little of queues.
    """
    simulator = Simulator(ServiceTime.from_profile(profile, extrapolate=True), workers)
    sla = target
    while True:
        best = tune(simulator, WORKLOAD, sla, "exhaustive").best
        if best is not None:
            sizes = WORKLOAD.sample_sizes(4096)
            work_s = query_work_s(simulator.service, sizes, best.policy).mean()
            if best.capacity.rate_qps * work_s > 0.5 * workers:
                return sla, best.policy, best.capacity.rate_qps
        sla = SLA(2 * sla.latency_s, sla.percentile)


def _merged(profiles: list[Profile]) -> Profile:
    """All their samples and all their weather; of the other overheads, the mean."""
    whole, *others = profiles
    for other in others:
        for point, samples in other.points.items():
            whole = whole.with_visit(point, samples.seconds)
    extra: dict[float, list[float]] = {}
    for overhead in (profile.overhead for profile in profiles):
        for idle_s, seconds in overhead.by_idle_s:
            extra.setdefault(idle_s, []).append(seconds)
    return whole.with_overhead(
        Overhead(
            tuple((idle_s, float(np.mean(extra[idle_s]))) for idle_s in sorted(extra)),
            float(np.mean([profile.overhead.query_s for profile in profiles])),
            float(np.mean([profile.overhead.slower for profile in profiles])),
            sum((profile.overhead.weather for profile in profiles), ()),
        )
    )


def page(asleep: str, cases: list[Case]) -> str:
    machine, versions = topology.machine(), topology.versions()
    capacity = [abs(c.capacity[0] - 1) for c in cases]
    p95 = [abs(c.p95(0.7)[0] - 1) for c in cases]
    own = [abs(c.own_p95(0.7)[0] - 1) for c in cases]
    turns = " or ".join(map(str, sorted({len(c.turns) for c in cases})))
    drawn = draw(_figure(cases), FIGURE)
    heads = ["model", "target", "policy", "measured queries/s", "predicted", "predicted / measured",
             *(f"p95 at {s:.0%}" for s in SHARES), "pace", "p95 at 70%, own pace"]  # fmt: skip
    table = "\n".join(
        ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads), *map(_row, cases)]
    )
    return f"""# Validation

Written by `make validate` on {time.strftime("%Y-%m-%d")}, on {machine["cpu"]},
{machine["cores"]} cores, {machine["simd"]}, {machine["memory_bytes"] / 2**30:.0f} GiB;
{", ".join(f"{k} {v}" for k, v in versions.items())}.
Full-size models, seed 0, production sizes, Poisson arrivals.

{asleep}

Each model under the policy that simulation finds best, in {turns} turns: part of a profile, runs at
50, 70, 90 and 100 % of the capacity, another part; each turn predicted from its own two parts, run
by run on the same arrivals. Simulated over measured, with 95 % intervals over the turns. *Pace*:
how much longer the runs' requests took than the profile's, which is the machine's drift and what
else differs between a profile and a run; *own pace*: predicted with that taken out. A target other
than the published one is the first of its doubles that leaves the machine well used.

{table}

Capacity: largest error {max(capacity):.1%}, median {np.median(capacity):.1%}. p95 at 70 %: median
error {np.median(p95):.1%}, at its own pace {np.median(own):.1%}.
{"![Simulated over measured](validation.png)" if drawn else ""}
"""


def _row(case: Case) -> str:
    cells = [
        case.name, str(case.sla), str(case.policy), _said(case.measured, ".4g"),
        f"{case.predicted_qps:.4g}", f"**{_said(case.capacity)}**",
        *(_said(case.p95(share)) for share in SHARES), _said(case.pace), _said(case.own_p95(0.7)),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _said(known: Known, form: str = ".2f") -> str:
    value, lo, hi = known
    return f"{value:{form}} [{lo:{form}}, {hi:{form}}]"


def _figure(cases: list[Case]) -> dict[str, Any]:
    names = [case.name for case in cases]
    series = {"capacity": [c.capacity[0] for c in cases]}
    series |= {f"p95 at {s:.0%}": [c.p95(s)[0] for c in cases] for s in SHARES}
    return {
        "data": [
            {"type": "scatter", "mode": "markers", "name": name, "x": names, "y": values,
             "marker": {"size": 14 if name == "capacity" else 9}}
            for name, values in series.items()
        ],
        "layout": {
            "yaxis": {"title": {"text": "simulated / measured"}, "range": [0.6, 1.4]},
            "shapes": [{"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": 0.9, "y1": 1.1,
                        "fillcolor": "#8a8f98", "opacity": 0.15, "line": {"width": 0}}],
            "legend": {"orientation": "h", "y": 1.1, "x": 0},
            "margin": {"l": 60, "r": 20, "t": 10, "b": 50},
        },
    }  # fmt: skip


if __name__ == "__main__":
    main()
