"""`simulate`: `bench` and, with --tune, `tune` on a simulated machine of any number of workers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deeprecsys.analysis.metrics import summarize
from deeprecsys.analysis.usage import sentences, usage
from deeprecsys.cli import bench, show
from deeprecsys.cli import fleet as fleets
from deeprecsys.cli import folder as files
from deeprecsys.cli import options as opt
from deeprecsys.cli import tune as tuning_verb
from deeprecsys.cli.profile import FILE, profiling
from deeprecsys.core import Policy, Records, Requests, Schedule, UserError

if TYPE_CHECKING:
    from deeprecsys.machines.service_time import ServiceTime
    from deeprecsys.simulation import Simulator

NAME = "simulate"
HELP = """Simulate a machine with any number of workers: one rate, or with --tune the whole search.

Service times come from a law (--service), from a profile (--profile), or from profiling MODEL on
this machine first. What a simulation takes for granted is printed with it.

With --fleet a whole fleet's day, described in a file (docs/fleets.md); with --paper one of the
paper's results at scale, beside ours.

Example: deeprecsys simulate dlrm-rmc3 --workers 40 --tune
"""
QUERIES = 1_000_000
PROFILE_S = 20.0
_TRACED = 5_000  # queries at the beginning, of which every request is kept


@opt.measuring
def run(
    request: opt.SimulationRequest,
    qps: Annotated[float | None, typer.Option(help="Queries per second.")] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Search for the best policy instead.")
    ] = False,
    method: Annotated[
        str, typer.Option(help="With --tune: hill-climb, exhaustive, joint or static.")
    ] = "hill-climb",
    fleet: Annotated[
        str | None, typer.Option(help="Simulate the fleet and the traffic of this file.")
    ] = None,
    paper: Annotated[
        str | None, typer.Option(help="optimum, lognormal, handful, tail, quarter or retune.")
    ] = None,
    service: Annotated[
        str | None,
        typer.Option(help="constant:S, linear:S,S_PER_ITEM or exponential:S, in seconds."),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="A profile.json.  [default: MODEL is profiled first]")
    ] = None,
    profile_s: Annotated[float, typer.Option(help="Time for profiling MODEL, s.")] = PROFILE_S,
    extrapolate: Annotated[
        bool, typer.Option("--extrapolate", help="Allow requests beyond the profile's largest.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Most items of a request.")] = 128,
    adaptive: bench.Adaptive = False,
    offload_threshold: opt.OffloadThreshold = None,
    offload_backlog: opt.OffloadBacklog = None,
    duration_s: opt.DurationS = None,
    queries: Annotated[
        int | None, typer.Option(help="End after this many.  [default: 1,000,000]")
    ] = None,
) -> int:
    if fleet is not None:
        if request.model is not None or paper or tune or qps is not None or service or profile:
            raise UserError("--fleet takes everything from its file: leave the rest out")
        return fleets.run(request, fleet)
    policy = Policy(batch_size=batch_size, adaptive=adaptive)
    policy = opt.offloading(request, policy, offload_threshold, offload_backlog)
    if paper is not None:
        _check_paper(request, paper, qps, tune)
    else:
        _check(request, qps, tune, method, service, profile)
    opt.positive("--profile-s", profile_s)
    whole = tune or paper is not None
    schedule = None if whole else _schedule(request, qps, duration_s, queries)
    law = _given(request, service, profile, extrapolate)
    files.check_target("--json", request.json_file)
    folder = files.new_folder(request.out, NAME, request.model or "service")
    console = show.console(request.json_file)
    with (
        show.Progress(console, request.target, None) as progress,
        show.interruptible() as interrupted,
    ):
        if law is None:
            law = _profiled(request, progress, folder, profile_s, extrapolate, interrupted.is_set)
        if paper is not None:
            return _paper(request, law, paper, folder, console)
        simulator = _simulator(request, law)
        facts = simulator.facts()
        for line in facts.detail["assumptions"]:
            progress.line(f"simulated: {line}")
        began = time.monotonic()
        common = {
            **files.provenance(NAME),
            **request.to_dict(),
            "simulated": dict(facts.detail),
            "workers": simulator.workers,
            "accelerator": show.accelerators(facts),
        }
        if schedule is None:
            return _tune(request, simulator, method, common, folder, console, progress, interrupted)
    records = simulator.run(schedule, policy)
    first, requests = simulator.traced_run(_first(schedule), policy)
    found = summarize(records, request.target)
    summary = {
        **common,
        "rate_qps": qps or len(schedule) / schedule.duration_s,
        "policy": policy.to_dict(),
        "interrupted": False,
        "elapsed_s": time.monotonic() - began,
        "usage": _used(request, simulator, first, requests),
        "theory": _theory(request, law, simulator.workers, qps, policy),
        **bench.measured(found),
    }
    report = files.write_run(folder, summary, request.json_file, records, requests)
    console.print(bench.table(found))
    if summary["theory"]:
        console.print(_theory_line(summary), markup=False)
    console.print(
        f"\nsimulated: {show.emulation(summary)}{bench.sentence(found, request.target)}",
        style="bold",
        markup=False,
    )
    for line in sentences(summary["usage"]):
        console.print(line, markup=False)
    console.print(f"report: {report}", markup=False)
    return 1 if request.sla_ms is not None and found.meets_sla is False else 0


def _check_paper(request: opt.SimulationRequest, name: str, qps: float | None, tune: bool) -> None:
    from deeprecsys.experiments.paper import RESULTS

    if name not in RESULTS:
        raise UserError(f"unknown result {name!r} of the paper; known: {', '.join(RESULTS)}")
    if request.model is None:
        raise UserError("--paper needs a MODEL: its results are of one")
    if qps is not None or tune:
        raise UserError("--paper finds rates and policies itself: leave out --qps and --tune")


def _paper(
    request: opt.SimulationRequest, law: ServiceTime, name: str, folder: Path, console: Any
) -> int:
    from dataclasses import asdict

    from deeprecsys.experiments.paper import RESULTS, Case

    began = time.monotonic()
    assert request.model is not None
    case = Case(request.model, law, request.sla, request.workers or 40, request.seed)
    rows = RESULTS[name](case)
    summary = {
        **files.provenance(NAME),
        **request.to_dict(),
        "paper": name,
        "workers": case.workers,
        "rows": [asdict(row) for row in rows],
        "simulated": {"service": law.text, "assumptions": law.assumptions(case.workers)},
        "elapsed_s": time.monotonic() - began,
    }
    report = files.write_run(folder, summary, request.json_file)
    for line in summary["simulated"]["assumptions"]:
        console.print(f"simulated: {line}", markup=False)
    for row in rows:
        console.print(
            f"{row.what}\n  the paper: {row.paper}\n  simulated: {row.ours}", markup=False
        )
    console.print(f"report: {report}", markup=False)
    return 0


def _check(
    request: opt.SimulationRequest,
    qps: float | None,
    tune: bool,
    method: str,
    service: str | None,
    profile: str | None,
) -> None:
    """UserError for what contradicts itself, before any work."""
    from deeprecsys.tuning.searches import SEARCHES

    if service is not None and profile is not None:
        raise UserError("give --service or --profile, not both")
    if request.model is None and service is None and profile is None:
        raise UserError("what is simulated? give a MODEL, --service LAW or --profile FILE")
    if request.model is not None and service is not None:
        raise UserError(f"--service is a law of its own: leave out {request.model}, or --service")
    opt.positive("--qps", qps)
    if tune and method not in SEARCHES:
        raise UserError(f"unknown method {method!r}; known: {', '.join(SEARCHES)}")
    if tune and qps is not None:
        raise UserError("--tune finds the rate itself: leave out --qps")
    if tune and request.target is None:
        raise UserError("--tune needs a target: give --sla-ms")
    if not tune and qps is None and not request.arrivals.startswith("replay:"):
        raise UserError("at which rate? give --qps, or --tune for the whole search")


def _schedule(
    request: opt.SimulationRequest,
    qps: float | None,
    duration_s: float | None,
    queries: int | None,
) -> Schedule:
    if duration_s is None and queries is None and qps is not None:
        queries = QUERIES
    schedule = request.workload.schedule(rate_qps=qps, duration_s=duration_s, queries=queries)
    if not len(schedule):
        raise UserError("no query arrives in that time: give a higher --qps or more --duration-s")
    return schedule


def _given(
    request: opt.SimulationRequest, service: str | None, profile: str | None, extrapolate: bool
) -> ServiceTime | None:
    """The service time that was given; None: to be measured."""
    from deeprecsys.machines.service_time import Profile, ServiceTime

    if service is not None:
        return ServiceTime.parse(service)
    if profile is None:
        return None
    found = Profile.load(profile)
    if request.model is not None:
        names = ("model", "variant", "scale", "query_inputs")
        found.check(**{name: getattr(request, name) for name in names})
    return ServiceTime.from_profile(found, extrapolate=extrapolate)


def _profiled(
    request: opt.SimulationRequest,
    progress: show.Progress,
    folder: Path,
    seconds: float,
    extrapolate: bool,
    stop: Any,
) -> ServiceTime:
    """Of the model on all of this machine's cores, kept in the run's folder."""
    from dataclasses import replace

    from deeprecsys.machines.service_time import ServiceTime

    with show.loaded(progress, replace(request, workers=None)) as engine:
        progress.line(f"profiling {request.model} on {engine.workers} workers for {seconds:g} s")
        found = engine.profile(
            budget_s=seconds,
            indices=request.indices,
            stop=stop,
            on_visit=profiling(progress, folder),
        )
    if stop():
        progress.line(f"interrupted: what was measured is in {folder / FILE}")
        raise KeyboardInterrupt
    progress.line(f"profile: {folder / FILE} (for --profile)")
    return ServiceTime.from_profile(found, extrapolate=extrapolate)


def _simulator(request: opt.SimulationRequest, law: ServiceTime) -> Simulator:
    """As many workers as asked for; else as were profiled, or as this machine has cores."""
    from deeprecsys.engine.topology import usable_cores
    from deeprecsys.machines.accelerators import accelerator
    from deeprecsys.simulation import Simulator

    workers = request.workers
    if workers is None and law.profile is not None:
        workers = law.profile.about.get("workers")
    wanted = request.accelerator or []
    devices = [accelerator(text, request.model, law.profile) for text in wanted]
    return Simulator(law, workers or len(usable_cores()), accelerators=devices, seed=request.seed)


def _used(
    request: opt.SimulationRequest, simulator: Simulator, records: Records, requests: Requests
) -> dict[str, Any]:
    devices = simulator.facts().detail["accelerators"]
    return usage(records, requests, simulator.workers, devices, watts=request.power)


def _tune(
    request: opt.SimulationRequest,
    simulator: Simulator,
    method: str,
    common: dict[str, Any],
    folder: Path,
    console: Any,
    progress: show.Progress,
    interrupted: Any,
) -> int:
    from deeprecsys.tuning import Observer, tune

    sla = request.target
    assert sla is not None
    progress.line(f"{simulator.workers} workers, target {sla}")
    study = tune(
        simulator,
        request.workload,
        sla,
        method,
        observer=Observer(
            stop=interrupted.is_set,
            on_phase=progress.phase,
            on_progress=progress.step,
            on_trial=lambda trial: progress.line(tuning_verb.trial_line(trial)),
        ),
    )
    records, requests = None, None
    if study.best is not None:
        schedule = request.workload.schedule(rate_qps=study.best.capacity.rate_qps, queries=_TRACED)
        records, requests = simulator.traced_run(schedule, study.best.policy)
    summary = common | {"method": method, **tuning_verb.study_dict(study)}
    summary["simulated"] = common["simulated"]
    summary["verdict"] = (
        f"simulated, {simulator.workers} workers: {show.emulation(summary)}{summary['verdict']}"
    )
    if records is not None and requests is not None:
        summary["usage"] = _used(request, simulator, records, requests)
    report = files.write_run(folder, summary, request.json_file, records, requests)
    console.print(show.trials_table(summary))
    console.print(f"\n{summary['verdict']}", style="bold", markup=False)
    for line in sentences(summary.get("usage", {})):
        console.print(line, markup=False)
    console.print(f"report: {report}", markup=False)
    if study.interrupted:
        console.print("interrupted: what was found until then is kept", markup=False)
        return 130
    return 0 if study.best else 1


def _first(schedule: Schedule) -> Schedule:
    return Schedule(schedule.arrival_s[:_TRACED], schedule.size[:_TRACED], schedule.indices)


def _theory(
    request: opt.SimulationRequest,
    law: ServiceTime,
    workers: int,
    qps: float | None,
    policy: Policy,
) -> dict[str, Any] | None:
    """What queueing theory says, where a query is one request of an exponential time."""
    from deeprecsys.simulation.theory import mmc_mean_s, mmc_percentile_s

    sizes = request.workload.size_law
    one = sizes.largest <= policy.batch_size and not policy.adaptive
    if law.law != "exponential" or not one or request.arrivals != "poisson" or qps is None:
        return None
    mean_s = float(law(1.0))  # type: ignore[arg-type]
    if qps * mean_s >= workers:
        return None
    return {
        "name": f"M/M/{workers}, Erlang C",
        "mean_s": mmc_mean_s(qps, mean_s, workers),
        **{f"p{p}_s": mmc_percentile_s(p, qps, mean_s, workers) for p in (50, 95, 99)},
    }


def _theory_line(summary: dict[str, Any]) -> str:
    theory = summary["theory"]
    parts = [
        f"{name} {show.ms(theory[f'{name}_s'])} ({summary[f'{name}_s'] / theory[f'{name}_s']:.3f}×)"
        for name in ("mean", "p50", "p95", "p99")
    ]
    return f"{theory['name']}, ms (simulated over it): {', '.join(parts)}"
