"""The highest rate at which a policy holds its target: bracket, bisect, confirm.

Knows systems only as something that runs a schedule and returns records (`core.System`).
A `Probe` is one run at one rate, stopped as soon as it is decided; `search_rate` chooses the
rates. `find.py` adds rounds that settle the last percents.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from deeprecsys.analysis.metrics import Summary, percentile, summarize, verdict_so_far
from deeprecsys.core import SLA, Facts, IntArray, Policy, Records, Schedule, Status, System
from deeprecsys.machines.service_time import busy_shares
from deeprecsys.workload import Workload

# Rates within this of each other count as one: policies are chosen for gains of several percent.
TOLERANCE = 0.03
# Below this share of what the cores could do at all, the question is whether the idle machine
# meets the target.
_FLOOR = 1 / 64
# So many queries, each this many times its own length after the one before.
_IDLE_QUERIES, _IDLE_GAP = 80, 4.0
_CONFIRMATIONS = 6
_SHORTEST_S = 0.5  # of a run, however little time there is
_RETRY = 50  # the turn (seed) of a second try
# With more of the cores used by others than this, a failed run is repeated a little later.
DISTURBED = 0.05
_ATTEMPTS, _PAUSE_S, _LONGEST_PAUSE_S = 4, 0.5, 2.0
_MOST_KEPT = 4096
_VIRTUAL_MORE = 20  # queries of a simulated run over those of a live one
_PATIENCE = 0.25  # of a search's time, for pauses and repeated runs


def _nobody() -> IntArray:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Run:
    """One run at one rate. `summary` is of the part that was decided when it stopped early.

    cut: ended by the time budget or the owner before it was decided; kept, but no verdict.
    over: the share of its queries over the target. waiting: sizes of those that were in the
    system at the last arrival.
    """

    rate_qps: float
    seed: int
    summary: Summary
    stopped_early: bool
    disturbance: float = 0.0
    cut: bool = False
    records: Records | None = field(default=None, repr=False, compare=False)
    over: float = math.nan
    waiting: IntArray = field(default_factory=_nobody, repr=False, compare=False)

    @property
    def passed(self) -> bool:
        """Established, or, if undecided, by the point estimate."""
        if self.summary.meets_sla is None:
            return bool(self.summary.percentile_s <= self.summary.target_s)
        return self.summary.meets_sla

    @property
    def held_qps(self) -> float:
        """The rate less what piled up: under a lax target a run can pass and yet fall behind."""
        return self.rate_qps * (1 - self.summary.backlog_growth)

    def to_dict(self) -> dict[str, Any]:
        summary = self.summary.to_dict()
        kept = ("p50_s", "p95_s", "p99_s", "p95_interval_s", "meets_sla", "queries", "duration_s")
        return {
            "rate_qps": self.rate_qps,
            **{name: summary[name] for name in kept},
            "percentile_s": summary.get("percentile_s"),
            "overloaded": summary.get("overloaded"),
            "limited_by": summary.get("limited_by"),
            "generator_lag_p99_s": summary["generator_lag_p99_s"],
            "seed": self.seed,
            "stopped_early": self.stopped_early,
            "disturbance": self.disturbance,
            "cut": self.cut,
        }


@dataclass(frozen=True, slots=True)
class Capacity:
    """rate_qps: the highest rate at which the target held, less what piled up; 0 if none.

    interval_qps: of kind "bracket", from a search: between that rate and the lowest that failed
    (infinity if none did), which says nothing of chance; of kind "interval", from rounds of fresh
    runs (`interleave.py`): 95 %; of kind "estimate", up to what the cores could do at most by the
    measured service time, where that is so little that no run was spent.
    decided: as narrow as asked for, in the time there was; more_s: if not, how much longer that
    would take, where it can be told. idle_p95_s: latency percentile of the idle machine, where
    the search had to ask.
    """

    rate_qps: float
    interval_qps: tuple[float, float]
    decided: bool
    runs: tuple[Run, ...] = ()
    idle_p95_s: float | None = None
    kind: Literal["bracket", "interval", "estimate"] = "bracket"
    more_s: float | None = None

    @property
    def doubt(self) -> str:
        """What to say after the figures: nothing of a decided interval."""
        if self.kind == "estimate":
            return "at most, by its service time; not run"
        said = "bracket" if self.kind == "bracket" else ""
        if not self.decided:
            said += ", undecided" if said else "undecided"
        if self.more_s is not None:
            said += f", about {math.ceil(self.more_s / 60)} min more would tell"
        return said

    def to_dict(self) -> dict[str, Any]:
        lo, hi = self.interval_qps
        return {
            "rate_qps": self.rate_qps,
            "interval_qps": [lo, hi if math.isfinite(hi) else None],
            "decided": self.decided,
            "idle_p95_s": self.idle_p95_s,
            "kind": self.kind,
            "more_s": self.more_s,
        }


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure: a run lasts `least_s` to `most_s`, aiming at `queries` queries; longer
    where that gave fewer than `least_queries`, from which no percentile can be told."""

    tolerance: float = TOLERANCE
    queries: int = 1500
    least_queries: int = 100
    least_s: float = 3.0
    most_s: float = 20.0
    confirm: bool = True
    second_tries: bool = True

    def duration_s(self, rate_qps: float, sla: SLA) -> float:
        """Long enough for the queries asked for and, so that a queue can build up, 50 targets."""
        wanted = max(self.queries / rate_qps, 50 * sla.latency_s)
        lasting = min(self.most_s, max(self.least_s, wanted))
        return max(lasting, self.least_queries / rate_qps)

    def within(self, seconds: float, runs: int) -> Effort:
        """The same with runs short (or long) enough that `seconds` hold so many of them."""
        most_s = min(2 * self.most_s, max(seconds / runs, _SHORTEST_S))
        return replace(self, most_s=most_s, least_s=min(self.least_s, most_s))

    def on(self, facts: Facts) -> Effort:
        """As suits a system: simulated time is cheap, and no neighbour spoils a run."""
        if not facts.virtual:
            return self
        more: dict[str, Any] = {"queries": _VIRTUAL_MORE * self.queries, "most_s": math.inf}
        return replace(self, tolerance=self.tolerance / 3, second_tries=False, **more)


