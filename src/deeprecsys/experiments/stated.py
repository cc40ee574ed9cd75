"""A fleet as a plan states it, simulated: does it hold the target, and how busy is what?

A large fleet stands for itself by a sample of its machines, in the same proportions and at the same
load; no sample flatters it, since all balancers do better among more machines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deeprecsys.core import SLA
from deeprecsys.experiments.counts import Supply, remaining
from deeprecsys.fleet.fleet import Fleet, FleetDay, Kind
from deeprecsys.workload.mix import Mix, Share

SAMPLE = 24
# A run lasts so many targets' length, so that a queue can build up: a short one to search by, a
# long one to believe. The last of its stretches must hold the target as well.
SHORT, LONG, _STRETCHES = 50, 120, 4
_LEAST_QUERIES, _MOST_QUERIES = 50_000, 4_000_000
# Cores busier than this fall behind sooner or later, even if this run's queue stayed short. An
# accelerator may always be at work: the more waits for it, the more it joins.
_FULL = 0.99


@dataclass(frozen=True)
class Traffic:
    """Of one model, at its peak."""

    model: str
    qps: float
    sla: SLA
    sizes: str = "production"


@dataclass(frozen=True)
class Stated:
    """So many machines of a kind (its own `count` is ignored), each of which bears `qps`."""

    kind: Kind
    machines: int
    qps: float


@dataclass(frozen=True)
class Check:
    """What came out of a simulation. reached_s: the target's percentile, of the whole run or of
    its last quarter, whichever is worse. busy, devices_busy: by kind, at the peak, all machines up.
    """

    holds: bool
    reached_s: float
    machines: int
    seconds: float
    seeds: tuple[int, ...]
    busy: Mapping[str, float]
    devices_busy: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        return {
            "holds": self.holds,
            "reached_s": self.reached_s,
            "machines": self.machines,
            "seconds": self.seconds,
            "seeds": list(self.seeds),
        }


def judged(
    stated: Sequence[Stated], spare: int, balancer: str, traffic: Traffic, seeds: tuple[int, int]
) -> Check:
    """First without its `spare` most capable machines, then with all, each under its own seed."""
    supplies = [Supply(part.qps, 0.0) for part in stated]
    left = remaining(supplies, [part.machines for part in stated], spare)
    without = [replace(part, machines=n) for part, n in zip(stated, left, strict=True) if n]
    worst = sampled(without, balancer, traffic, seeds[0], LONG)
    every = sampled(stated, balancer, traffic, seeds[1], LONG)
    busy, devices = mean_of(every.busy()), mean_of(every.devices_busy())
    return Check(
        holds=holds(worst, traffic.sla) and holds(every, traffic.sla),
        reached_s=max(reached_s(worst, traffic.sla), reached_s(every, traffic.sla)),
        machines=every.fleet.machines,
        seconds=every.duration_s,
        seeds=seeds,
        busy=busy,
        devices_busy=devices,
    )


def sampled(
    stated: Sequence[Stated], balancer: str, traffic: Traffic, seed: int, targets: int
) -> FleetDay:
    """A run at the peak, of all these machines or of a sample of them."""
    counts = [part.machines for part in stated]
    sample = sample_of(counts)
    share = _bears(stated, sample) / _bears(stated, counts)
    kinds = [replace(part.kind, count=n) for part, n in zip(stated, sample, strict=True)]
    rate = traffic.qps * share
    most = max(SHORT * traffic.sla.latency_s, _MOST_QUERIES / rate)
    seconds = max(min(targets * traffic.sla.latency_s, most), _LEAST_QUERIES / rate)
    mix = Mix([Share(traffic.model, rate, traffic.sizes)], seed=seed)
    return Fleet(kinds, balancer, seed=seed).stream(mix.pieces(seconds), seconds, _STRETCHES)


def sample_of(counts: Sequence[int]) -> list[int]:
    """All where they are few; else some `SAMPLE` in the same proportions, one of each at least."""
    total = sum(counts)
    if total <= SAMPLE:
        return list(counts)
    return [max(1, round(SAMPLE * n / total)) for n in counts]


def holds(day: FleetDay, sla: SLA) -> bool:
    busiest = max(mean_of(day.busy()).values())
    return busiest <= _FULL and reached_s(day, sla) <= sla.latency_s


def reached_s(day: FleetDay, sla: SLA) -> float:
    """Infinite where it was overloaded, or nothing came."""
    found = max(day.percentile_s(sla.percentile), day.percentiles_s(sla.percentile)[-1])
    return math.inf if day.overloaded or math.isnan(found) else found


def mean_of(shares: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(share.mean()) for name, share in shares.items()}


def _bears(stated: Sequence[Stated], counts: Sequence[int]) -> float:
    return sum(n * part.qps for n, part in zip(counts, stated, strict=True))
