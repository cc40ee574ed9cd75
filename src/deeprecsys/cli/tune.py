"""`tune`: the main job. Wires model, engine and study together; shows, judges and saves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deeprecsys.analysis.usage import sentences, usage
from deeprecsys.cli import folder as files
from deeprecsys.cli import options as opt
from deeprecsys.cli import show
from deeprecsys.cli.profile import profiling
from deeprecsys.core import Policy, Records, Requests, UserError
from deeprecsys.machines.service_time import ABOUT_MODEL

if TYPE_CHECKING:
    from deeprecsys.engine import Engine
    from deeprecsys.tuning import Capacity, Comparison, Study, Trial
    from deeprecsys.workload import Workload

NAME = "tune"
HELP = """Find the policy with the highest capacity: the most queries/s within the target.

Measures the static baseline, searches, measures the best again and compares it turn by turn.

Example: deeprecsys tune dlrm-rmc1 --sla-ms 50 --budget-s 120
"""

# Enough for every policy of each search on two cores; --budget-s overrides.
BUDGET_S = {
    "hill-climb": 230.0, "exhaustive": 480.0, "joint": 300.0, "static": 120.0, "simulated": 48.0,
}  # fmt: skip
_MORE_S = 1.5  # with a threshold to be found as well
# Of it, for one run at the end whose every request is recorded.
_TRACE_S, _TRACE_SHARE, _TRACE_TURN = 10.0, 0.05, 900


@opt.measuring
def run(
    request: opt.Request,
    method: Annotated[
        str, typer.Option(help="hill-climb, exhaustive, joint, static or simulated.")
    ] = "hill-climb",
    budget_s: Annotated[
        float | None,
        typer.Option(
            help="Bound on the search's time, s.  [default: by method, 48 to 480; "
            "with an accelerator half as much again]"
        ),
    ] = None,
    duration_s: opt.DurationS = None,
) -> int:
    from deeprecsys.experiments import guided
    from deeprecsys.tuning import SIMULATED, Observer, tune

    if method not in BUDGET_S:
        raise UserError(f"unknown method {method!r}; known: {', '.join(BUDGET_S)}")
    opt.positive("--budget-s", budget_s)
    opt.positive("--duration-s", duration_s)
    sla = request.sla
    files.check_target("--json", request.json_file)
    folder = files.new_folder(request.out, NAME, request.model)
    usual_s = BUDGET_S[method] * (_MORE_S if request.accelerator else 1.0)
    budget = usual_s if budget_s is None else budget_s
    trace_s = min(_TRACE_S, _TRACE_SHARE * budget)
    console = show.console(request.json_file)
    with (
        show.Progress(console, sla, budget) as progress,
        show.interruptible() as interrupted,
        show.loaded(progress, request) as engine,
    ):
        facts = engine.facts()
        progress.line(
            f"{facts.workers} workers, runtime {engine.runtime.name}, target {sla}, "
            f"at most {budget:g} s"
        )
        surrogate, profile_s = None, 0.0
        if method == SIMULATED:
            progress.phase("profile")
            profile_s = guided.profile_seconds(budget)
            profile = engine.profile(
                budget_s=profile_s,
                indices=request.indices,
                stop=interrupted.is_set,
                on_visit=profiling(progress, folder),
            )
            surrogate = guided.surrogate(engine, profile)
        study = tune(
            engine,
            request.workload,
            sla,
            method,
            budget_s=budget - trace_s - profile_s,
            run_s=duration_s,
            surrogate=surrogate,
            observer=Observer(
                stop=interrupted.is_set,
                on_phase=progress.phase,
                on_progress=progress.step,
                on_trial=lambda trial: progress.line(trial_line(trial)),
            ),
        )
        records, requests = _records(study), None
        if study.best is not None and not interrupted.is_set():
            progress.phase("trace")
            records, requests = _trace(engine, request.workload, study.best, trace_s)
        lost, joules = show.losses(engine), engine.joules()
        detail = {"engine": dict(facts.detail), "input_pools": engine.pool_facts()}
    summary = {
        **files.provenance(NAME),
        **request.to_dict(),
        "method": method,
        "workers": facts.workers,
        "accelerator": show.accelerators(facts),
        "lost": lost,
        **detail,
        **study_dict(study),
    }
    summary["verdict"] = show.emulation(summary) + summary["verdict"]
    if records is not None and requests is not None:
        devices = facts.detail["accelerators"]
        summary["usage"] = usage(
            records, requests, facts.workers, devices, watts=request.power, measured=joules
        )
    _write_policy(folder, summary)
    report = files.write_run(folder, summary, request.json_file, records, requests)
    console.print(show.trials_table(summary))
    console.print(f"\n{summary['verdict']}", style="bold", markup=False)
    for line in [*sentences(summary.get("usage", {})), *lost]:
        console.print(line, markup=False)
    console.print(f"report: {report}", markup=False)
    if study.interrupted:
        console.print("interrupted: what was measured until then is kept", markup=False)
        return 130
    return 0 if study.best else 1


def study_dict(study: Study) -> dict[str, Any]:
    """The part of a tuning's summary that the study knows."""
    first = study.comparisons[0].to_dict() if study.comparisons else None
    speedup = first or {"ratio": None, "interval": [None, None], "significant": None}
    return {
        "verdict": verdict(study),
        "baseline": _chosen(study.baseline),
        "best": _chosen(study.best) if study.best else None,
        "speedup": {name: speedup[name] for name in ("ratio", "interval", "significant")},
        "comparisons": [c.to_dict() for c in study.comparisons],
        "binds": study.binds.sentence,
        "binds_kind": study.binds.kind,
        "idle_p95_s": study.idle_p95_s,
        "trials": [t.to_dict() for t in study.trials],
        "simulated": _simulated(study) if study.simulated else None,
        "interrupted": study.interrupted,
        "elapsed_s": study.elapsed_s,
    }


