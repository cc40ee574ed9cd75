"""`tune` as users call it: search, check on fresh seeds, trace; the answer as one value.

Searching is `tuning.tune`'s, which knows neither engines nor simulations. Here a profile and a
simulation are wired to method "simulated", and what was found is tried again: a capacity is a
rate at which fresh runs hold, and the pictures of a report are of such a run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from deeprecsys import tuning
from deeprecsys.analysis.accuracy import check_accuracy
from deeprecsys.analysis.metrics import summarize
from deeprecsys.analysis.usage import Watts
from deeprecsys.core import EXACT, SLA, Execution, Facts, Records, System, UserError
from deeprecsys.experiments import evidence, guided, verdicts
from deeprecsys.experiments.evidence import Evidence
from deeprecsys.experiments.executing import Chosen, Tried, opened
from deeprecsys.experiments.result import Asked, Result, emulation, origin, target_dict
from deeprecsys.machines.service_time import ABOUT_MODEL
from deeprecsys.tuning import Comparison, Observer, Study, Trial
from deeprecsys.tuning.binds import Binds
from deeprecsys.tuning.interleave import Ratio
from deeprecsys.tuning.together import Together
from deeprecsys.workload import Workload

if TYPE_CHECKING:
    from deeprecsys.engine import Engine

# Enough for every policy of each search on two cores.
BUDGET_S = {
    "hill-climb": 230.0, "exhaustive": 480.0, "joint": 300.0, "static": 120.0, "simulated": 48.0,
}  # fmt: skip
_MORE_S = 1.5  # with a threshold to be found as well
# Fresh runs at the end, at this share of the capacity: so many, in this share of the time.
CHECKED_AT, CHECKS = 0.95, 3
_CHECKS_SHARE, _CHECK_S, _CHECK_TURN = 0.12, 10.0, 900
# Of a simulated machine: queries of a check.
_CHECKED = 200_000
# Of the time there is, for the search, however long was spent on executions before it.
_LEAST_SHARE = 0.5

OnProfile = Callable[[Any, Any], None]


@dataclass(frozen=True, slots=True)
class Check:
    """One fresh run below the capacity. meets_sla as of `analysis.metrics.Summary`."""

    rate_qps: float
    seed: int
    percentile_s: float
    meets_sla: bool | None
    held: bool  # established, or, if undecided, by the point estimate
    queries: int
    duration_s: float

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, kw_only=True)
class Tuning(Result):
    """A study, the checks of its answer, and what the system said of itself.

    records, requests: of the run that is shown, the first check that held (of none, the first).
    """

    study: Study
    asked: Asked
    system: Mapping[str, Any]  # workers, accelerator, and what it says of itself
    checks: Sequence[Check] = ()
    shown: Check | None = None
    used: Mapping[str, Any] = field(default_factory=dict)
    virtual: bool = False
    accuracy: str = "exact"
    tried: Sequence[Tried] = ()
    weights: str | None = None  # their hash, of a model that has them here

    @property
    def best(self) -> Trial | None:
        """The policy with the highest capacity; None where none holds the target."""
        return self.study.best

    @property
    def baseline(self) -> Trial:
        return self.study.baseline

    @property
    def speedup(self) -> Ratio | None:
        return self.study.speedup

    @property
    def trials(self) -> list[Trial]:
        return self.study.trials

    @property
    def comparisons(self) -> list[Comparison]:
        return self.study.comparisons

    @property
    def binds(self) -> Binds:
        """What keeps the best policy from more."""
        return self.study.binds

    @property
    def interrupted(self) -> bool:
        return self.study.interrupted

    @property
    def elapsed_s(self) -> float:
        return self.study.elapsed_s

    @property
    def verdict(self) -> str:
        """The answer in one sentence, with what it rests on before it."""
        where = f"simulated, {self.system['workers']} workers: " if self.virtual else ""
        said = [verdicts.tuned(self.study), verdicts.checked(self.checks, CHECKED_AT)]
        return where + emulation(self.system) + "; ".join(part for part in said if part)

    def summary(self) -> dict[str, Any]:
        found = {
            **self.asked.to_dict(),
            "method": self.study.method,
            **study_dict(self.study),
            **self.system,
            "verdict": self.verdict,
            "checks": [check.to_dict() for check in self.checks],
            "shown": self.shown.to_dict() if self.shown else None,
            **self._executions(),
        }
        return found | ({"usage": dict(self.used)} if self.records is not None else {})

    def _executions(self) -> dict[str, Any]:
        """What was tried, with the capacity of those that were searched; nothing if none was."""
        if not self.tried:
            return {}
        best: dict[Execution, Trial] = {}
        for trial in self.trials:
            how = trial.policy.execution
            if how not in best or trial.capacity.rate_qps > best[how].capacity.rate_qps:
                best[how] = trial
        return {
            "accuracy": self.accuracy,
            "executions": [
                one.to_dict()
                | {
                    "capacity": best[one.execution].capacity.to_dict()
                    if one.execution in best
                    else None
                }
                for one in self.tried
            ],
        }

    def files(self) -> Mapping[str, Any]:
        """policy.json, what `serve --policy` takes."""
        if self.study.best is None or self.virtual or self.asked.model is None:
            return {}
        about = self.asked.to_dict()
        chosen = {
            "policy": self.study.best.policy.to_dict(),
            "model": {name: about.get(name) for name in ABOUT_MODEL} | {"weights": self.weights},
            "sla": target_dict(self.asked.sla),
            "machine": self.origin["machine"],
            "runtime": self.system["engine"].get("runtime"),
            **self._guard(self.study.best.policy.execution),
        }
        return {"policy.json": chosen}

    def _guard(self, execution: Execution) -> dict[str, Any]:
        """What the guard saw of the chosen execution."""
        one = next((t for t in self.tried if t.execution == execution and t.drift), None)
        if one is None or one.drift is None:
            return {}
        return {"guard": {"accuracy": self.accuracy, "drift": one.drift.to_dict()}}


def tune(
    system: System | Engine,
    workload: Workload,
    sla: SLA,
    method: str = "hill-climb",
    *,
    budget_s: float | None = None,
    run_s: float | None = None,
    observer: Observer | None = None,
    surrogate: System | None = None,
    watts: Watts | None = None,
    on_profile: OnProfile = lambda *_: None,
    asked: Asked | None = None,
    accuracy: str = "exact",
    execution: Execution | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Tuning:
    """Finds the policy with the highest capacity, and checks it on fresh seeds.

    budget_s bounds the whole; run_s is the length of every run; see `tuning.tune`. accuracy: how
    near the exact scores an execution must be to be chosen (`analysis.accuracy.LEVELS`); execution:
    this one and no other; say: is told a line about each. Of an engine only. Method
    "simulated" profiles the engine (on_profile is told), searches in simulation, and confirms the
    best few live; any other is all live. watts: of what has no meter. Raises UserError for a
    wrong method, budget or length.
    """
    if budget_s is not None and not (budget_s > 0 and math.isfinite(budget_s)):
        raise UserError(f"the time budget must be positive, not {budget_s:g} s")
    check_accuracy(accuracy)
    observer, began_s = observer or Observer(), time.monotonic()
    with ExitStack() as stack:
        chosen = Chosen(system)
        if hasattr(system, "beside") and (method != "static" or execution is not None):
            observer.on_phase("executions")
            chosen = stack.enter_context(
                opened(cast("Engine", system), workload, accuracy, execution, budget_s, say)
            )
        elif execution is not None:
            raise UserError("an execution can be chosen of an engine only")
        system, facts = chosen.system, chosen.system.facts()
        check_s = _check_seconds(budget_s, facts)
        if method == tuning.SIMULATED and surrogate is None:
            surrogate = _surrogate(system, workload, budget_s, observer, on_profile)
        left_s = None
        if budget_s is not None:
            spent_s = 0.0 if facts.virtual else time.monotonic() - began_s
            left_s = max(budget_s - check_s * CHECKS - spent_s, _LEAST_SHARE * budget_s)
        study = tuning.tune(
            system, workload, sla, method,
            budget_s=left_s, run_s=run_s, surrogate=surrogate, observer=observer,
        )  # fmt: skip
        made = _checks(system, workload, study, check_s, observer, watts)
        return Tuning(
            origin=origin("simulate" if facts.virtual else "tune"),
            study=study,
            asked=asked or Asked.of(system, workload, sla),
            system=evidence.described(system, facts),
            virtual=facts.virtual,
            accuracy=accuracy,
            tried=chosen.tried,
            weights=_weights(system),
            **_shown(made, study),
        )


def _weights(system: Any) -> str | None:
    model = getattr(system, "model", None)
    if not (hasattr(model, "spec") or hasattr(model, "path")):  # a simulation's, a stub
        return None
    from deeprecsys.artifacts.weights import weights_hash

    return weights_hash(model)


def usual_budget_s(method: str, accelerator: bool) -> float:
    """UserError for an unknown method."""
    if method not in BUDGET_S:
        raise UserError(f"unknown method {method!r}; known: {', '.join(BUDGET_S)}")
    return BUDGET_S[method] * (_MORE_S if accelerator else 1.0)


def study_dict(study: Study) -> dict[str, Any]:
    """The part of a tuning's summary that the study knows."""
    first = study.comparisons[0].to_dict() if study.comparisons else None
    speedup = first or {"ratio": None, "interval": [None, None], "significant": None}
    return {
        "baseline": _chosen(study.baseline),
        "best": _chosen(study.best) if study.best else None,
        "speedup": {name: speedup[name] for name in ("ratio", "interval", "significant")},
        "comparisons": [c.to_dict() for c in study.comparisons],
        **({"exact": study.exact.to_dict()} if study.exact else {}),
        "binds": study.binds.sentence,
        "binds_kind": study.binds.kind,
        "idle_p95_s": study.idle_p95_s,
        "trials": [t.to_dict() for t in study.trials],
        "simulated": _simulated(study) if study.simulated else None,
        "interrupted": study.interrupted,
        "elapsed_s": study.elapsed_s,
    }


