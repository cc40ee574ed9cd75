"""How many machines of which kind a traffic needs: single machines tuned, then fleets of them.

For each kind the best policy of one simulated machine; behind each balancer the rate that a machine
of a fleet bears; counts by the pure rule of `counts.py`. Whatever is answered is then simulated as
it is stated (`stated.py`), under seeds that nothing was chosen by.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from deeprecsys.analysis.usage import Watts
from deeprecsys.core import SLA, Policy, UserError
from deeprecsys.experiments.counts import Supply, cheapest, cost_of
from deeprecsys.experiments.result import Result, origin, target_dict
from deeprecsys.experiments.stated import (
    SAMPLE,
    SHORT,
    Check,
    Stated,
    Traffic,
    holds,
    judged,
    sampled,
)
from deeprecsys.fleet.fleet import Kind
from deeprecsys.report.text import ms
from deeprecsys.simulation import Simulator
from deeprecsys.tuning import Capacity, find_capacity, tune
from deeprecsys.tuning.binds import what_binds
from deeprecsys.workload import Workload

BALANCERS = ("two-choices", "least-queries", "random")
# Of a machine's own capacity, what one in a fleet may bear: the first that holds.
_SHARES = (1.02, 1.0, 0.99, 0.98, 0.97, 0.96, 0.95, 0.93, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.35, 0.2)
# Of what its kinds bear among their own, what they may bear in a mix.
_MIXED = (1.0, 0.99, 0.98, 0.96, 0.93, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
# Seeds of the simulations that are believed, from the one of the search.
_FRESH = (1001, 1002)


@dataclass(frozen=True)
class Demand:
    """queries/s at the daily peak, `growth` to come (0.2: a fifth more), machines to spare. whole,
    most_items: of the model (`core.Servable`)."""

    model: str
    peak_qps: float
    sla: SLA
    sizes: str = "production"
    growth: float = 0.0
    spare: int = 0
    whole: bool = False
    most_items: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.peak_qps < math.inf:
            raise UserError(f"the peak must be a positive rate, not {self.peak_qps:g}")
        if not 0 <= self.growth < math.inf or self.spare < 0:
            raise UserError("growth and spare machines must not be negative")

    @property
    def planned_qps(self) -> float:
        return self.peak_qps * (1 + self.growth)

    @property
    def traffic(self) -> Traffic:
        return Traffic(self.model, self.planned_qps, self.sla, self.sizes)


@dataclass(frozen=True)
class Offer:
    """A kind as the user states it; its `count` is ignored. watts: of a machine, all idle and all
    at work. most: that can be had. policy None: to be tuned."""

    kind: Kind
    cost: float | None = None
    watts: tuple[float, float] | None = None
    most: int | None = None
    policy: Policy | None = None

    def __post_init__(self) -> None:
        if self.most is not None and self.most < 0:
            raise UserError(f"kind {self.kind.name}: most must not be negative, not {self.most}")


@dataclass(frozen=True)
class Answer:
    """So many machines of a kind, alone or in a mix, behind a balancer.

    fleet_qps: of one machine in a fleet; None: the target is out of reach, and idle_s is what an
    idle machine gives. machines: spares among them; of a kind alone, even more than can be had.
    busy, devices_busy: share of the cores' and of the accelerators' time at the peak.
    """

    offer: Offer
    balancer: str
    policy: Policy | None
    single_qps: float
    fleet_qps: float | None
    machines: int | None
    busy: float | None
    binds: str
    idle_s: float | None = None
    devices_busy: float | None = None
    check: Check | None = None

    @property
    def cost(self) -> float | None:
        if self.machines is None or self.offer.cost is None:
            return None
        return self.machines * self.offer.cost

    @property
    def watts(self) -> float | None:
        """At the peak: between idle and at work by how busy the machine is."""
        if self.machines is None or self.offer.watts is None or self.busy is None:
            return None
        idle, work = self.offer.watts
        return self.machines * (idle + min(self._at_work(), 1.0) * (work - idle))

    def _at_work(self) -> float:
        """Cores and accelerators, weighed by what `Watts` takes each to draw more when at work."""
        assumed = Watts()
        cores = self.offer.kind.workers * (assumed.core_busy - assumed.core_idle)
        each = assumed.accelerator_busy - assumed.accelerator_idle
        devices = each * max(map(len, self.offer.kind.accelerators.values()), default=0)
        busy, devices_busy = self.busy or 0.0, self.devices_busy or 0.0
        return (cores * busy + devices * devices_busy) / (cores + devices)

    @property
    def supply(self) -> Supply:
        """As the rule of counts takes it; without a cost each machine counts one."""
        cost = 1.0 if self.offer.cost is None else self.offer.cost
        return Supply(self.fleet_qps or 0.0, cost, self.offer.most)

    @property
    def stated(self) -> Stated:
        """ValueError where the target is out of reach."""
        if self.machines is None or self.fleet_qps is None:
            raise ValueError(f"no machines of {self.offer.kind.name} are stated")
        return Stated(self.offer.kind, self.machines, self.fleet_qps)

    def bearing(self, share: float) -> Answer:
        """That share of what it bore alone; not simulated yet."""
        return replace(self, fleet_qps=share * (self.fleet_qps or 0.0), check=None)

    def with_check(self, check: Check) -> Answer:
        """As busy as it was in that simulation."""
        name = self.offer.kind.name
        return replace(
            self,
            check=check,
            busy=check.busy[name],
            devices_busy=check.devices_busy.get(name),
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.offer.kind.name,
            "balancer": self.balancer,
            "policy": self.policy.to_dict() if self.policy else None,
            "single_qps": self.single_qps,
            "fleet_qps": self.fleet_qps,
            "machines": self.machines,
            "busy": self.busy,
            "devices_busy": self.devices_busy,
            "cost": self.cost,
            "watts": self.watts,
            "binds": self.binds,
            "idle_s": self.idle_s,
            "simulated": self.check and self.check.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class Plan(Result):
    """answers: every kind alone behind every balancer. chosen: the machines to have, all behind one
    balancer; empty where none can. file: what the user's file said."""

    demand: Demand
    answers: Sequence[Answer]
    chosen: Sequence[Answer]
    elapsed_s: float
    seed: int = 0
    file: Mapping[str, Any] = field(default_factory=dict)
    assumptions: Sequence[str] = ()

    @property
    def verdict(self) -> str:
        return _verdict(self)

    def summary(self) -> dict[str, Any]:
        return {
            "model": self.demand.model,
            "seed": self.seed,
            "sla": target_dict(self.demand.sla),
            "peak_qps": self.demand.peak_qps,
            "planned_qps": self.demand.planned_qps,
            "spare": self.demand.spare,
            "file": dict(self.file),
            "answers": [a.to_dict() for a in self.answers],
            "chosen": [a.to_dict() for a in self.chosen],
            "elapsed_s": self.elapsed_s,
            "verdict": self.verdict,
            "assumptions": list(self.assumptions),
        }

    def files(self) -> dict[str, Any]:
        """What `serve --policy` takes, for each kind."""
        return {f"policy-{a.offer.kind.name}.json": self._policy(a) for a in self.chosen}

    def _policy(self, chosen: Answer) -> dict[str, Any]:
        return {
            "policy": chosen.policy and chosen.policy.to_dict(),
            "model": {"model": self.demand.model},
            "sla": target_dict(self.demand.sla),
            "machine": {"kind": chosen.offer.kind.name},
            "runtime": None,
        }


