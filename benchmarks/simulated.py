"""Parts of `run.py` on simulation: its speed, searches in it, the adaptive policy, guided tuning.

Each yields (what, measured, wanted, met). Profiles of the full-size models are measured once, into
`runs/profiles/`, and taken from there afterwards.
"""

from __future__ import annotations

import math
import resource
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

import deeprecsys as drs
from deeprecsys.core import SLA, Policy, Schedule, replace
from deeprecsys.experiments.guided import adaptive_policy
from deeprecsys.fleet.fleet import Fleet, Kind
from deeprecsys.machines.accelerators import accelerator
from deeprecsys.machines.service_time import Overhead, Profile, ServiceTime
from deeprecsys.models import NAMES, get_spec, load_model
from deeprecsys.simulation import Simulator
from deeprecsys.tuning import find_capacity, tune
from deeprecsys.tuning.capacity import Probe
from deeprecsys.tuning.interleave import Contestant, interleave, ratio_of
from deeprecsys.tuning.searches import BACKLOGS
from deeprecsys.workload.mix import Mix, Share

Found = tuple[str, str, str, bool | None]
PROFILES = Path("runs/profiles")
WORKLOAD = drs.Workload()
EXHAUSTIVE_S = 480.0


def profile_of(name: str, seconds: float = 20.0) -> Profile:
    """The model's profile on this machine: kept, or measured now."""
    path = PROFILES / f"{name}.json"
    if path.is_file():
        return Profile.load(path)
    with drs.Engine(load_model(name)) as engine:
        found = engine.profile(budget_s=seconds)
    PROFILES.mkdir(parents=True, exist_ok=True)
    found.save(path)
    return found


def adaptive_of(name: str) -> Policy:
    return adaptive_policy(profile_of(name), get_spec(name).target)


def simulator_of(name: str, workers: int) -> Simulator:
    return Simulator(ServiceTime.from_profile(profile_of(name), extrapolate=True), workers)


def speed() -> Iterator[Found]:
    """Requests a second of one core, static policy, best of five; service times from a profile."""
    law = ServiceTime.from_profile(profile_of("dlrm-rmc1"))
    for workers in (2, 8, 16, 40, 64):
        simulator = Simulator(law, workers)
        rate = 0.8 * workers / float(law(np.array([256.0]))[0])
        schedule = WORKLOAD.schedule(rate_qps=rate, queries=400_000)
        policy = Policy(32)
        requests = int(np.ceil(schedule.size / policy.batch_size).sum())
        simulator.run(Schedule(schedule.arrival_s[:9], schedule.size[:9]), policy)
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            simulator.run(schedule, policy)
            seconds.append(time.perf_counter() - began)
        best = requests / min(seconds) / 1e6
        yield (f"simulated requests of dlrm-rmc1, {workers} workers, batch size 32",
               f"{best:.1f} million/s", "10 million/s", best >= 10)  # fmt: skip


def climb40() -> Iterator[Found]:
    """Hill climb over exhaustive search on 40 simulated workers, three targets each."""
    ratios = {}
    for name in NAMES:
        target = get_spec(name).target
        for factor in (0.5, 1.0, 1.5):
            sla = SLA(factor * target.latency_s, target.percentile)
            system = simulator_of(name, 40)
            best = {
                method: tune(system, WORKLOAD, sla, method).best
                for method in ("hill-climb", "exhaustive")
            }
            if best["exhaustive"] is None:
                ratios[name, factor] = float("nan")
                continue
            # A fresh, long look at both, so that luck in the search does not decide.
            rates = [
                find_capacity(system, WORKLOAD.reseed(77), sla, one.policy).rate_qps if one else 0.0
                for one in best.values()
            ]
            ratios[name, factor] = rates[0] / rates[1]
    known = {k: r for k, r in ratios.items() if r == r}
    worst = min(known, key=lambda k: known[k])
    none = [f"{name} at {factor:g}×" for (name, factor), r in ratios.items() if r != r]
    yield (
        "hill climb / exhaustive on 40 simulated workers, eight models, three targets",
        f"lowest {known[worst]:.3f} ({worst[0]} at {worst[1]:g}×), median "
        f"{np.median(list(known.values())):.3f} of {len(known)}"
        + (f"; no policy meets {', '.join(none)}" if none else ""),
        "0.97", known[worst] >= 0.97,
    )  # fmt: skip