# A first look at a policy; a careful one.
COARSE = Effort(tolerance=0.10, queries=800, least_s=2.0, most_s=10.0, confirm=False)
FINE = Effort()
# Of a simulated policy that has no chance.
GLANCE: dict[str, Any] = {"tolerance": 0.25, "queries": 800, "second_tries": False}


@dataclass(frozen=True, slots=True)
class Clock:
    """What budgets are counted by. A system in virtual time brings its own."""

    now_s: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep


WALL = Clock()


class Interrupted(Exception):
    """The owner asked to stop during `run`, which was wound up and told to `on_run`."""

    def __init__(self, run: Run) -> None:
        super().__init__("interrupted")
        self.run = run


class Probe:
    """Runs one policy at a rate and says whether the target held.

    stop: asked all the time; True raises `Interrupted` after the current run is wound up.
    on_progress(policy, rate, records so far, seconds) and on_run(policy, run) are for display.
    """

    def __init__(
        self,
        system: System,
        workload: Workload,
        sla: SLA,
        *,
        stop: Callable[[], bool] = lambda: False,
        on_progress: Callable[[Policy, float, Records, float], None] = lambda *_: None,
        on_run: Callable[[Policy, Run], None] = lambda *_: None,
        clock: Clock = WALL,
    ) -> None:
        self.system, self.workload, self.sla = system, workload, sla
        self.stop, self.on_progress, self.on_run = stop, on_progress, on_run
        self.clock, self.pause = clock.now_s, clock.pause
        self._virtual = system.facts().virtual

    def __call__(
        self,
        policy: Policy,
        rate_qps: float,
        duration_s: float,
        *,
        turn: int = 0,
        whole: bool = False,
        until: float = math.inf,
        ahead: IntArray | None = None,
    ) -> Run:
        """`turn` picks the seed (0: the workload's own); `whole` forbids stopping early.

        ahead: sizes of queries that wait already when it begins; they are not judged.
        A run that is still undecided at `until`, on this object's clock, ends there.
        """
        workload = self.workload.reseed(self.workload.seed + turn)
        first = _nobody() if ahead is None else ahead
        schedule = behind(first, workload.schedule(rate_qps=rate_qps, duration_s=duration_s))
        verdict: bool | None = None
        stopped_s = math.inf

        def watch(so_far: Records, now_s: float) -> bool:
            nonlocal verdict, stopped_s
            self.on_progress(policy, rate_qps, so_far, now_s)
            # A simulated run is computed already; its beginning would say less for nothing.
            if not (whole or self._virtual):
                verdict = verdict_so_far(so_far, now_s, self.sla, len(schedule))
            if verdict is not None or self.stop() or self.clock() > until:
                stopped_s = now_s
                return True
            return False

        records = self.system.run(schedule, policy, watch=watch)[len(first) :]
        stopped = stopped_s < math.inf
        if stopped:  # judge only what was decided by then: who arrived a target earlier
            records = records[records.arrival_s <= stopped_s - self.sla.latency_s]
        summary = summarize(records, self.sla)
        if verdict is not None:
            summary = replace(summary, meets_sla=verdict)
        decided = verdict is not None
        # A simulated run can be made again, and hundreds of long ones would fill the memory.
        kept = None if self._virtual and len(records) > _MOST_KEPT else records
        others = self.system.disturbance()
        over, left = over_share(records, self.sla), waiting(records)
        cut = stopped and not decided
        run = Run(rate_qps, workload.seed, summary, decided, others, cut, kept, over, left)
        self.on_run(policy, run)
        if self.stop():
            raise Interrupted(run)
        return run