def _check_seconds(budget_s: float | None, facts: Facts) -> float:
    """Of one check; none of a simulated machine's time, which is computed."""
    if facts.virtual:
        return 0.0
    return _CHECK_S if budget_s is None else min(_CHECK_S, _CHECKS_SHARE / CHECKS * budget_s)


def _checks(
    system: System | Engine, workload: Workload, study: Study, check_s: float,
    observer: Observer, watts: Watts | None,
) -> list[tuple[Check, Evidence]]:  # fmt: skip
    """Fresh runs below the capacity; those that were not interrupted."""
    made: list[tuple[Check, Evidence]] = []
    if study.best is None or observer.stop():
        return made
    observer.on_phase("check")
    rate_qps, policy = CHECKED_AT * study.best.capacity.rate_qps, study.best.policy

    def watch(so_far: Records, now_s: float) -> bool:
        observer.on_progress(policy, rate_qps, so_far, now_s)
        return observer.stop()

    for seed in range(workload.seed + _CHECK_TURN, workload.seed + _CHECK_TURN + CHECKS):
        duration_s, queries = (check_s, None) if check_s else (None, _CHECKED)
        schedule = workload.reseed(seed).schedule(rate_qps, duration_s, queries)
        if not len(schedule):
            continue
        found = evidence.run(system, schedule, policy, watch=watch, watts=watts)
        if observer.stop():
            break
        made.append((_judged(found.records, study.sla, rate_qps, seed), found))
    return made


