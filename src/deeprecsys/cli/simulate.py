"""`simulate`: `bench` and, with --tune, `tune` on a simulated machine of any number of workers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deeprecsys.cli import bench as bench_verb
from deeprecsys.cli import fleet as fleets
from deeprecsys.cli import folder as files
from deeprecsys.cli import options as opt
from deeprecsys.cli import show
from deeprecsys.cli import tune as tune_verb
from deeprecsys.cli.profile import FILE, profiling
from deeprecsys.core import Policy, UserError

if TYPE_CHECKING:
    from deeprecsys.experiments.result import Result
    from deeprecsys.machines.service_time import Profile, ServiceTime
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


@dataclass(frozen=True)
class Wanted:
    """What is simulated, and how service times are come by."""

    qps: Annotated[float | None, typer.Option(help="Queries per second.")] = None
    tune: Annotated[bool, typer.Option("--tune", help="Search for the best policy instead.")] = (
        False
    )
    method: Annotated[
        str, typer.Option(help="With --tune: hill-climb, exhaustive, joint or static.")
    ] = "hill-climb"
    fleet: Annotated[
        str | None, typer.Option(help="Simulate the fleet and the traffic of this file.")
    ] = None
    paper: Annotated[
        str | None, typer.Option(help="optimum, lognormal, handful, tail, quarter or retune.")
    ] = None
    service: Annotated[
        str | None,
        typer.Option(help="constant:S, linear:S,S_PER_ITEM or exponential:S, in seconds."),
    ] = None
    profile: Annotated[
        str | None, typer.Option(help="A profile.json.  [default: MODEL is profiled first]")
    ] = None
    profile_s: Annotated[float, typer.Option(help="Time for profiling MODEL, s.")] = PROFILE_S
    extrapolate: Annotated[
        bool, typer.Option("--extrapolate", help="Allow requests beyond the profile's largest.")
    ] = False
    batch_size: Annotated[int, typer.Option(help="Most items of a request.")] = 128
    adaptive: bench_verb.Adaptive = False
    offload_threshold: opt.OffloadThreshold = None
    offload_backlog: opt.OffloadBacklog = None
    duration_s: opt.DurationS = None
    queries: Annotated[
        int | None, typer.Option(help="End after this many.  [default: 1,000,000]")
    ] = None


@opt.measuring
def run(request: opt.SimulationRequest, wanted: Wanted) -> int:
    from deeprecsys.experiments.simulated import given_law
    from deeprecsys.machines.service_time import ServiceTime

    if wanted.fleet is not None:
        _check_fleet(request, wanted)
        return fleets.run(request, wanted.fleet)
    how = _how(request, wanted)
    about = {"model": request.label, **request.which.about} if request.model else {}
    law = given_law(wanted.service, wanted.profile, about, extrapolate=wanted.extrapolate)
    folder = files.prepared(request, NAME, request.label)
    with (
        show.Progress(show.console(request.json_file), request.target, None) as progress,
        show.interruptible() as interrupted,
    ):
        if law is None:
            measured = _profiled(request, progress, folder, wanted.profile_s, interrupted)
            law = ServiceTime.from_profile(measured, extrapolate=wanted.extrapolate)
        return how(_Task(request, law, folder, progress, interrupted))


@dataclass(frozen=True, slots=True)
class _Task:
    """What is simulated, whatever is asked of it."""

    request: opt.SimulationRequest
    law: ServiceTime
    folder: Path
    progress: show.Progress
    interrupted: threading.Event

    def simulator(self) -> Simulator:
        """Says what it takes for granted."""
        from deeprecsys.engine.topology import usable_cores
        from deeprecsys.experiments.simulated import machine

        request, cores = self.request, len(usable_cores())
        bounds: dict[str, Any] = {}
        if request.model is not None:
            of = request.which
            bounds = {"whole": of.whole, "most_items": of.most_items}
        made = machine(
            self.law,
            request.workers,
            request.accelerator or (),
            request.label if request.model else None,
            request.seed,
            cores,
            **bounds,
        )
        for line in made.facts().detail["assumptions"]:
            self.progress.line(f"simulated: {line}")
        return made

    def write(self, found: Result) -> Path:
        return files.write(found, self.folder, self.request.json_file)


How = Callable[[_Task], int]


@dataclass(frozen=True, slots=True)
class _OneRate:
    policy: Policy
    rate_qps: float | None
    duration_s: float | None
    queries: int | None

    def __call__(self, task: _Task) -> int:
        from deeprecsys.experiments.benching import bench

        request = task.request
        found = bench(
            task.simulator(), request.workload, self.policy, rate_qps=self.rate_qps,
            duration_s=self.duration_s, queries=self.queries, sla=request.target,
            watts=request.power, asked=request.asked,
        )  # fmt: skip
        bench_verb.shown(found, request.json_file, task.write(found))
        return 1 if request.sla_ms is not None and found.found.meets_sla is False else 0


@dataclass(frozen=True, slots=True)
class _Tune:
    method: str

    def __call__(self, task: _Task) -> int:
        from deeprecsys.experiments.tuning import tune

        request, simulator, sla = task.request, task.simulator(), task.request.target
        assert sla is not None
        task.progress.line(f"{simulator.workers} workers, target {sla}")
        found = tune(
            simulator, request.workload, sla, self.method, watts=request.power,
            observer=tune_verb.observer(task.progress, task.interrupted), asked=request.asked,
        )  # fmt: skip
        return tune_verb.shown(found, request.json_file, task.write(found))


@dataclass(frozen=True, slots=True)
class _Paper:
    name: str

    def __call__(self, task: _Task) -> int:
        from deeprecsys.experiments.simulated import paper_result

        request, console = task.request, show.console(task.request.json_file)
        workers = request.workers or 40
        found = paper_result(self.name, task.law, request.sla, request.asked, workers)
        report = task.write(found)
        for line in found.assumed["assumptions"]:
            console.print(f"simulated: {line}", markup=False)
        for row in found.rows:
            said = f"{row.what}\n  the paper: {row.paper}\n  simulated: {row.ours}"
            console.print(said, markup=False)
        console.print(f"report: {report}", markup=False)
        return 0


def _how(request: opt.SimulationRequest, wanted: Wanted) -> How:
    """UserError for what contradicts itself, before any work."""
    opt.positive("--profile-s", wanted.profile_s)
    policy = Policy(batch_size=wanted.batch_size, adaptive=wanted.adaptive)
    policy = opt.offloading(request, policy, wanted.offload_threshold, wanted.offload_backlog)
    if request.model is not None:
        policy = replace(policy, execution=request.which.execution)
    if wanted.paper is not None:
        _check_paper(request, wanted)
        return _Paper(wanted.paper)
    _check(request, wanted)
    if wanted.tune:
        return _Tune(wanted.method)
    return _OneRate(policy, *_length(request, wanted))


def _check_fleet(request: opt.SimulationRequest, wanted: Wanted) -> None:
    others = (request.model, wanted.paper, wanted.qps, wanted.service, wanted.profile)
    if wanted.tune or any(other is not None for other in others):
        raise UserError("--fleet takes everything from its file: leave the rest out")


def _check_paper(request: opt.SimulationRequest, wanted: Wanted) -> None:
    from deeprecsys.experiments.simulated import check_paper_name

    check_paper_name(wanted.paper or "")
    if request.model is None:
        raise UserError("--paper needs a MODEL: its results are of one")
    if wanted.qps is not None or wanted.tune:
        raise UserError("--paper finds rates and policies itself: leave out --qps and --tune")


def _check(request: opt.SimulationRequest, wanted: Wanted) -> None:
    _check_service(request.model, wanted.service, wanted.profile)
    opt.positive("--qps", wanted.qps)
    if wanted.tune:
        _check_tune(request, wanted)
    elif wanted.qps is None and not request.arrivals.startswith("replay:"):
        raise UserError("at which rate? give --qps, or --tune for the whole search")


def _check_service(model: str | None, service: str | None, profile: str | None) -> None:
    if service is not None and profile is not None:
        raise UserError("give --service or --profile, not both")
    if model is None and service is None and profile is None:
        raise UserError("what is simulated? give a MODEL, --service LAW or --profile FILE")
    if model is not None and service is not None:
        raise UserError(f"--service is a law of its own: leave out {model}, or --service")


def _check_tune(request: opt.SimulationRequest, wanted: Wanted) -> None:
    from deeprecsys.tuning.searches import SEARCHES

    if wanted.method not in SEARCHES:
        raise UserError(f"unknown method {wanted.method!r}; known: {', '.join(SEARCHES)}")
    if wanted.qps is not None:
        raise UserError("--tune finds the rate itself: leave out --qps")
    if request.target is None:
        raise UserError("--tune needs a target: give --sla-ms")


def _length(
    request: opt.SimulationRequest, wanted: Wanted
) -> tuple[float | None, float | None, int | None]:
    """Rate, duration and queries of the run; UserError where nothing would arrive."""
    from deeprecsys.experiments.benching import scheduled

    qps, duration_s, queries = wanted.qps, wanted.duration_s, wanted.queries
    if duration_s is None and queries is None and qps is not None:
        queries = QUERIES
    scheduled(request.workload, qps, duration_s, queries)
    return qps, duration_s, queries


def _profiled(
    request: opt.SimulationRequest,
    progress: show.Progress,
    folder: Path,
    seconds: float,
    interrupted: threading.Event,
) -> Profile:
    """Of the model on all of this machine's cores, kept in the run's folder."""
    with show.loaded(progress, replace(request, workers=None)) as engine:
        progress.line(f"profiling {request.model} on {engine.workers} workers for {seconds:g} s")
        found = engine.profile(
            budget_s=seconds,
            indices=request.indices,
            stop=interrupted.is_set,
            on_visit=profiling(progress, folder),
        )
    if interrupted.is_set():
        progress.line(f"interrupted: what was measured is in {folder / FILE}")
        raise KeyboardInterrupt
    progress.line(f"profile: {folder / FILE} (for --profile)")
    return found