def behind(first: IntArray, schedule: Schedule) -> Schedule:
    """The schedule, with these queries in the system when it begins."""
    if not len(first):
        return schedule
    arrival_s = np.concatenate([np.zeros(len(first)), schedule.arrival_s])
    return Schedule(arrival_s, np.concatenate([first, schedule.size]), schedule.indices)


def over_share(records: Records, sla: SLA) -> float:
    """Share of the queries over the target; without an answer they are."""
    return float((~(records.latency_s <= sla.latency_s)).mean()) if len(records) else math.nan


def waiting(records: Records) -> IntArray:
    """Sizes of the queries that were in the system at the last arrival."""
    if not len(records):
        return _nobody()
    inside = (records.status == Status.OK) & (records.finish_s > records.arrival_s[-1])
    return np.asarray(records.size[inside])


def search_rate(
    probe: Probe,
    policy: Policy,
    effort: Effort,
    *,
    before: Sequence[Run] = (),
    until: float = math.inf,
    guess_qps: float | None = None,
) -> Capacity:
    """Bracket, bisect, confirm; with runs of this policy made `before`, until a point in time.

    guess_qps: where to begin; default, just below the rate that saturates the workers.
    """
    return _Search(probe, policy, effort, list(before), until, guess_qps).find()


class _Search:
    """One policy's runs so far, and which rate to try next."""

    def __init__(
        self,
        probe: Probe,
        policy: Policy,
        effort: Effort,
        runs: list[Run],
        until: float,
        guess_qps: float | None,
    ) -> None:
        self.probe, self.policy, self.effort = probe, policy, effort
        self.runs, self.until = runs, until
        self.ceiling = saturation_rate(probe, policy)
        self.guess = guess_qps or 0.92 * self.ceiling
        # Of a system that does not say how long a request takes, the ceiling is a mere beginning.
        self.known = probe.system.facts().of(policy).service_s is not None
        self.alone_s = _alone_s(probe, policy)
        self.idle_s: float | None = None
        self.stalls = 0
        self.patience_s = _PATIENCE * (until - probe.clock())

    def find(self) -> Capacity:
        tight = self.alone_s is not None and self.alone_s > 0.5 * self.probe.sla.latency_s
        if not tight or self.runs or self._idle_passes():
            turn = 1
            while self._bisect() and not self._confirmed(turn) and self._in_time():
                turn += 1
        return capacity_of(self.runs, self.effort.tolerance, self.idle_s)

    def _bisect(self) -> bool:
        """Narrows the bracket to the tolerance; False if even the idle machine fails."""
        while self._in_time():
            rate = self._next_rate()
            if rate is None:
                break
            if rate < self.ceiling * _FLOOR:
                return self.idle_s is None and self._idle_passes()
            run = self._run(rate)
            if self._surprising(run):
                # A hypervisor may have stopped us for a second or two, unseen: wait it out.
                self.stalls += 1
                if self._waited(min(_PAUSE_S * self.stalls, _LONGEST_PAUSE_S), run):
                    self._run(rate, turn=_RETRY)
        return True

    def _run(self, rate: float, turn: int = 0) -> Run:
        """A run, again after a pause while it fails and others use the cores."""
        duration_s = self.effort.duration_s(rate, self.probe.sla)
        for attempt in range(_ATTEMPTS):
            run = self.probe(self.policy, rate, duration_s, turn=turn, until=self.until)
            self.runs.append(run)
            if run.passed or run.disturbance < DISTURBED or not self._in_time():
                break
            if not self._waited(_PAUSE_S * (attempt + 1), run):
                break
        return run

    def _waited(self, pause_s: float, run: Run) -> bool:
        """Pauses before a run is repeated; False once patience has been used up."""
        self.patience_s -= pause_s + run.summary.duration_s
        if self.patience_s < 0:
            return False
        self.probe.pause(pause_s)
        return True

    def _confirmed(self, turn: int) -> bool:
        """Does the best rate pass again, on a fresh seed? If not, the bracket has moved."""
        lo, _ = _ends(self.runs)
        if not self.effort.confirm or lo == 0 or turn > _CONFIRMATIONS or not self._in_time():
            return True
        return self._run(lo, turn=turn).passed

    def _idle_passes(self) -> bool:
        """So few queries that they hardly meet: does the idle machine hold the target?"""
        alone_s = self.alone_s if self.alone_s is not None else 10 / self.ceiling
        rate = 1 / (_IDLE_GAP * alone_s)
        duration_s = min(_IDLE_QUERIES / rate, 3 * self.effort.most_s)
        # Stopped at the first slow one of so few, a run would not even say how slow.
        few = rate * duration_s < 2 * _IDLE_QUERIES / _IDLE_GAP
        run = self.probe(self.policy, rate, duration_s, whole=few, until=self.until)
        self.runs.append(run)
        self.idle_s = _finished_percentile_s(run, self.probe.sla)
        return run.passed

    def _next_rate(self) -> float | None:
        """The rate to try next, or None when the bracket is narrow enough."""
        lo, hi = _ends(self.runs)
        if lo == 0 and math.isinf(hi):
            return self.guess
        if math.isinf(hi):
            beyond = len({r.rate_qps for r in self.runs if r.passed and r.rate_qps > self.ceiling})
            # Ever larger steps: what passes well beyond the ceiling shows that it is none.
            step = min(math.pow(1.06, 2**beyond), 2.0)
            return max(lo * step, min(lo * 2, 0.8 * self.ceiling if self.known else math.inf))
        if lo == 0:
            # Ever larger steps down, so that a far capacity is found in few runs.
            failed = len({r.rate_qps for r in self.runs if not r.passed})
            return hi * max(0.5, 1 - self.effort.tolerance * 2.0**failed)
        return math.sqrt(lo * hi) if hi > lo * (1 + self.effort.tolerance) else None

    def _surprising(self, run: Run) -> bool:
        """What one would not expect deserves a second try, on another seed, pass or failure.

        On a shared machine a neighbour can stop both cores for a moment; a stop of 0.2 s fails
        a run of two seconds at any rate. And a short run that saw no burst passes at a rate at
        which the workers would always be busy.
        """
        if run.passed:
            return self.effort.second_tries and self.known and run.rate_qps > self.ceiling
        passed = [run.rate_qps for run in self.runs if run.passed]
        expected = max([*passed, self.ceiling if self.known else 0.0])
        return self.effort.second_tries and run.rate_qps < 0.97 * expected

    def _in_time(self) -> bool:
        return self.probe.clock() < self.until


