"""How many machines of which kind a traffic needs: single machines tuned, then fleets of them.

For each kind: the best policy of one simulated machine; the rate a machine of a fleet behind a
balancer can bear, found on a sample of the fleet; machines, cost and power from that. Joins
simulation and tuning, which know nothing of each other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from deeprecsys.core import SLA, Policy, UserError
from deeprecsys.fleet.fleet import Fleet, FleetDay, Kind
from deeprecsys.simulation import Simulator
from deeprecsys.tuning import find_capacity, tune
from deeprecsys.tuning.binds import what_binds
from deeprecsys.workload import Workload
from deeprecsys.workload.mix import Mix, Share

# A fleet is judged by a sample of so many of its machines, and a run of so many targets' length (so
# that a queue can build up), in which the last quarter must hold the target as well.
_SAMPLE, _TARGETS, _STRETCHES = 24, 50, 4
# Of a machine's own capacity, what one in a fleet may bear: the first that holds.
_LEAST_QUERIES = 50_000
_SHARES = (1.02, 1.0, 0.99, 0.98, 0.97, 0.96, 0.95, 0.93, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.35, 0.2)
# Cores busier than this fall behind sooner or later, even if this run's queue stayed short.
_FULL = 0.99


@dataclass(frozen=True)
class Demand:
    """queries/s at the daily peak, `growth` to come (0.2: a fifth more), machines to spare."""

    model: str
    peak_qps: float
    sla: SLA
    sizes: str = "production"
    growth: float = 0.0
    spare: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.peak_qps < math.inf:
            raise UserError(f"the peak must be a positive rate, not {self.peak_qps:g}")
        if not 0 <= self.growth < math.inf or self.spare < 0:
            raise UserError("growth and spare machines must not be negative")

    @property
    def planned_qps(self) -> float:
        return self.peak_qps * (1 + self.growth)


@dataclass(frozen=True)
class Offer:
    """A kind as the user states it; its `count` is ignored. policy None: to be tuned."""

    kind: Kind
    cost: float | None = None
    watts: tuple[float, float] | None = None
    most: int | None = None
    policy: Policy | None = None


@dataclass(frozen=True)
class Answer:
    """One kind behind one balancer. fleet_qps: of one machine in a fleet; None: the target is out
    of reach, and idle_s is what an idle machine gives."""

    offer: Offer
    balancer: str
    policy: Policy | None
    single_qps: float
    fleet_qps: float | None
    machines: int | None
    busy: float | None
    binds: str
    idle_s: float | None = None

    @property
    def cost(self) -> float | None:
        if self.machines is None or self.offer.cost is None:
            return None
        return self.machines * self.offer.cost

    @property
    def watts(self) -> float | None:
        """At the peak: between idle and at work by how busy the cores are."""
        if self.machines is None or self.offer.watts is None or self.busy is None:
            return None
        idle, work = self.offer.watts
        return self.machines * (idle + min(self.busy, 1.0) * (work - idle))

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.offer.kind.name,
            "balancer": self.balancer,
            "policy": self.policy.to_dict() if self.policy else None,
            "single_qps": self.single_qps,
            "fleet_qps": self.fleet_qps,
            "machines": self.machines,
            "busy": self.busy,
            "cost": self.cost,
            "watts": self.watts,
            "binds": self.binds,
            "idle_s": self.idle_s,
        }


@dataclass(frozen=True)
class Plan:
    """answers: every kind behind every balancer. chosen: machines of each kind, by its best
    balancer; empty where no kind can. peak: the chosen fleet's sample at the peak."""

    demand: Demand
    answers: Sequence[Answer]
    chosen: Sequence[Answer]
    elapsed_s: float


def plan(
    demand: Demand,
    offers: Sequence[Offer],
    balancers: Sequence[str] = ("two-choices", "least-queries", "random"),
    *,
    seed: int = 0,
    on_answer: Callable[[Answer], None] = lambda _: None,
) -> Plan:
    """Tries each kind behind each balancer; UserError for contradictions.

    The cheapest kinds are taken first, by cost (else by number of machines) for each query/s;
    another one only where `most` of the first do not suffice.
    """
    if not offers:
        raise UserError("a plan needs at least one kind of machine")
    costs = [offer.cost is None for offer in offers]
    if any(costs) and not all(costs):
        raise UserError("state the cost of every kind, or of none: else they cannot be compared")
    began = time.monotonic()
    answers: list[Answer] = []
    # The kernels hold no GIL, so threads suffice to use every core.
    with ThreadPoolExecutor(len(offers)) as pool:
        for found in pool.map(lambda o: _answers(o, demand, balancers, seed), offers):
            for answer in found:
                answers.append(answer)
                on_answer(answer)
    return Plan(demand, answers, _choose(demand, answers), time.monotonic() - began)