def _simulated(study: Study) -> dict[str, Any]:
    """The search in simulation, and its prediction for the policy that was measured best."""
    assert study.simulated is not None
    trials = [
        {"policy": t.policy.to_dict(), "capacity": t.capacity.to_dict()}
        for t in study.simulated.trials
    ]
    predicted = {t.policy: t.capacity.rate_qps for t in study.simulated.trials}
    ratio = None
    if study.best is not None and study.best.policy in predicted:
        ratio = predicted[study.best.policy] / study.best.capacity.rate_qps
    return {
        "trials": trials,
        "predicted_over_measured": ratio,
        "elapsed_s": study.simulated.elapsed_s,
    }


def verdict(study: Study) -> str:
    """The answer in one sentence."""
    best, sla = study.best, study.sla
    if best is None:
        idle = study.idle_p95_s
        if study.interrupted and idle is None:
            return "interrupted before any policy was measured"
        if idle is None:
            return f"undecided: no rate was found to meet {sla} in that time; give more --budget-s"
        return (
            f"no rate meets {sla}; the idle machine already gives "
            f"p{sla.percentile:g} {show.ms(idle)} ms"
        )
    capacity = best.capacity
    parts = [
        f"{best.policy}: {show.rate(capacity.rate_qps)} queries/s "
        f"{_interval(capacity)} at {sla}{'' if capacity.decided else ', undecided'}"
    ]
    parts += [text for c in study.comparisons if (text := _comparison(c, best.policy))]
    if study.simulated and (ratio := _simulated(study)["predicted_over_measured"]):
        parts.append(f"simulation had predicted {ratio:.2f}× that")
    return "; ".join([*parts, f"bound by {study.binds.kind}"])


def _comparison(comparison: Comparison, best: Policy) -> str:
    name = f"{comparison.name} of {comparison.policy.batch_size}"
    if comparison.policy == best:
        return f"it is {name}"
    ratio = comparison.ratio
    if ratio is None:
        return f"against {name} not measured"
    lo, hi = ratio.interval
    doubt = "" if ratio.significant else ", not significant"
    return f"{ratio.ratio:.2f}× [{lo:.2f}, {hi:.2f}] {name}{doubt}"


def _interval(capacity: Capacity) -> str:
    lo, hi = capacity.interval_qps
    return show.interval((lo, hi if math.isfinite(hi) else None), show.rate)


def trial_line(trial: Trial) -> str:
    capacity = trial.capacity
    if capacity.rate_qps == 0 and capacity.idle_p95_s is not None:
        return f"{trial.policy}: no rate; idle {show.ms(capacity.idle_p95_s)} ms"
    open_ends = "" if capacity.decided else " undecided"
    return (
        f"{trial.policy}: {show.rate(capacity.rate_qps)} queries/s {_interval(capacity)}{open_ends}"
    )


def _chosen(trial: Trial) -> dict[str, Any]:
    return {"policy": trial.policy.to_dict(), "capacity": trial.capacity.to_dict()}


def _trace(
    engine: Engine, workload: Workload, best: Trial, seconds: float
) -> tuple[Records, Requests]:
    """A fresh run of the best policy at its capacity, for the report's pictures."""
    schedule = workload.reseed(workload.seed + _TRACE_TURN).schedule(
        rate_qps=best.capacity.rate_qps, duration_s=seconds
    )
    return engine.traced_run(schedule, best.policy)


def _records(study: Study) -> Records | None:
    """Of the best policy's run nearest its capacity that held the target."""
    if study.best is None:
        return None
    capacity = study.best.capacity
    runs = [r for r in capacity.runs if r.records is not None and r.passed]
    nearest = min(runs, key=lambda r: abs(r.rate_qps - capacity.rate_qps), default=None)
    return nearest.records if nearest else None


def _write_policy(folder: Path, summary: dict[str, Any]) -> None:
    """What `serve --policy` takes."""
    if summary["best"] is None:
        return
    chosen = {
        "policy": summary["best"]["policy"],
        "model": {name: summary[name] for name in ABOUT_MODEL},
        "sla": summary["sla"],
        "machine": summary["machine"],
        "runtime": summary["engine"]["runtime"],
    }
    (folder / "policy.json").write_text(json.dumps(chosen, indent=1) + "\n")