def _shown(made: list[tuple[Check, Evidence]], study: Study) -> dict[str, Any]:
    """Of a result: the first check that held, of none the first; without any, the search's run."""
    if not made:
        return {"records": _records(study)}
    check, found = next((one for one in made if one[0].held), made[0])
    return {
        "shown": check,
        "checks": tuple(check for check, _ in made),
        "records": found.records,
        "requests": found.requests,
        "used": found.used,
    }


def _judged(records: Records, sla: SLA, rate_qps: float, seed: int) -> Check:
    found = summarize(records, sla)
    near = bool(found.percentile_s <= sla.latency_s) and not found.overloaded
    held = near if found.meets_sla is None else found.meets_sla
    return Check(
        rate_qps, seed, found.percentile_s, found.meets_sla, held, len(records), found.duration_s
    )


def _surrogate(
    system: Any,
    workload: Workload,
    budget_s: float | None,
    observer: Observer,
    on_profile: OnProfile,
) -> System:
    """Of an engine, or of several side by side: simulated from profiles of each."""
    engines = system.systems if isinstance(system, Together) else {EXACT: system}
    if not all(hasattr(engine, "profile") for engine in engines.values()):
        raise UserError("method simulated needs an engine: another system has no profile")
    seconds = guided.profile_seconds(budget_s) / len(engines)
    observer.on_phase("profile")
    profiles = {
        how: engine.profile(
            budget_s=seconds, indices=workload.indices, stop=observer.stop, on_visit=on_profile
        )
        for how, engine in engines.items()
    }
    twins = {how: engines[how].twin(profile) for how, profile in profiles.items()}
    return Together(twins) if len(twins) > 1 else twins[next(iter(twins))]


def _records(study: Study) -> Records | None:
    """Of the best policy's run nearest its capacity that held the target."""
    if study.best is None:
        return None
    capacity = study.best.capacity
    runs = [r for r in capacity.runs if r.records is not None and r.passed]
    nearest = min(runs, key=lambda r: abs(r.rate_qps - capacity.rate_qps), default=None)
    return nearest.records if nearest else None


def _chosen(trial: Trial) -> dict[str, Any]:
    return {"policy": trial.policy.to_dict(), "capacity": trial.capacity.to_dict()}


def _simulated(study: Study) -> dict[str, Any]:
    """The search in simulation, and its prediction for the policy that was measured best."""
    assert study.simulated is not None
    return {
        "trials": [_chosen(trial) for trial in study.simulated.trials],
        "predicted_over_measured": verdicts.predicted_over_measured(study),
        "elapsed_s": study.simulated.elapsed_s,
    }