def _answers(offer: Offer, demand: Demand, balancers: Sequence[str], seed: int) -> Sequence[Answer]:
    kind = offer.kind
    devices = kind.accelerators.get(demand.model, ())
    machine = Simulator(kind.service[demand.model], kind.workers, accelerators=devices, seed=seed)
    workload = Workload(sizes=demand.sizes, seed=seed)
    policy = offer.policy
    if policy is None:
        study = tune(machine, workload, demand.sla, "hill-climb")
        best = study.best or study.baseline
        policy, capacity, idle_s = best.policy, best.capacity, study.idle_p95_s
    else:
        capacity = find_capacity(machine, workload, demand.sla, policy)
        idle_s = capacity.idle_p95_s
    if not capacity.rate_qps:
        return [Answer(offer, "–", None, 0.0, None, None, None, "latency", idle_s)]
    runs, sizes = list(capacity.runs), workload.sample_sizes(4096)
    binds = what_binds(machine.facts(), policy, capacity.rate_qps, sizes, demand.sla, runs).kind
    return [_behind(balancer, offer, demand, policy, capacity.rate_qps, binds, seed)
            for balancer in balancers]  # fmt: skip


def _behind(
    balancer: str,
    offer: Offer,
    demand: Demand,
    policy: Policy,
    single: float,
    binds: str,
    seed: int,
) -> Answer:
    """The highest rate of one machine of a fleet."""
    sample = replace(offer.kind, count=_SAMPLE, policy={demand.model: policy})
    fleet = Fleet([sample], balancer, seed=seed)
    for share in _SHARES:
        rate = share * single
        day = at_rate(fleet, demand, rate, seed)
        worst_s = max(day.percentile_s(demand.sla.percentile),
                      day.percentiles_s(demand.sla.percentile)[-1])  # fmt: skip
        busy = float(day.busy()[sample.name].mean())
        if not day.overloaded and busy <= _FULL and worst_s <= demand.sla.latency_s:
            needed = math.ceil(demand.planned_qps / rate) + demand.spare
            busy *= demand.planned_qps / (rate * needed)
            return Answer(offer, balancer, policy, single, rate, needed, busy, binds)
    return Answer(offer, balancer, policy, single, None, None, None, "balancer")


def at_rate(fleet: Fleet, demand: Demand, machine_qps: float, seed: int = 0) -> FleetDay:
    """A run of a fleet at so many queries/s for each machine."""
    rate = machine_qps * fleet.machines
    seconds = max(_TARGETS * demand.sla.latency_s, _LEAST_QUERIES / rate)
    mix = Mix([Share(demand.model, rate, demand.sizes)], seed=seed)
    return fleet.stream(mix.pieces(seconds), seconds, _STRETCHES)


def _choose(demand: Demand, answers: Sequence[Answer]) -> list[Answer]:
    """Cheapest first until the peak is served; spare machines with the first kind."""
    able = [a for a in answers if a.fleet_qps]
    best: dict[str, Answer] = {}
    for answer in able:
        name = answer.offer.kind.name
        if name not in best or (answer.fleet_qps or 0) > (best[name].fleet_qps or 0):
            best[name] = answer

    def price(answer: Answer) -> float:
        cost = answer.offer.cost
        return (1.0 if cost is None else cost) / (answer.fleet_qps or math.inf)

    left, spare, chosen = demand.planned_qps, demand.spare, []
    for answer in sorted(best.values(), key=price):
        if left <= 0 and not spare:
            break
        qps, most = answer.fleet_qps or 0.0, answer.offer.most
        wanted = math.ceil(left / qps) + spare
        machines = wanted if most is None else min(wanted, most)
        if machines:
            chosen.append(replace(answer, machines=machines))
            spare = max(0, spare - max(0, machines - math.ceil(left / qps)))
            left -= machines * qps
    return chosen if left <= 0 else []
