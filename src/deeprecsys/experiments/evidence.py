"""A run to be judged and shown, of any system: its records, its requests where the system can
tell, what was used, and what the system says of itself.

An engine traces while it runs; a simulated machine replays the beginning; others have records only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deeprecsys.analysis.usage import Watts, usage
from deeprecsys.core import Facts, Policy, Records, Requests, Schedule, Status, Watch

# Queries at the beginning of a simulated run, of which every request is kept.
TRACED = 5_000


@dataclass(frozen=True, slots=True)
class Evidence:
    """records: of the run. requests: of it, or of its first queries, or None. stopped: by the
    watch; then what was under way is left out, as it says nothing of the machine."""

    records: Records
    requests: Requests | None
    used: Mapping[str, Any]
    stopped: bool = False


def run(
    system: Any,
    schedule: Schedule,
    policy: Policy,
    *,
    watch: Watch | None = None,
    watts: Watts | None = None,
) -> Evidence:
    """Runs it all, or until the watch says stop. watts: of what has no meter."""
    stopped = False

    def watching(so_far: Records, now_s: float) -> bool:
        nonlocal stopped
        stopped = watch is not None and watch(so_far, now_s)
        return stopped

    facts = system.facts()
    if not hasattr(system, "traced_run"):
        records, first, requests = system.run(schedule, policy, watch=watching), None, None
    elif facts.virtual:
        records = system.run(schedule, policy, watch=watching)
        first, requests = system.traced_run(_beginning(schedule), policy)
    else:
        records, requests = system.traced_run(schedule, policy, watch=watching)
    if stopped:
        finished = records.status != Status.CANCELLED
        records = records[finished]
        requests = requests if requests is None or facts.virtual else requests.of(finished)
    used = _used(system, facts, records if not facts.virtual else first, requests, watts)
    return Evidence(records, requests, used, stopped)


def described(system: Any, facts: Facts) -> dict[str, Any]:
    """What the system says of itself, for summaries."""
    said: dict[str, Any] = {"workers": facts.workers, "accelerator": _accelerator(facts)}
    if facts.virtual:
        return said | {"simulated": dict(facts.detail)}
    pools = system.pool_facts() if hasattr(system, "pool_facts") else {}
    return said | {"lost": _losses(system), "engine": dict(facts.detail), "input_pools": pools}


def _used(
    system: Any, facts: Facts, records: Records | None, requests: Requests | None,
    watts: Watts | None,
) -> dict[str, Any]:  # fmt: skip
    if records is None or requests is None:
        return {}
    joules = system.joules() if hasattr(system, "joules") else {}
    devices = facts.detail.get("accelerators") or ()
    return usage(records, requests, facts.workers, devices, watts=watts, measured=joules)


def _beginning(schedule: Schedule) -> Schedule:
    return Schedule(schedule.arrival_s[:TRACED], schedule.size[:TRACED], schedule.indices)


def _accelerator(facts: Facts) -> dict[str, Any] | None:
    """The first one, and how many there are."""
    devices = facts.detail.get("accelerators") or ()
    return {**devices[0], "count": len(devices)} if devices else None


def _losses(system: Any) -> list[str]:
    """Accelerators that an engine lost, in words."""
    lost = system.lost() if hasattr(system, "lost") else {}
    return [f"{name} failed ({why}): its queries went to the cores" for name, why in lost.items()]