def adaptive40() -> Iterator[Found]:
    """The adaptive policy beside the tuned static one on 40 simulated workers."""
    for name in NAMES:
        target = get_spec(name).target
        system = simulator_of(name, 40)
        best = tune(system, WORKLOAD, target, "exhaustive").best
        if best is None:
            yield (
                f"adaptive / tuned static, 40 simulated workers, {name}",
                "none meets",
                "1.0",
                None,
            )
            continue
        static = find_capacity(system, WORKLOAD.reseed(77), target, best.policy).rate_qps
        pull = adaptive_of(name)
        adaptive = find_capacity(system, WORKLOAD.reseed(77), target, pull).rate_qps
        p95 = []
        for share in (0.1, 0.5, 0.9):
            rate = share * static
            one, other = (
                system.stream(WORKLOAD.pieces(rate_qps=rate, queries=200_000), p)
                for p in (adaptive_of(name), best.policy)
            )
            p95.append(one.p95_s / other.p95_s)
        ratio = adaptive / static
        yield (
            f"adaptive (16 to {pull.most_items}) / tuned static ({best.policy.batch_size}), "
            f"40 simulated workers, {name}",
            f"capacity {ratio:.3f}; p95 at 10, 50, 90 % of it "
            f"{', '.join(f'{r:.2f}' for r in p95)}",
            "1.0; lower at 50 %", ratio >= 1.0 and p95[1] < 1.0,
        )  # fmt: skip


def shift40() -> Iterator[Found]:
    """The sizes change under a policy tuned for others; and a day with a peak twice its trough."""
    for name in ("dlrm-rmc1", "dlrm-rmc3", "ncf"):
        target, system = get_spec(name).target, simulator_of(name, 40)
        best = tune(system, WORKLOAD, target, "exhaustive").best
        if best is None:
            continue
        for sizes in ("lognormal", "fixed:64", "uniform:1-1000"):
            other = drs.Workload(sizes=sizes, seed=77)
            rates = [find_capacity(system, other, target, p).rate_qps
                     for p in (adaptive_of(name), best.policy)]  # fmt: skip
            yield (f"{name}: tuned for production, then {sizes}: adaptive / static",
                   f"{rates[0] / rates[1]:.3f}", "", None)  # fmt: skip
        day = drs.Workload(arrivals="daily:600", seed=5)
        rate = best.capacity.rate_qps / 1.4  # the peak is 4/3 of the mean
        found = [system.stream(day.pieces(rate_qps=rate, duration_s=600), p)
                 for p in (adaptive_of(name), best.policy)]  # fmt: skip
        p50, p95 = (getattr(found[0], p) / getattr(found[1], p) for p in ("p50_s", "p95_s"))
        yield (f"{name}: a day with a peak near capacity: adaptive / static",
               f"p50 {p50:.2f}, p95 {p95:.2f}", "", None)  # fmt: skip


def adaptive2() -> Iterator[Found]:
    """Live on this machine, turn by turn against the best static policy that simulation names."""
    for name in ("dlrm-rmc1", "dlrm-rmc3", "ncf"):
        model, target = load_model(name), get_spec(name).target
        with drs.Engine(model) as engine:
            system = simulator_of(name, engine.workers)
            best = tune(system, WORKLOAD, target, "exhaustive").best
            assert best is not None
            rate = find_capacity(engine, WORKLOAD, target, best.policy, budget_s=20).rate_qps
            probe = Probe(engine, WORKLOAD, target)
            pair = [Contestant.at(p, rate, probe) for p in (adaptive_of(name), best.policy)]
            interleave(probe, pair, lambda _: 6.0, until=time.monotonic() + 90)
            ratio = ratio_of(*pair)
            half: list[list[float]] = [[], []]
            for seed in range(4):
                load = WORKLOAD.reseed(seed).schedule(rate_qps=rate / 2, duration_s=4)
                for into, policy in zip(half, (adaptive_of(name), best.policy), strict=True):
                    into.append(drs.summarize(engine.run(load, policy)).p95_s)
        del model
        lower = float(np.median(np.array(half[0]) / np.array(half[1])))
        said = f"{ratio.ratio:.3f} [{ratio.interval[0]:.3f}, {ratio.interval[1]:.3f}]"
        yield (
            f"adaptive (16 to {adaptive_of(name).most_items}) / tuned static "
            f"({best.policy.batch_size}), live, {name}",
            f"capacity {said}; p95 at half load {lower:.2f}",
            "1.0; lower", ratio.interval[1] >= 1.0 and lower < 1.0,
        )  # fmt: skip


