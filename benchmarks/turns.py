"""Capacities of several systems turn by turn, so that a drifting machine does not decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import deeprecsys as drs
from deeprecsys.core import SLA, Policy, Schedule, System, UserError
from deeprecsys.tuning.capacity import FINE, Probe, search_rate
from deeprecsys.tuning.interleave import Contestant, Ratio, interleave

WORKLOAD = drs.Workload()


class ByPolicy:
    """Several systems as one for `interleave`, which tells contestants by their policies."""

    def __init__(self, systems: Mapping[Policy, System]) -> None:
        self._systems = systems
        self._last = next(iter(systems.values()))

    def run(self, schedule: Schedule, policy: Policy, **kw: Any) -> drs.Records:
        self._last = self._systems[policy]
        return self._last.run(schedule, policy, **kw)

    def facts(self) -> Any:
        """The twin is of whichever has one: what differs between them only makes it slower."""
        twins = [facts.twin for one in self._systems.values() if (facts := one.facts()).twin]
        return replace(self._last.facts(), twin=next(iter(twins), None))

    def disturbance(self) -> float:
        return self._last.disturbance()


def compare(
    systems: Mapping[str, System],
    sla: SLA,
    batch_size: int,
    *,
    search_s: float,
    round_s: float,
    most_s: float,
) -> tuple[dict[str, float], dict[str, Ratio | None]]:
    """Each system's capacity in queries/s, and the first's over each other's.

    Each capacity is searched, then all take turns near their own.
    """
    found_qps: dict[Policy, float] = {}
    by_policy: dict[Policy, System] = {}
    guess_qps = None  # the next system is most likely near the one before
    for name, system in reversed(systems.items()):
        # A static policy reads no `most_items`: here it tells the systems apart.
        policy = Policy(batch_size, most_items=1024 + len(by_policy))
        probe, effort = Probe(system, WORKLOAD, sla), FINE.within(search_s, 8)
        until = probe.clock() + search_s
        found = search_rate(probe, policy, effort, until=until, guess_qps=guess_qps)
        guess_qps = found.rate_qps
        if found.rate_qps == 0:
            raise UserError(f"{name}: no rate met {sla} in time: more --search-s")
        by_policy[policy], found_qps[policy] = system, found.rate_qps
        rate = f"{found.rate_qps:.1f} queries/s"
        print(f"{name}: {rate} at {sla}, batch size {batch_size}", flush=True)
    probe = Probe(ByPolicy(by_policy), WORKLOAD, sla)
    at = dict(zip(reversed(systems), by_policy, strict=True))
    contestants = {name: Contestant.at(at[name], found_qps[at[name]], probe) for name in systems}
    until = probe.clock() + most_s
    ratios = interleave(probe, list(contestants.values()), lambda _: round_s, until=until)
    rates = {name: contestant.rate_qps for name, contestant in contestants.items()}
    return rates, dict(zip(list(contestants)[1:], ratios, strict=True))


def said(ratio: Ratio | None) -> str:
    if ratio is None:
        return "undecided: too few rounds"
    lo, hi = ratio.interval
    return f"{ratio.ratio:.3f} [{lo:.3f}, {hi:.3f}], {ratio.rounds} rounds"