def plan(
    demand: Demand,
    offers: Sequence[Offer],
    balancers: Sequence[str] = BALANCERS,
    *,
    seed: int = 0,
    file: Mapping[str, Any] | None = None,
    on_answer: Callable[[Answer], None] = lambda _: None,
) -> Plan:
    """Tries each kind behind each balancer; UserError for contradictions.

    The cheapest machines are chosen, by cost (else by number); of several kinds only where `most`
    of one do not suffice, or where that is cheaper.
    """
    _check(offers)
    began = time.monotonic()
    answers: list[Answer] = []
    # The kernels hold no GIL, so threads suffice to use every core.
    with ThreadPoolExecutor() as pool:
        alone = pool.map(lambda offer: _alone(offer, demand, seed), offers)
        able = [one for each in alone for one in _behind_each(each, balancers)]
        for answer in pool.map(lambda one: _behind(one, demand, seed), able):
            answers.append(answer)
            on_answer(answer)
    chosen = choose(demand, answers, seed)
    return Plan(
        origin=origin("plan"),
        demand=demand,
        answers=answers,
        chosen=chosen,
        elapsed_s=time.monotonic() - began,
        seed=seed,
        file=file or {},
        assumptions=[s for o in offers for s in o.kind.assumptions(demand.model)],
    )