def thresholds() -> Iterator[Found]:
    """The threshold by climbing over that by trying all; and what the emulated device adds."""
    for workers in (4, 40):
        climbed, added, said = {}, {}, []
        for name in NAMES:
            system = with_device(name, workers)
            target = get_spec(name).target
            climb, every = (tune(system, WORKLOAD, target, m).best
                            for m in ("hill-climb", "exhaustive"))  # fmt: skip
            alone = tune(simulator_of(name, workers), WORKLOAD, target, "hill-climb").best
            if climb is None or every is None:
                said.append(f"{name}: none meets")
                continue
            fresh = WORKLOAD.reseed(77)
            rates = [find_capacity(system, fresh, target, one.policy).rate_qps
                     for one in (climb, every)]  # fmt: skip
            climbed[name] = rates[0] / rates[1]
            threshold = climb.policy.offload_threshold
            if alone is None:
                said.append(f"{name} ≥{threshold}: only with it")
                continue
            cores = find_capacity(system, fresh, target, alone.policy).rate_qps
            added[name] = rates[0] / cores
            said.append(f"{name} ≥{threshold}: {added[name]:.2f}×")
        worst = min(climbed, key=lambda n: climbed[n])
        yield (f"threshold by climbing / by trying all, {workers} simulated cores, emulated GTX "
               "1080 Ti", f"lowest {climbed[worst]:.3f} ({worst})", "0.97",
               climbed[worst] >= 0.97)  # fmt: skip
        yield (f"cores and emulated GTX 1080 Ti / tuned cores, {workers} simulated cores",
               "; ".join(said), "1.0", min(added.values()) >= 1.0)  # fmt: skip


def with_device(name: str, workers: int) -> Simulator:
    profile = profile_of(name)
    device = accelerator("gtx-1080ti", name, profile)
    law = ServiceTime.from_profile(profile, extrapolate=True)
    return Simulator(law, workers, accelerators=[device])


def _fresh_capacity(system: Simulator, sla: SLA, policy: Policy) -> float:
    """On another seed than the search's, so that luck in it does not count."""
    return find_capacity(system, WORKLOAD.reseed(77), sla, policy).rate_qps


def backlog() -> Iterator[Found]:
    """Staying on the cores while the device has much to do; and all knobs at once."""
    stays, joint = {}, {}
    for name in NAMES:
        system, target = with_device(name, 4), get_spec(name).target
        climb, every = (tune(system, WORKLOAD, target, m).best for m in ("hill-climb", "joint"))
        if climb is None or every is None:
            continue
        capacity = partial(_fresh_capacity, system, target)
        plain = capacity(climb.policy)
        joint[name] = (capacity(every.policy) / plain, every.policy)
        if climb.policy.offload_threshold is not None:
            gains = {items: capacity(replace(climb.policy, offload_backlog=items)) / plain
                     for items in BACKLOGS}  # fmt: skip
            best = max(gains, key=lambda items: gains[items])
            stays[name] = (gains[best], best)
    yield (
        "staying on the cores while the device has more than so many items to do / waiting for it, "
        "4 simulated cores, emulated GTX 1080 Ti, best of five limits",
        "; ".join(f"{n} {ratio:.3f} ({items})" for n, (ratio, items) in stays.items()), "", None,
    )  # fmt: skip
    yield (
        "joint search of 100 policies (batch size, threshold, backlog, workers) / the two-phase "
        "climb, the same machine",
        "; ".join(f"{n} {ratio:.3f} ({policy})" for n, (ratio, policy) in joint.items()), "", None,
    )  # fmt: skip


