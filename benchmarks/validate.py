"""Writes `docs/validation.md`: what simulation predicts beside what this machine does.

    make validate      # the eight models at full size, about 20 minutes

For each model: a profile, the policy that simulation finds best, its capacity measured live, then
runs at 50, 70 and 90 % of that, with parts of the profile taken before, between and after, because
machines drift. First of all the engine with a runtime that sleeps, which no drift can move.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import deeprecsys as drs
from deeprecsys.core import SLA, Policy
from deeprecsys.engine import topology
from deeprecsys.machines.service_time import Overhead, Profile, ServiceTime, query_work_s
from deeprecsys.models import NAMES, Model, get_spec, load_model
from deeprecsys.runtimes.stub import FixedTime
from deeprecsys.simulation import Simulator
from deeprecsys.tuning import find_capacity, tune
from draw import draw

ROOT = Path(__file__).parent.parent
PAGE, FIGURE = ROOT / "docs" / "validation.md", ROOT / "docs" / "validation.png"
PROFILES = Path("runs/profiles")
WORKLOAD = drs.Workload()
SHARES = (0.5, 0.7, 0.9)
PERCENTILES = (50, 95, 99)
TURNS, PART_S = 1, 6.0


@dataclass
class Case:
    """One model: predicted and measured capacity, and latencies by share of the measured one."""

    name: str
    sla: SLA
    policy: Policy
    predicted_qps: float
    measured_qps: float
    measured_interval: tuple[float, float]
    decided: bool
    measured_s: dict[float, dict[int, float]]
    predicted_s: dict[float, dict[int, float]]

    @property
    def capacity_ratio(self) -> float:
        return self.predicted_qps / self.measured_qps if self.decided else math.nan

    def ratio(self, share: float, p: int) -> float:
        return self.predicted_s[share][p] / self.measured_s[share][p]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", choices=NAMES, default=list(NAMES))
    wanted = parser.parse_args()
    asleep = sleeping()
    print(asleep, flush=True)
    cases = []
    for name in wanted.models:
        model = load_model(name)
        cases.append(validate(model))
        del model
        print(_row(cases[-1]), flush=True)
        PAGE.write_text(page(asleep, cases))
    print(f"wrote {PAGE}")


def validate(model: Model) -> Case:
    with drs.Engine(model) as engine:
        parts = [engine.profile(budget_s=PART_S)]
        sla, rate = get_spec(model.name).target, 0.0
        while rate == 0:
            sla, policy, rate_guess = _reachable(parts[0], engine.workers, sla)
            found = find_capacity(
                engine, WORKLOAD, sla, policy, budget_s=25 if rate_guess > 50 else 60
            )
            rate = found.rate_qps
            if rate == 0:
                print(f"{model.name}: no rate held {sla} live, trying twice that", flush=True)
                sla = SLA(2 * sla.latency_s, sla.percentile)
        measured: dict[float, list[drs.Records]] = {share: [] for share in SHARES}
        for turn in range(TURNS):
            parts.append(engine.profile(budget_s=PART_S))
            for share in SHARES:
                load = WORKLOAD.reseed(200 + turn).schedule(
                    rate_qps=share * rate, duration_s=min(max(8.0, 300 / rate), 16.0)
                )
                measured[share].append(engine.run(load, policy))
        parts.append(engine.profile(budget_s=PART_S))
        workers = engine.workers
    profile = _merged(parts)
    PROFILES.mkdir(parents=True, exist_ok=True)
    profile.save(PROFILES / f"{model.name}.json")
    simulator = Simulator(ServiceTime.from_profile(profile, extrapolate=True), workers)
    predicted = find_capacity(simulator, WORKLOAD, sla, policy)
    streams = {
        share: simulator.stream(
            WORKLOAD.reseed(300).pieces(rate_qps=share * found.rate_qps, queries=300_000), policy
        )
        for share in SHARES
    }
    return Case(
        model.name, sla, policy, predicted.rate_qps,
        found.rate_qps, found.interval_qps, found.decided,
        {share: _percentiles(np.concatenate([r.latency_s for r in runs]))
         for share, runs in measured.items()},
        {share: {p: getattr(s, f"p{p}_s") for p in PERCENTILES} for share, s in streams.items()},
    )  # fmt: skip


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


def _percentiles(latency_s: Any) -> dict[int, float]:
    return {p: float(np.percentile(latency_s, p)) for p in PERCENTILES}


def page(asleep: str, cases: list[Case]) -> str:
    machine, versions = topology.machine(), topology.versions()
    capacity = [abs(c.capacity_ratio - 1) for c in cases if c.decided] or [math.nan]
    p95 = [abs(c.ratio(0.7, 95) - 1) for c in cases]
    drawn = draw(_figure(cases), FIGURE)
    heads = ["model", "target", "policy", "measured queries/s", "predicted", "ratio",
             *(f"p{p} at {s:.0%}" for s in SHARES for p in PERCENTILES)]  # fmt: skip
    table = "\n".join(
        ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads), *map(_row, cases)]
    )
    return f"""# Validation

Written by `make validate` on {time.strftime("%Y-%m-%d")}, on {machine["cpu"]},
{machine["cores"]} cores, {machine["simd"]}, {machine["memory_bytes"] / 2**30:.0f} GiB;
{", ".join(f"{k} {v}" for k, v in versions.items())}.
Full-size models, seed 0, production sizes, Poisson arrivals.

{asleep}

Each model: its capacity by simulation of its profile over the one measured live, under the policy
that simulation finds best; then latency percentiles, simulated over measured, at 50, 70 and 90 %
of the measured capacity. A target other than the published one is the first of its doubles that
leaves the machine well used.

{table}

Capacity: largest error {max(capacity):.1%}, median {np.median(capacity):.1%}. p95 at 70 %: median
error {np.median(p95):.1%}.
{"![Simulated over measured](validation.png)" if drawn else ""}
"""


def _row(case: Case) -> str:
    lo, hi = case.measured_interval
    cells = [
        case.name, str(case.sla), str(case.policy),
        f"{case.measured_qps:.4g} [{lo:.4g}, {hi:.4g}]", f"{case.predicted_qps:.4g}",
        f"**{case.capacity_ratio:.3f}**" if case.decided else "undecided live",
        *(f"{case.ratio(s, p):.2f}" for s in SHARES for p in PERCENTILES),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _figure(cases: list[Case]) -> dict[str, Any]:
    names = [case.name for case in cases]
    series = {"capacity": [c.capacity_ratio for c in cases]}
    series |= {f"p95 at {s:.0%}": [c.ratio(s, 95) for c in cases] for s in SHARES}
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