def saturation_rate(probe: Probe, policy: Policy) -> float:
    """At which workers or accelerators are always busy: no rate beyond it can be held for long.

    100 queries/s where the system does not say how long a request takes.
    """
    facts = probe.system.facts().of(policy)
    if facts.service_s is None:
        return 100.0
    return 1 / max(busy_shares(facts, probe.workload.sample_sizes(4096), policy))


def _alone_s(probe: Probe, policy: Policy) -> float | None:
    """Seconds that a large query (at the target's percentile) takes alone on idle workers.

    Rounds of its requests over all workers, each as long as the largest request.
    """
    facts = probe.system.facts().of(policy)
    if facts.service_s is None:
        return None
    size = float(np.percentile(probe.workload.sample_sizes(4096), probe.sla.percentile))
    rounds: int = math.ceil(math.ceil(size / policy.batch_size) / facts.workers)
    return rounds * float(facts.service_s(np.array([min(size, policy.batch_size)]))[0])


def _finished_percentile_s(run: Run, sla: SLA) -> float | None:
    """Of the queries that finished: a run stopped early cut the last ones off."""
    latency = run.records.latency_s if run.records is not None else np.zeros(0)
    finished = latency[np.isfinite(latency)]
    return percentile(finished, sla.percentile) if len(finished) else None