def choose(demand: Demand, answers: Sequence[Answer], seed: int = 0) -> list[Answer]:
    """The cheapest machines that hold the target when they are simulated together."""
    steps = {a.balancer: 0 for a in answers if a.fleet_qps}  # of `_MIXED`, by balancer
    while True:
        found = {b: mix for b, step in steps.items() if (mix := _mixed(demand, answers, b, step))}
        if not found:
            return []
        balancer = min(found, key=lambda b: _price(found[b]))
        chosen = _simulated(demand, found[balancer], seed)
        if all(a.check is not None and a.check.holds for a in chosen):
            return chosen
        steps[balancer] += 1


def _mixed(demand: Demand, answers: Sequence[Answer], balancer: str, step: int) -> list[Answer]:
    """The cheapest machines by what each kind bears; empty where there are not enough."""
    if step == len(_MIXED):
        return []
    able = [a for a in answers if a.fleet_qps and a.balancer == balancer]
    if step:
        able = [a.bearing(_MIXED[step]) for a in able]
    counts = cheapest([a.supply for a in able], demand.planned_qps, demand.spare)
    return [replace(a, machines=n) for a, n in zip(able, counts or [], strict=False) if n]


def _price(mix: Sequence[Answer]) -> tuple[float, int]:
    """Cost, then number of machines."""
    counts = [a.machines or 0 for a in mix]
    return cost_of([a.supply for a in mix], counts), sum(counts)


def _simulated(demand: Demand, mix: Sequence[Answer], seed: int) -> list[Answer]:
    """With what came out of it; of a kind alone that is known."""
    if len(mix) == 1 and mix[0].check is not None:
        return list(mix)
    seeds = (seed + _FRESH[0], seed + _FRESH[1])
    stated = [a.stated for a in mix]
    found = judged(stated, demand.spare, mix[0].balancer, demand.traffic, seeds)
    return [a.with_check(found) for a in mix]


def _alone(offer: Offer, demand: Demand, seed: int) -> Answer:
    """One machine of a kind, tuned, behind no balancer."""
    kind = offer.kind
    devices = kind.accelerators.get(demand.model, ())
    machine = Simulator(
        kind.service[demand.model], kind.workers, accelerators=devices, seed=seed,
        whole=demand.whole, most_items=demand.most_items,
    )  # fmt: skip
    workload = Workload(sizes=demand.sizes, seed=seed)
    policy, capacity, idle_s = _tuned(machine, workload, demand.sla, offer.policy)
    if not capacity.rate_qps:
        return Answer(offer, "–", None, 0.0, None, None, None, "latency", idle_s)
    runs, sizes = list(capacity.runs), workload.sample_sizes(4096)
    binds = what_binds(machine.facts(), policy, capacity.rate_qps, sizes, demand.sla, runs).kind
    alone = replace(offer, kind=replace(kind, policy={demand.model: policy}))
    return Answer(alone, "–", policy, capacity.rate_qps, None, None, None, binds)


def _behind_each(alone: Answer, balancers: Sequence[str]) -> list[Answer]:
    """Behind none where it is out of reach already."""
    if not alone.single_qps:
        return [alone]
    return [replace(alone, balancer=balancer) for balancer in balancers]


