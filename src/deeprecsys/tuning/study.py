"""`tune`: measure the static baseline, search, look again at the best, compare turn by turn.

Handed a system and a workload, it returns a `Study`; display and files are the caller's, told
of progress through an `Observer`. Stopping early (time, or the owner) keeps what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from deeprecsys.core import EXACT, SLA, Policy, Records, System, UserError
from deeprecsys.tuning.binds import Binds, what_binds
from deeprecsys.tuning.capacity import (
    COARSE,
    FINE,
    GLANCE,
    WALL,
    Capacity,
    Clock,
    Effort,
    Interrupted,
    Probe,
    Run,
    capacity_of,
    saturation_rate,
    search_rate,
)
from deeprecsys.tuning.interleave import (
    MOST_LIVE,
    MOST_ROUNDS,
    Contestant,
    Ratio,
    interleave,
    ratio_of,
)
from deeprecsys.tuning.searches import (
    BACKLOGS,
    SEARCHES,
    SIMULATED,
    Space,
    contenders_of_both,
)
from deeprecsys.workload import SizeLaw, Workload

# How a time budget is spent: first looks, careful looks; the rest is for the comparison.
_FIRST_LOOKS, _CAREFUL_LOOKS = 0.30, 0.50
# Seeds of the rounds that choose, and of those that say how good the chosen one is.
_CHOOSING, _FINAL = 300, 100
# A policy whose cores saturate below this share of the best rate seen needs no exact figure.
_NO_CHANCE = 0.7
# Where rounds of such a policy begin, of what its cores could do at most.
_BELOW = 0.92
# Simulation names the policies worth confirming: so many, at least this close to its best.
_CONFIRMED, _CLOSE = 2, 0.97
# What the best policy is held against; of these, where it offloads or is not exact.
_STATIC = "the static baseline"
_ALONE, _EXACT = "the tuned cores alone", "the best in exact fp32"
_NOT_MEASURED = Capacity(0.0, (0.0, math.inf), False)


@dataclass(frozen=True, slots=True)
class Observer:
    """What `tune` tells its owner, and what it asks."""

    stop: Callable[[], bool] = lambda: False
    on_phase: Callable[[str], None] = lambda _: None
    on_progress: Callable[[Policy, float, Records, float], None] = lambda *_: None
    on_run: Callable[[Policy, Run], None] = lambda *_: None
    on_trial: Callable[[Trial], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Trial:
    """A policy with its measured capacity."""

    policy: Policy
    capacity: Capacity

    def to_dict(self) -> dict[str, Any]:
        return {
            "policy": self.policy.to_dict(),
            "capacity": self.capacity.to_dict(),
            "runs": [run.to_dict() for run in self.capacity.runs],
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """The best policy against a named other one; `ratio` None where it was not measured."""

    name: str
    policy: Policy
    ratio: Ratio | None

    def to_dict(self) -> dict[str, Any]:
        empty = {"ratio": None, "interval": [None, None], "significant": None, "rounds": 0}
        measured = self.ratio.to_dict() if self.ratio else empty
        return {"name": self.name, "policy": self.policy.to_dict(), **measured}


@dataclass(slots=True)
class Study:
    """A search over policies. `best` is None when no policy holds the target at any rate.

    exact: the best policy of exact executions against the static baseline, where the best one is
    not exact. simulated: the search that named the policies of this one, where simulation did.
    """

    method: str
    sla: SLA
    baseline: Trial
    best: Trial | None
    trials: list[Trial]
    comparisons: list[Comparison] = field(default_factory=list)
    binds: Binds = field(default_factory=lambda: Binds("unknown", "unknown: not measured"))
    interrupted: bool = False
    elapsed_s: float = 0.0
    simulated: Study | None = None
    exact: Comparison | None = None

    @property
    def speedup(self) -> Ratio | None:
        """The best policy's capacity over the static baseline's."""
        return self.comparisons[0].ratio if self.comparisons else None

    @property
    def idle_p95_s(self) -> float | None:
        """The best latency that the idle machine gave, where a policy met nothing."""
        idle = [t.capacity.idle_p95_s for t in self.trials if t.capacity.idle_p95_s is not None]
        return min(idle, default=None)


def tune(
    system: System,
    workload: Workload,
    sla: SLA,
    method: str = "hill-climb",
    *,
    budget_s: float | None = None,
    run_s: float | None = None,
    observer: Observer | None = None,
    surrogate: System | None = None,
    clock: Clock = WALL,
) -> Study:
    """Finds the policy with the highest capacity.

    budget_s bounds the time it may take; run_s is the length of every run (default: as the
    rate, the target and the budget ask). surrogate: a simulation of `system`, which method
    "simulated" searches in its stead. clock: what the budget is counted by.
    Raises UserError for a wrong method, budget or length.
    """
    if method not in (*SEARCHES, SIMULATED):
        raise UserError(f"unknown method {method!r}; known: {', '.join([*SEARCHES, SIMULATED])}")
    if (method == SIMULATED) != (surrogate is not None):
        raise UserError("method simulated needs a surrogate of the system, and no other takes one")
    if budget_s is not None and not (budget_s > 0 and math.isfinite(budget_s)):
        raise UserError(f"the time budget must be positive, not {budget_s:g} s")
    if run_s is not None and not (run_s > 0 and math.isfinite(run_s)):
        raise UserError(f"the length of a run must be positive, not {run_s:g} s")
    watching = observer or Observer()
    return _Tuning(system, workload, sla, method, budget_s, run_s, watching, surrogate, clock).run()


def thresholds(sizes: SizeLaw, step: int = 5) -> tuple[int, ...]:
    """Sizes worth a try, descending: the largest percent, every 5 percent, and every query."""
    shares = [*range(step, 100, step), 99]
    return tuple(sorted({1, *(sizes.percentile(p) for p in shares)}, reverse=True))


def _by_knobs(trial: Trial) -> tuple[Any, ...]:
    knobs = trial.policy
    most = (knobs.offload_threshold, knobs.offload_backlog, knobs.workers)
    how = (knobs.execution != EXACT, str(knobs.execution))
    return *how, knobs.batch_size, *(math.inf if knob is None else knob for knob in most)


def _is_worth(one: Contestant, plainer: Contestant, name: str) -> bool:
    """More, and surely more where it costs an accelerator or exactness; or nobody knows."""
    ratio = ratio_of(one, plainer)
    return ratio is None or (ratio.ratio >= 1.0 and (ratio.significant or name == _STATIC))


class _Tuning:
    """One call of `tune`: the trials so far, by policy, and the time left."""

    def __init__(
        self,
        system: System,
        workload: Workload,
        sla: SLA,
        method: str,
        budget_s: float | None,
        run_s: float | None,
        observer: Observer,
        surrogate: System | None,
        clock: Clock,
    ) -> None:
        self.system, self.workload, self.sla, self.method = system, workload, sla, method
        self.surrogate, self.facts = surrogate, system.facts()
        self.simulated: Study | None = None
        self.observer, self.run_s = observer, run_s
        self.clock, self.began = clock, clock.now_s()
        self.budget_s = math.inf if budget_s is None else budget_s
        self.space = Space(
            self.facts.workers,
            workload.size_law.largest,
            # Live, a look takes seconds: half as many.
            thresholds(workload.size_law, 5 if self.facts.virtual else 10)
            if self.facts.accelerators
            else (),
            trials=100 if self.facts.virtual else 30,
            whole=self.facts.whole,
            most=self.facts.most_items,
            executions=(EXACT, *self.facts.executions),
        )
        self.trials: dict[Policy, Trial] = {}
        self.comparisons: list[Comparison] = []
        self.exact: Comparison | None = None
        self.chosen: Policy | None = None
        self.probe = Probe(
            system,
            workload,
            sla,
            stop=observer.stop,
            on_progress=observer.on_progress,
            on_run=self._on_run,
            clock=clock,
        )
        self.current: list[Run] = []

    def run(self) -> Study:
        interrupted = False
        try:
            if self.surrogate is not None:
                entered = self._simulate(self.surrogate)
            else:
                self._search()
                entered = self._contenders()
            if entered:
                self._compare(self._choose(entered), entered)
        except Interrupted:
            interrupted = True
        return self._study(interrupted or bool(self.simulated and self.simulated.interrupted))

    def _simulate(self, surrogate: System) -> list[Contestant]:
        """The whole grid in simulation, a first look at its best; who is worth comparing."""
        self.observer.on_phase("simulate")
        self.simulated = tune(
            surrogate,
            self.workload,
            self.sla,
            "exhaustive",
            observer=Observer(stop=self.observer.stop, on_progress=self.observer.on_progress),
        )
        if self.observer.stop():
            return []
        self.observer.on_phase("confirm")
        predicted = {t.policy: t.capacity.rate_qps for t in self.simulated.trials}
        able = sorted((p for p in predicted if predicted[p] > 0), key=lambda p: -predicted[p])
        first = able[0] if able else self.space.static
        self._measure(first, COARSE, self._until(), predicted[first] or None)
        rate = self.trials[first].capacity.rate_qps
        if rate == 0:  # simulation was too hopeful, or the target is out of reach
            if first != self.space.static:
                self._measure(self.space.static, COARSE, self._until())
            return []
        close = [p for p in able[1:] if predicted[p] > _CLOSE * predicted[first]]
        cores = [p for p in able if p.offload_threshold is None][:1]
        exact = [p for p in able if p.execution.exact][:1]
        entered = dict.fromkeys(
            [first, *close[: _CONFIRMED - 1], *cores, *exact, self.space.static]
        )
        if not predicted[self.space.static]:  # simulation may be wrong: the baseline is measured
            self._measure(self.space.static, COARSE, self._until())
        # A policy that meets the target at no rate, in simulation, has none to begin with.
        return [
            Contestant.at(p, rate * predicted[p] / predicted[first], self.probe)
            for p in entered
            if predicted[p] > 0
        ]

    def _search(self) -> None:
        """First looks: quick runs, wide tolerance; the baseline's is always among them."""
        self.observer.on_phase("search")
        until = self.began + _FIRST_LOOKS * self.budget_s
        self._measure(self.space.static, COARSE, until)
        SEARCHES[self.method](lambda p: self._measure(p, COARSE, until), self.space)

    def _contenders(self) -> list[Contestant]:
        """The policies whose first look leaves them a chance of being the best."""
        able = contenders_of_both([(t.policy, t.capacity) for t in self.trials.values()])
        return [self._contestant(policy) for policy in able]

    def _choose(self, entered: list[Contestant]) -> Contestant:
        """Careful looks: rounds of those that can be the best, on the same seeds."""
        self.observer.on_phase("refine")
        if len(entered) > 1:
            until = self.began + _CAREFUL_LOOKS * self.budget_s
            self._rounds(entered, _CHOOSING, until)
        return max(entered, key=lambda one: one.rate_qps)

    def _compare(self, best: Contestant, entered: list[Contestant]) -> None:
        """The best against both baselines, in rounds that chose nothing."""
        self.observer.on_phase("compare")
        others = {
            _STATIC: self.space.static,
            "the paper's literal": self.space.literal,
        }
        alone = self._best_alone(entered if self.surrogate else [])
        if alone is not None and best.policy.offload_threshold is not None:
            others[_ALONE] = alone
        exact = self._best_exact(entered)
        if exact is not None and not best.policy.execution.exact:
            others[_EXACT] = exact
        self.chosen = best.policy
        led = {one.policy: one for one in entered}
        rivals = [
            policy
            for policy in others.values()
            # Guided, the time is short and nothing was measured of the literal.
            if (self.surrogate is None or policy != self.space.literal)
            and policy != best.policy
            and self._rate(policy, led) > 0
        ]
        finalists = [
            led[p].again() if p in led else self._contestant(p)
            for p in dict.fromkeys([best.policy, *rivals])
        ]
        self._rounds(finalists, _FINAL, self._until())
        winner = finalists[0]
        # What is less plain has to show that it is worth it, turn by turn.
        for name in (_ALONE, _EXACT, _STATIC):
            plainer = next((c for c in finalists if c.policy == others.get(name)), winner)
            if plainer is winner or _is_worth(winner, plainer, name):
                continue
            if name == _EXACT:
                others["the fastest within the guard"] = winner.policy
            if name != _STATIC:
                del others[name]
            winner, self.chosen = plainer, plainer.policy
        ratios = {c.policy: ratio_of(winner, c) for c in finalists if c is not winner}
        ratios[winner.policy] = Ratio(1.0, (1.0, 1.0), 0)
        self.comparisons = [
            Comparison(name, policy, ratios.get(policy)) for name, policy in others.items()
        ]
        if _EXACT in others:
            self.exact = self._exact_gain(exact, finalists)

    def _best_exact(self, entered: list[Contestant]) -> Policy | None:
        """Of the policies that can be the best, or of all, where none of them is exact."""
        rates = {c.policy: c.rate_qps for c in entered if c.policy.execution.exact}
        rates = rates or {
            p: t.capacity.rate_qps for p, t in self.trials.items() if p.execution.exact
        }
        return max(rates, key=lambda p: rates[p], default=None)

    def _exact_gain(self, exact: Policy | None, finalists: list[Contestant]) -> Comparison | None:
        """Of the best exact policy over the static baseline."""
        by_policy = {one.policy: one for one in finalists}
        one = None if exact is None else by_policy.get(exact)
        static = by_policy.get(self.space.static)
        if exact is None or one is None or static is None:
            return None
        ratio = Ratio(1.0, (1.0, 1.0), 0) if one is static else ratio_of(one, static)
        return Comparison(_STATIC, exact, ratio)

    def _rounds(self, entered: list[Contestant], turn: int, until: float) -> None:
        """Rounds; what they say of each policy takes the place of what was known."""
        looks = self._effort(FINE)
        try:
            interleave(
                self.probe,
                entered,
                lambda rate: looks.duration_s(rate, self.sla),
                until=until,
                turn=turn,
                most_rounds=MOST_ROUNDS if self.facts.virtual else MOST_LIVE,
            )
        finally:
            for one in entered:
                before = self.trials.get(one.policy, Trial(one.policy, _NOT_MEASURED)).capacity
                self.trials[one.policy] = Trial(one.policy, one.capacity(before))

    def _rate(self, policy: Policy, led: Mapping[Policy, Contestant]) -> float:
        """Where its rounds would begin; 0 if it meets the target at no rate."""
        if policy in led:
            return led[policy].rate_qps
        if policy not in self.trials:
            self._measure(policy, COARSE, self._until())
        return self.trials[policy].capacity.rate_qps

    def _contestant(self, policy: Policy) -> Contestant:
        known = self.trials[policy].capacity
        rate_qps = known.rate_qps * (_BELOW if known.kind == "estimate" else 1.0)
        return Contestant.at(policy, rate_qps, self.probe)

    def _measure(
        self, policy: Policy, looks: Effort, until: float, guess_qps: float | None = None
    ) -> Capacity:
        """A look at a policy, `COARSE` or `FINE`, on top of its runs before."""
        before = self.trials[policy].capacity if policy in self.trials else None
        if before is not None and looks is COARSE:
            return before
        effort = self._effort(looks)
        self.current = list(before.runs) if before else []
        if before is None and (bound := self._no_chance(policy)) is not None:
            if not self.facts.virtual:
                self.trials[policy] = Trial(policy, bound)
                self.observer.on_trial(self.trials[policy])
                return bound
            effort = replace(effort, **GLANCE)  # simulated runs cost little, and figures want them
        try:
            until = min(until, self._fair_until(effort, until))
            # However late, a run is its due: a policy without one says nothing.
            until = max(until, min(self.clock.now_s() + effort.most_s, self._until()))
            capacity = search_rate(
                self.probe,
                policy,
                effort,
                before=tuple(self.current),
                until=until,
                guess_qps=guess_qps,
            )
        except Interrupted:
            self._keep_unfinished(policy)
            raise
        if before is not None:
            capacity = replace(capacity, idle_p95_s=capacity.idle_p95_s or before.idle_p95_s)
        self.trials[policy] = Trial(policy, capacity)
        self.observer.on_trial(self.trials[policy])
        return capacity

    def _no_chance(self, policy: Policy) -> Capacity | None:
        """What its cores could do at most, if that is far below what another policy was seen to
        do: then no live run is spent on it, and a glance in simulation."""
        if self.facts.of(policy).service_s is None:
            return None
        # Of its own execution: the best exact policy is asked for as well.
        best = max(
            (t.capacity for t in self.trials.values() if t.policy.execution == policy.execution),
            key=lambda capacity: capacity.rate_qps,
            default=None,
        )
        if best is None or best.rate_qps == 0:
            return None
        most = saturation_rate(self.probe, policy)
        if most >= _NO_CHANCE * best.rate_qps:
            return None
        return Capacity(most, (0.0, most), False, kind="estimate")

    def _fair_until(self, effort: Effort, until: float) -> float:
        """No policy may use up what the others need."""
        now = self.clock.now_s()
        left = sum(p not in self.trials and self._no_chance(p) is None for p in self._cores)
        left += len(self.space.thresholds) + (len(BACKLOGS) if self.space.thresholds else 0)
        left -= sum(p.offload_threshold is not None for p in self.trials)
        share = (until - now) / max(left, 3) if math.isfinite(until) else 0.0
        return now + max(6 * effort.most_s, share)

    def _on_run(self, policy: Policy, run: Run) -> None:
        self.current.append(run)
        self.observer.on_run(policy, run)

    def _keep_unfinished(self, policy: Policy) -> None:
        """The runs of a trial that was cut short still count for what they say."""
        if self.current:
            self.trials[policy] = Trial(policy, capacity_of(self.current, COARSE.tolerance, None))

    def _best(self) -> Trial | None:
        """The one chosen for the comparison; before it, the highest rate so far."""
        if self.chosen is not None:
            return self.trials[self.chosen]
        able = [t for t in self.trials.values() if t.capacity.rate_qps > 0]
        return max(able, key=lambda t: t.capacity.rate_qps, default=None)

    def _best_alone(self, entered: list[Contestant]) -> Policy | None:
        """Of the policies that offload nothing: of those entered for the comparison, or tried."""
        rates = {c.policy: c.rate_qps for c in entered}
        rates = rates or {p: t.capacity.rate_qps for p, t in self.trials.items()}
        able = [p for p, rate in rates.items() if rate > 0 and p.offload_threshold is None]
        return max(able, key=lambda p: rates[p], default=None)

    @property
    def _cores(self) -> list[Policy]:
        """That a search may look at, as far as can be told by now."""
        first, *others = self.space.executions
        seen = [t for p, t in self.trials.items() if p.execution == first]
        top = max(seen, key=lambda t: t.capacity.rate_qps, default=None)
        size = (top.policy if top else self.space.static).batch_size
        near = [policy for how in others for policy in self.space.near(how, size)]
        return [*self.space.of(first), *near]

    def _until(self) -> float:
        return self.began + self.budget_s

    def _effort(self, looks: Effort) -> Effort:
        """Runs short enough that a small budget still buys every policy a few of them."""
        effort = looks.on(self.facts)
        if self.run_s is not None:
            return replace(effort, least_s=self.run_s, most_s=self.run_s, least_queries=0)
        if self.facts.virtual or math.isinf(self.budget_s):
            return effort
        if self.surrogate is not None:  # a look at one policy; then up to three, four rounds
            share, runs = 1.0, 13
        elif looks is COARSE:
            looked_at = sum(self._no_chance(policy) is None for policy in self._cores)
            looked_at += len(self.space.thresholds)
            looked_at += len(BACKLOGS) if self.space.thresholds else 0
            share, runs = _FIRST_LOOKS, 4 * (looked_at + 2)
        else:  # three contenders and the baseline; then three policies, four rounds or more
            share, runs = 1 - _FIRST_LOOKS, 30
        return effort.within(self.budget_s * share, runs)

    def _study(self, interrupted: bool) -> Study:
        best = self._best()
        baseline = self.trials.get(self.space.static, Trial(self.space.static, _NOT_MEASURED))
        study = Study(
            method=self.method,
            sla=self.sla,
            baseline=baseline,
            best=best,
            trials=sorted(self.trials.values(), key=_by_knobs),
            comparisons=self.comparisons,
            interrupted=interrupted,
            elapsed_s=self.clock.now_s() - self.began,
            simulated=self.simulated,
            exact=self.exact,
        )
        if best is not None:
            sizes = self.workload.sample_sizes(4096)
            study.binds = what_binds(
                self.facts,
                best.policy,
                best.capacity.rate_qps,
                sizes,
                self.sla,
                list(best.capacity.runs),
            )
        return study