def _ends(runs: Sequence[Run]) -> tuple[float, float]:
    """(highest rate that passed, lowest that failed) on either side of the best split.

    The split contradicts the fewest runs; of equals it is the middle one: a neighbour fails runs
    that should pass, and a run that is short against its bursts passes where it should fail. A
    failure while others used the cores does not count if it was repeated; a run that was cut
    short never does.
    """
    runs = [run for run in runs if not run.cut]
    last = {run.rate_qps: run for run in runs}
    runs = [r for r in runs if r.passed or r.disturbance < DISTURBED or r is last[r.rate_qps]]
    splits = [0.0, *sorted({run.rate_qps for run in runs})]
    against = [sum((r.rate_qps <= s) != r.passed for r in runs) for s in splits]
    equals = [s for s, count in zip(splits, against, strict=True) if count == min(against)]
    split = equals[len(equals) // 2]
    lo = max((r.rate_qps for r in runs if r.passed and r.rate_qps <= split), default=0.0)
    hi = min((r.rate_qps for r in runs if not r.passed and r.rate_qps > split), default=math.inf)
    return lo, hi


def capacity_of(runs: Sequence[Run], tolerance: float, idle_s: float | None) -> Capacity:
    """What the runs of one policy say together; see `Capacity`."""
    lo, hi = _ends(runs)
    decided = hi <= lo * (1 + 2 * tolerance) if lo else math.isfinite(hi) and idle_s is not None
    held = [run.held_qps for run in runs if run.rate_qps == lo and run.passed and not run.cut]
    rate = sum(held) / len(held) if held else 0.0
    return Capacity(rate, (rate, hi), decided, tuple(runs), idle_s)
