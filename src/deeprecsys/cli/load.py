"""`load`: open-loop load on any KServe v2 server, at one rate or to find its capacity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from deeprecsys.analysis.metrics import summarize
from deeprecsys.cli import folder as files
from deeprecsys.cli import options as opt
from deeprecsys.cli import show
from deeprecsys.cli.bench import table
from deeprecsys.core import SLA, Policy, Records, Schedule, Status, UserError
from deeprecsys.experiments.benching import measured, sentence
from deeprecsys.workload import Workload

if TYPE_CHECKING:
    from deeprecsys.client.client import Client
    from deeprecsys.tuning import Capacity
    from deeprecsys.tuning.capacity import Run

NAME = "load"
HELP = """Put any KServe v2 (Open Inference Protocol) server under open-loop load.

At one rate, or to find the highest one that it answers within a target. A latency counts from
the scheduled arrival to the last byte of the answer. Exit code 1 if a target was asked for with
--sla-ms and was missed, or no rate meets it.

Example: deeprecsys load http://localhost:8000 --model dlrm-rmc1 --find-capacity --sla-ms 100
"""
Url = Annotated[
    str, typer.Argument(metavar="URL", help="http://HOST:PORT, grpc://HOST:PORT or grpcs://.")
]
_BUDGET_S = 120.0
# From here on the client's own processes may be what limits.
_BUSY = 0.8


def run(
    url: Url,
    model: Annotated[str, typer.Option(help="The model's name on the server.")],
    qps: Annotated[
        float | None, typer.Option(help="Queries per second.  [default: a trace's own rate]")
    ] = None,
    find_capacity: Annotated[
        bool,
        typer.Option("--find-capacity", help="Find the highest rate that holds --sla-ms."),
    ] = False,
    budget_s: Annotated[
        float | None, typer.Option(help="Bound on the search's time, s.  [default: 120]")
    ] = None,
    duration_s: opt.DurationS = None,
    queries: Annotated[int | None, typer.Option(help="End after this many.")] = None,
    sla_ms: Annotated[
        float | None, typer.Option(help="Latency target, ms.  [default: none]")
    ] = None,
    percentile: Annotated[
        float | None, typer.Option(help="Percentile of the target.  [default: 95]")
    ] = None,
    sizes: opt.Sizes = "production",
    arrivals: opt.Arrivals = "poisson",
    indices: opt.Indices = "zipf:0.92",
    processes: Annotated[int, typer.Option(help="That send; each uses one core at most.")] = 1,
    connections: Annotated[int, typer.Option(help="At most, of each process.")] = 256,
    values: Annotated[
        str | None,
        typer.Option(
            help="JSON file of what the inputs hold where the server does not say: "
            '{"ids": {"rows": 40000}, "x": {"normal": [0, 1]}, "y": {"low": 0, "high": 9}}, '
            'with "scope": "query" and "shape" where needed.'
        ),
    ] = None,
    timeout_ms: Annotated[
        float | None, typer.Option(help="Sent along as each query's deadline.  [default: none]")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Bearer token.", envvar="DEEPRECSYS_KEY")] = None,
    json_data: Annotated[
        bool, typer.Option("--json-data", help="Tensors as JSON instead of bytes: slow.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of workload and inputs.")] = 0,
    out: opt.Out = None,
    json_file: opt.JsonFile = None,
) -> int:
    from deeprecsys.client.client import Client
    from deeprecsys.client.values import read_values

    task = _Task(
        url, model, Workload(sizes=sizes, arrivals=arrivals, indices=indices, seed=seed),
        _target(sla_ms, percentile), json_file,
    )  # fmt: skip
    if find_capacity:
        _check_search(task.sla, qps, duration_s, queries, budget_s)
        measure: Measure = _Search(_BUDGET_S if budget_s is None else budget_s)
    else:
        opt.positive("--budget-s", budget_s)
        measure = _OneRate(*_schedule(task.workload, qps, duration_s, queries))
    client = Client(
        url, model, processes=processes, connections=connections, seed=seed, key=key,
        values=read_values(values) if values else None, binary=not json_data,
        timeout_s=None if timeout_ms is None else timeout_ms / 1e3,
    )  # fmt: skip
    files.check_target("--json", json_file)
    with client:  # asks the server, before a folder is made
        task.folder = files.new_folder(out, NAME, model.replace("/", "-"))
        return measure(task, client)


@dataclass(slots=True)
class _Task:
    """What was asked for, whatever the way to measure it."""

    url: str
    model: str
    workload: Workload
    sla: SLA | None
    json_file: str | None
    folder: Path = field(default_factory=Path)

    def to_dict(self, client: Client) -> dict[str, Any]:
        sla, facts = self.sla, client.facts()
        return {
            **files.provenance(NAME),
            "model": self.model,
            "seed": self.workload.seed,
            "sla": sla and {"percentile": sla.percentile, "latency_s": sla.latency_s},
            "workload": self.workload.to_dict(),
            "server": dict(facts.detail),
            "workers": facts.workers,
            "policy": None,  # the server's own
            "assumptions": client.assumptions,
        }


Measure = Callable[[_Task, "Client"], int]


@dataclass(frozen=True, slots=True)
class _OneRate:
    schedule: Schedule
    rate_qps: float

    def __call__(self, task: _Task, client: Client) -> int:
        schedule, rate = self.schedule, self.rate_qps
        console = show.console(task.json_file)
        with (
            show.Progress(console, task.sla, schedule.duration_s) as progress,
            show.interruptible() as interrupted,
        ):
            _introduce(
                progress, task, client, f"{rate:,.4g} queries/s for {schedule.duration_s:.3g} s"
            )

            def watch(so_far: Records, now_s: float) -> bool:
                progress.step(None, rate, so_far, now_s)
                return interrupted.is_set()

            records = client.run(schedule, Policy(), watch=watch)
        if interrupted.is_set():  # what was under way says nothing of the server
            records = records[records.status != Status.CANCELLED]
        found, told = summarize(records, task.sla), client.last_run()
        summary = {
            **task.to_dict(client),
            "rate_qps": rate,
            "interrupted": interrupted.is_set(),
            "client": told,
            **measured(found),
        }
        report = files.write_run(task.folder, summary, task.json_file, records)
        console.print(table(found))
        console.print(f"\n{sentence(found, task.sla)}", style="bold", markup=False)
        _say(console, told, str(report), interrupted.is_set())
        if interrupted.is_set():
            return 130
        return 1 if task.sla is not None and found.meets_sla is False else 0


@dataclass(frozen=True, slots=True)
class _Search:
    budget_s: float

    def __call__(self, task: _Task, client: Client) -> int:
        from deeprecsys.tuning import Observer, find_capacity

        assert task.sla is not None
        console = show.console(task.json_file)
        costs: list[tuple[Run, dict[str, Any]]] = []
        with (
            show.Progress(console, task.sla, self.budget_s) as progress,
            show.interruptible() as interrupted,
        ):
            _introduce(progress, task, client, f"target {task.sla}, at most {self.budget_s:g} s")

            def on_run(policy: Policy, run: Run) -> None:
                costs.append((run, client.last_run()))
                progress.line(_run_line(run))

            def on_progress(policy: Policy, rate_qps: float, so_far: Records, now_s: float) -> None:
                progress.step(None, rate_qps, so_far, now_s)

            observer = Observer(stop=interrupted.is_set, on_progress=on_progress, on_run=on_run)
            capacity = find_capacity(
                client, task.workload, task.sla, budget_s=self.budget_s, observer=observer
            )
        nearest, told = _nearest(costs, capacity)
        verdict = _verdict(capacity, task.sla)
        summary = {
            **task.to_dict(client),
            "capacity": capacity.to_dict(),
            "best": {"policy": None, "capacity": capacity.to_dict()} if capacity.rate_qps else None,
            "verdict": verdict,
            "trials": [
                {
                    "policy": None,
                    "capacity": capacity.to_dict(),
                    "runs": [run.to_dict() for run in capacity.runs],
                }
            ],
            "client": told,
            "interrupted": interrupted.is_set(),
            **(measured(nearest.summary) | {"rate_qps": nearest.rate_qps} if nearest else {}),
        }
        records = nearest.records if nearest else None
        report = files.write_run(task.folder, summary, task.json_file, records)
        console.print(f"\n{verdict}", style="bold", markup=False)
        _say(console, told, str(report), interrupted.is_set())
        if interrupted.is_set():
            return 130
        return 0 if capacity.rate_qps else 1


def _target(sla_ms: float | None, percentile: float | None) -> SLA | None:
    if sla_ms is None:
        if percentile is not None:
            raise UserError("--percentile is of a target: give --sla-ms with it")
        return None
    return SLA(sla_ms / 1e3, 95.0 if percentile is None else percentile)


def _check_search(
    sla: SLA | None,
    qps: float | None,
    duration_s: float | None,
    queries: int | None,
    budget_s: float | None,
) -> None:
    if sla is None:
        raise UserError("--find-capacity needs a target: give --sla-ms")
    if not (qps is None and duration_s is None and queries is None):
        raise UserError(
            "--find-capacity chooses rates and lengths itself: leave out --qps, --duration-s and "
            "--queries, or bound its time with --budget-s"
        )
    opt.positive("--budget-s", budget_s)


def _schedule(
    workload: Workload, qps: float | None, duration_s: float | None, queries: int | None
) -> tuple[Schedule, float]:
    """With its rate."""
    replayed = workload.arrivals.startswith("replay:")
    if qps is None and not replayed:
        raise UserError(
            "at which rate? give --qps, or --find-capacity; only --arrivals replay:FILE has its own"
        )
    if duration_s is None and queries is None and not replayed:
        duration_s = 10.0
    schedule = workload.schedule(rate_qps=qps, duration_s=duration_s, queries=queries)
    if not len(schedule):
        raise UserError("no query arrives in that time: give a higher --qps or more --duration-s")
    return schedule, qps or len(schedule) / max(schedule.duration_s, 1e-9)


def _introduce(progress: show.Progress, task: _Task, client: Client, what: str) -> None:
    said = client.described
    name = " ".join(word for word in (said.server, said.version) if word) or "a server"
    progress.line(f"{task.model} on {name} at {client.address}, {what}")
    for line in client.assumptions:
        progress.line(f"assumed: {line}")


def _say(console: Console, told: Mapping[str, Any], report: str, interrupted: bool) -> None:
    for line in [*_client_lines(told), f"report: {report}"]:
        console.print(line, markup=False)
    if interrupted:
        console.print("interrupted: what was measured until then is kept", markup=False)


def _client_lines(told: Mapping[str, Any]) -> list[str]:
    """What the last run cost the client, and what else than 200 came back."""
    if not told:
        return []
    share, processes = told["core_share"], told["processes"]
    lines = [f"client: {told['cpu_s']:.2f} CPU seconds, {share:.0%} of a core"]
    if share > _BUSY * processes:
        lines[0] += ", so it may be what limits: give more --processes, or another machine"
    for status, n in told["by_status"].items():
        if status not in ("200", "OK"):
            lines.append(f"{n:,} answered {status}: {told['examples'].get(status, '')}")
    if told["unanswered"]:
        lines.append(f"{told['unanswered']:,} not answered: {told['examples']['unanswered']}")
    return lines


def _run_line(run: Run) -> str:
    word = {True: "meets", False: "misses", None: "undecided"}[run.summary.meets_sla]
    cut = ", cut short" if run.cut else ""
    return (
        f"{show.rate(run.rate_qps)} queries/s: {show.ms(run.summary.percentile_s)} ms, {word}{cut}"
    )


def _nearest(
    costs: list[tuple[Run, dict[str, Any]]], capacity: Capacity
) -> tuple[Run | None, dict[str, Any]]:
    """Of the runs that held the target the one nearest the capacity; else the last one."""
    passed = [(run, told) for run, told in costs if run.passed and not run.cut]
    if passed:
        return min(passed, key=lambda pair: abs(pair[0].rate_qps - capacity.rate_qps))
    return costs[-1] if costs else (None, {})


def _verdict(capacity: Capacity, sla: SLA) -> str:
    if capacity.rate_qps:
        bounds = show.interval(capacity.to_dict()["interval_qps"], show.rate)
        doubt = "" if capacity.decided else ", undecided"
        return f"{show.rate(capacity.rate_qps)} queries/s {bounds} at {sla}{doubt}"
    if capacity.idle_p95_s is not None:
        return (
            f"no rate meets {sla}; idle, the server already takes {show.ms(capacity.idle_p95_s)} ms"
        )
    return f"undecided: no rate was found to meet {sla} in that time; give more --budget-s"