def guided() -> Iterator[Found]:
    """`tune --method simulated` against an exhaustive live search; both judged turn by turn."""
    for name in ("dlrm-rmc1",):
        model, target = load_model(name), get_spec(name).target
        began = time.monotonic()
        with drs.Engine(model) as engine:
            quick = drs.tune(engine, WORKLOAD, target, "simulated", budget_s=48)
            quick_s = time.monotonic() - began
            slow = drs.tune(engine, WORKLOAD, target, "exhaustive", budget_s=EXHAUSTIVE_S)
            assert quick.best is not None
            assert slow.best is not None
            probe = Probe(engine, WORKLOAD, target)
            pair = [Contestant.at(s.best.policy, s.best.capacity.rate_qps, probe)
                    for s in (quick, slow)]  # fmt: skip
            if pair[0].policy == pair[1].policy:
                ratio, said = 1.0, "1, the same policy"
            else:
                interleave(probe, pair, lambda _: 6.0, until=time.monotonic() + 60)
                found = ratio_of(*pair)
                ratio = found.ratio
                said = f"{ratio:.3f} [{found.interval[0]:.3f}, {found.interval[1]:.3f}]"
        del model
        reported = quick.best.capacity.rate_qps / slow.best.capacity.rate_qps
        yield (
            f"tune {name} by simulation / exhaustive live: capacity of its policy",
            f"{said}; batch sizes {quick.best.policy.batch_size} and "
            f"{slow.best.policy.batch_size}; reported capacities {reported:.3f}",
            "0.97", ratio >= 0.97,
        )  # fmt: skip
        yield (
            f"tune {name} by simulation: seconds after the model is loaded / exhaustive's",
            f"{quick_s:.0f} / {slow.elapsed_s:.0f}", "60; a tenth",
            quick_s <= 60 and quick_s <= slow.elapsed_s / 8,
        )  # fmt: skip


def loop() -> Iterator[Found]:
    """Capacity by simulation of a profile, with and without what a live worker adds, over live."""
    policy = Policy(128)
    for name in ("ncf", "dlrm-rmc1"):
        target = get_spec(name).target
        with drs.Engine(load_model(name)) as engine:
            profile = engine.profile(budget_s=20.0)
            live = find_capacity(engine, WORKLOAD, target, policy, budget_s=60)
            ratios = []
            for known in (profile, profile.with_overhead(Overhead())):
                law = ServiceTime.from_profile(known, extrapolate=True)
                found = find_capacity(Simulator(law, engine.workers), WORKLOAD, target, policy)
                ratios.append(found.rate_qps / live.rate_qps if live.rate_qps else math.nan)
        yield (
            f"capacity simulated / live, {name} at batch size 128: from its profile, and from the "
            "profile's tight loop alone",
            "{:.3f}, {:.3f}".format(*ratios), "", None,
        )  # fmt: skip


def fleets() -> Iterator[Found]:
    """10⁸ queries over 1,000 machines of 40 workers; a plan for a million queries/s."""
    model, queries = "dlrm-rmc3", 100_000_000
    law = ServiceTime.from_profile(profile_of(model), extrapolate=True)
    capacity = find_capacity(Simulator(law, 40), WORKLOAD, get_spec(model).target, Policy(1024))
    kind = Kind("m", 1000, 40, {model: law}, {model: Policy(1024)})
    fleet, rate = Fleet([kind], "two-choices"), 0.6 * 1000 * capacity.rate_qps
    mix = Mix([Share(model, rate)])
    fleet.stream(mix.pieces(0.01), 0.01)  # compiles
    seconds = queries / rate
    began = time.perf_counter()
    day = fleet.stream(mix.pieces(seconds), seconds)
    took = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    yield (
        "1,000 machines of 40 workers, 60 % load, two choices, streaming: 10⁸ queries",
        f"{took:.0f} s for {day.queries:,}, {peak:.2f} GB; p99 "
        f"{day.percentile_s(99) * 1e3:.1f} ms; cores {day.busy()['m'].mean():.0%} busy",
        "300 s; 2 GB", took <= 300 and peak <= 2,
    )  # fmt: skip
    began = time.perf_counter()
    command = ["deeprecsys", "plan", "examples/plan.toml", "--qps", "1000000", "--out",
               "runs/plan"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    took = time.perf_counter() - began
    yield ("`plan` for a million queries/s, three kinds, three balancers, whole command",
           f"{took:.0f} s", "60 s", took <= 60)  # fmt: skip


PARTS = (
    fleets, speed, climb40, adaptive40, shift40, thresholds, backlog, adaptive2, guided, loop,
)  # fmt: skip
