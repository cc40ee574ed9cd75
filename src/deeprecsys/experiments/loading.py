"""Load on a server that runs elsewhere: what `load` finds, at one rate or searching for one.

The client sends and counts; the capacity search is `tuning`'s; here both become values that are
saved and shown like any other run's. A run in which nothing was answered says so.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deeprecsys.analysis.metrics import Summary, summarize
from deeprecsys.client.access import masked
from deeprecsys.client.client import Client
from deeprecsys.core import SLA, Policy, Records, Status, Watch
from deeprecsys.experiments.benching import measured, rate_of, scheduled, sentence
from deeprecsys.experiments.result import Asked, Result, origin
from deeprecsys.report import text
from deeprecsys.tuning import Capacity, Observer, find_capacity
from deeprecsys.tuning.capacity import Run
from deeprecsys.workload import Workload

BUDGET_S = 120.0
# From here on the client's own processes may be what limits.
_BUSY = 0.8
_OK = ("200", "OK")
Told = Mapping[str, Any]  # by `Client.last_run`


@dataclass(frozen=True, kw_only=True)
class Loaded(Result):
    """server: what it says of itself, and what was assumed of it. client: of the run that is
    shown, what it cost and what came back. tallies: the same of every run."""

    asked: Asked
    url: str
    server: Mapping[str, Any]
    client: Told
    tallies: Sequence[Told]
    interrupted: bool = False

    @property
    def answered(self) -> int:
        """Queries of all runs that got scores."""
        return sum(told["by_status"].get(ok, 0) for told in self.tallies for ok in _OK)

    @property
    def reached(self) -> bool:
        """Was there ever a connection? True, too, where nothing was sent."""
        lost = sum(told["unreached"] for told in self.tallies)
        return not lost or any(
            told["by_status"] or told["unanswered"] > told["unreached"] for told in self.tallies
        )

    @property
    def silence(self) -> str | None:
        """Why not one query was answered with scores; None if one was, or none was sent."""
        asked = sum(told["unanswered"] + sum(told["by_status"].values()) for told in self.tallies)
        if self.answered or not asked:
            return None
        why = "; ".join(dict.fromkeys(line for told in self.tallies for line in troubles(told)))
        return f"not one query was answered with scores ({why})"

    def summary(self) -> dict[str, Any]:
        return {
            **self.asked.to_dict(),
            "policy": None,  # the server's own
            **self.server,
            "client": dict(self.client),
            "answered": self.answered,
            "interrupted": self.interrupted,
        }

    def lines(self) -> list[str]:
        """What the run that is shown cost the client, and what else than scores came back."""
        if not self.client:
            return []
        share, processes = self.client["core_share"], self.client["processes"]
        cost = f"client: {self.client['cpu_s']:.2f} CPU seconds, {share:.0%} of a core"
        if share > _BUSY * processes:
            cost += ", so it may be what limits: give more --processes, or another machine"
        return [cost, *([] if self.silence else troubles(self.client))]


@dataclass(frozen=True, kw_only=True)
class Load(Loaded):
    """One rate."""

    found: Summary
    rate_qps: float

    @property
    def verdict(self) -> str:
        sla = self.asked.sla
        if self.silence:
            return f"{self.silence}; misses {sla}" if sla else self.silence
        return sentence(self.found, sla)

    def summary(self) -> dict[str, Any]:
        said = {"rate_qps": self.rate_qps, "verdict": self.verdict}
        return {**Loaded.summary(self), **said, **measured(self.found)}


@dataclass(frozen=True, kw_only=True)
class LoadCapacity(Loaded):
    """The highest rate that held the target; run: the one nearest to it, which is shown."""

    capacity: Capacity
    run: Run | None

    @property
    def verdict(self) -> str:
        assert self.asked.sla is not None
        if self.silence:
            return f"{self.silence}, so no rate meets {self.asked.sla}"
        return _verdict(self.capacity, self.asked.sla)

    def summary(self) -> dict[str, Any]:
        capacity, run = self.capacity.to_dict(), self.run
        runs = [one.to_dict() for one in self.capacity.runs]
        return {
            **Loaded.summary(self),
            "capacity": capacity,
            "best": {"policy": None, "capacity": capacity} if self.capacity.rate_qps else None,
            "verdict": self.verdict,
            "trials": [{"policy": None, "capacity": capacity, "runs": runs}],
            **(measured(run.summary) | {"rate_qps": run.rate_qps} if run else {}),
        }


def load(
    client: Client,
    workload: Workload,
    *,
    rate_qps: float | None = None,
    duration_s: float | None = None,
    queries: int | None = None,
    sla: SLA | None = None,
    watch: Watch | None = None,
) -> Load:
    """One run at one rate (default: a trace's own) for 10 s, or as long as is asked for.

    watch may stop it: then what was answered counts. UserError for what cannot be scheduled.
    """
    schedule, stopped = scheduled(workload, rate_qps, duration_s, queries), False

    def watching(so_far: Records, now_s: float) -> bool:
        nonlocal stopped
        stopped = watch is not None and watch(so_far, now_s)
        return stopped

    records = client.run(schedule, Policy(), watch=watching)
    if stopped:  # what was under way says nothing of the server
        records = records[records.status != Status.CANCELLED]
    told = client.last_run()
    return Load(
        **_about(client, workload, sla), client=told, tallies=(told,), interrupted=stopped,
        found=summarize(records, sla), rate_qps=rate_of(schedule, rate_qps), records=records,
    )  # fmt: skip


def load_capacity(
    client: Client,
    workload: Workload,
    sla: SLA,
    *,
    budget_s: float = BUDGET_S,
    observer: Observer | None = None,
) -> LoadCapacity:
    """The highest rate that the server answers within the target, in about this time (set-up
    aside)."""
    client.prepare(workload.size_law.largest, workload.indices)
    watched = observer or Observer()
    costs: list[tuple[Run, Told]] = []

    def on_run(policy: Policy, run: Run) -> None:
        costs.append((run, client.last_run()))
        watched.on_run(policy, run)

    capacity = find_capacity(
        client, workload, sla, budget_s=budget_s, observer=replace(watched, on_run=on_run)
    )
    run, told = _nearest(costs, capacity)
    return LoadCapacity(
        **_about(client, workload, sla), client=told, tallies=tuple(told for _, told in costs),
        interrupted=watched.stop(), capacity=capacity, run=run,
        records=run.records if run else None,
    )  # fmt: skip


def troubles(told: Told) -> list[str]:
    """What else than scores came back of a run, one sentence each."""
    lines = [
        f"{n:,} answered {status}: {told['examples'].get(status, '')}"
        for status, n in told["by_status"].items()
        if status not in _OK
    ]
    if told["unanswered"]:
        lines.append(f"{told['unanswered']:,} not answered: {told['examples']['unanswered']}")
    return lines


def _about(client: Client, workload: Workload, sla: SLA | None) -> dict[str, Any]:
    """What both results say of who asked whom."""
    facts, said = client.facts(), origin("load")
    server: dict[str, Any] = {
        "server": dict(facts.detail),
        "workers": facts.workers,
        "assumptions": client.assumptions,
    }
    if client.recorded is not None:
        server["workload"] = _recorded(client, workload)
    return {
        "origin": said | {"command": shlex.join(masked(shlex.split(said["command"])))},
        "asked": Asked.of(client, workload, sla),
        "url": str(client.address),
        "server": server,
    }


def _recorded(client: Client, workload: Workload) -> dict[str, Any]:
    """The workload with the sizes that recorded queries have."""
    assert client.recorded is not None
    said, path = workload.to_dict(), client.queries
    notes = {**said["notes"], "sizes": client.recorded.describe(path or "")}
    return {**said, "sizes": f"recorded:{path}", "notes": notes}


def _nearest(costs: Sequence[tuple[Run, Told]], capacity: Capacity) -> tuple[Run | None, Told]:
    """Of the runs that held the target the one nearest the capacity; else the last one."""
    passed = [(run, told) for run, told in costs if run.passed and not run.cut]
    if passed:
        return min(passed, key=lambda pair: abs(pair[0].rate_qps - capacity.rate_qps))
    return costs[-1] if costs else (None, {})


def _verdict(capacity: Capacity, sla: SLA) -> str:
    if capacity.rate_qps:
        bounds = text.interval(capacity.to_dict()["interval_qps"], text.rate)
        doubt = f", {capacity.doubt}" if capacity.doubt else ""
        return f"{text.rate(capacity.rate_qps)} queries/s {bounds} at {sla}{doubt}"
    if capacity.idle_p95_s is not None and capacity.idle_p95_s > sla.latency_s:
        return (
            f"no rate meets {sla}; idle, the server already takes {text.ms(capacity.idle_p95_s)} ms"
        )
    return f"undecided: no rate was found to meet {sla} in that time; give more --budget-s"