def _tuned(
    machine: Simulator, workload: Workload, sla: SLA, stated: Policy | None
) -> tuple[Policy, Capacity, float | None]:
    """The policy, stated or the best; its capacity alone; what an idle machine gives, if known."""
    if stated is not None:
        capacity = find_capacity(machine, workload, sla, stated)
        return stated, capacity, capacity.idle_p95_s
    study = tune(machine, workload, sla, "hill-climb")
    best = study.best or study.baseline
    return best.policy, best.capacity, study.idle_p95_s


def _behind(alone: Answer, demand: Demand, seed: int) -> Answer:
    """With the highest rate of one machine of a fleet that holds, first in a short run, then in
    the fleet as it is stated."""
    if not alone.single_qps:
        return alone
    for share in _SHARES:
        rate = share * alone.single_qps
        sample = Stated(alone.offer.kind, SAMPLE, rate)
        traffic = replace(demand.traffic, qps=SAMPLE * rate)
        if not holds(sampled([sample], alone.balancer, traffic, seed, SHORT), demand.sla):
            continue
        counts = cheapest([Supply(rate, 1.0)], demand.planned_qps, demand.spare)
        assert counts is not None  # as many as are needed
        stated = replace(alone, fleet_qps=rate, machines=counts[0])
        (found,) = _simulated(demand, [stated], seed)
        if found.check is not None and found.check.holds:
            return found
    return replace(alone, binds="balancer")


def _check(offers: Sequence[Offer]) -> None:
    """UserError for offers that cannot be compared."""
    if not offers:
        raise UserError("a plan needs at least one kind of machine")
    costs = [offer.cost is None for offer in offers]
    if any(costs) and not all(costs):
        raise UserError("state the cost of every kind, or of none: else they cannot be compared")
    if len({offer.kind.name for offer in offers}) < len(offers):
        raise UserError("two kinds have one name: give each its own")


def _verdict(found: Plan) -> str:
    demand, chosen = found.demand, found.chosen
    asked = f"{demand.planned_qps:,.0f} queries/s"
    if not chosen:
        return f"no plan serves {asked} at {demand.sla}{_why_not(found)}"
    parts = [f"{a.machines:,} × {a.offer.kind.name} ({a.policy}, {a.balancer}, bound by {a.binds})"
             for a in chosen]  # fmt: skip
    said = f"simulated: {' and '.join(parts)} for {asked}"
    if demand.spare:
        said += f", {demand.spare} of them to spare"
    if all(a.cost is not None for a in chosen):
        said += f"; cost {sum(a.cost or 0.0 for a in chosen):,.0f}"
    if all(a.watts is not None for a in chosen):
        kilowatts = sum(a.watts or 0.0 for a in chosen) / 1e3
        said += f"; {kilowatts:,.1f} kW at the peak, as stated"
    return f"{said}; {_came_out(found)}"


def _came_out(found: Plan) -> str:
    """Of the simulation of what was chosen."""
    check = found.chosen[0].check
    assert check is not None
    total = sum(a.machines or 0 for a in found.chosen)
    which = "all" if check.machines == total else f"{check.machines} of the {total:,}"
    without = f", also without the {found.demand.spare} ablest" if found.demand.spare else ""
    return (
        f"under other seeds p{found.demand.sla.percentile:g} was at most {ms(check.reached_s)} ms "
        f"({which} machines, {check.seconds:,.0f} s{without})"
    )


def _why_not(found: Plan) -> str:
    if not any(a.fleet_qps for a in found.answers):
        idle = [a.idle_s for a in found.answers if a.idle_s]
        return f"; an idle machine gives {ms(min(idle))} ms" if idle else ""
    if not any(_mixed(found.demand, found.answers, a.balancer, 0) for a in found.answers):
        return "; with more machines than can be had: raise `most`"
    return "; the machines that can be had miss it when they are simulated together"
