"""`bench`: one rate, one policy; latency percentiles with intervals."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from deeprecsys.analysis.metrics import Summary, summarize
from deeprecsys.analysis.usage import sentences, usage
from deeprecsys.cli import folder as files
from deeprecsys.cli import options as opt
from deeprecsys.cli import show
from deeprecsys.core import SLA, Policy, Records, Status, UserError
from deeprecsys.report.timeline import write_timeline

NAME = "bench"
HELP = """Measure one rate under one policy.

Exit code 1 if a target was asked for with --sla-ms and was missed.

Example: deeprecsys bench wnd --qps 50 --batch-size 128
"""
Adaptive = Annotated[
    bool,
    typer.Option(
        "--adaptive", help="Take more when much waits, --batch-size at least: the adaptive policy."
    ),
]
_KEYS = (
    "queries", "warm_up_queries", "duration_s", "throughput_qps", "items_per_s", "mean_s",
    "p50_s", "p95_s", "p99_s", "p50_interval_s", "p95_interval_s", "p99_interval_s", "by_size",
    "meets_sla", "overloaded", "limited_by", "effective_queries", "errors", "generator_lag_p99_s",
)  # fmt: skip


@opt.measuring
def run(
    request: opt.Request,
    qps: Annotated[
        float | None, typer.Option(help="Queries per second.  [default: a trace's own rate]")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Most items of a request.")] = 128,
    adaptive: Adaptive = False,
    offload_threshold: opt.OffloadThreshold = None,
    offload_backlog: opt.OffloadBacklog = None,
    duration_s: opt.DurationS = None,
    queries: Annotated[int | None, typer.Option(help="End after this many.")] = None,
    timeline: Annotated[
        str | None, typer.Option(help="Write a Chrome trace for ui.perfetto.dev to this file.")
    ] = None,
) -> int:
    policy, sla = Policy(batch_size=batch_size, adaptive=adaptive), request.sla
    policy = opt.offloading(request, policy, offload_threshold, offload_backlog)
    replayed = request.arrivals.startswith("replay:")
    if qps is None and not replayed:
        raise UserError("at which rate? give --qps; only --arrivals replay:FILE has its own")
    if duration_s is None and queries is None and not replayed:
        duration_s = 10.0
    schedule = request.workload.schedule(rate_qps=qps, duration_s=duration_s, queries=queries)
    if not len(schedule):
        raise UserError("no query arrives in that time: give a higher --qps or more --duration-s")
    files.check_target("--json", request.json_file)
    files.check_target("--timeline", timeline)
    folder = files.new_folder(request.out, NAME, request.model)
    console = show.console(request.json_file)
    rate = qps or len(schedule) / schedule.duration_s
    with (
        show.Progress(console, sla, schedule.duration_s) as progress,
        show.interruptible() as interrupted,
        show.loaded(progress, request) as engine,
    ):
        progress.line(
            f"{engine.workers} workers, runtime {engine.runtime.name}, {policy}, "
            f"{rate:,.4g} queries/s for {schedule.duration_s:.3g} s"
        )

        def watch(so_far: Records, now_s: float) -> bool:
            progress.step(policy, rate, so_far, now_s)
            return interrupted.is_set()

        records, requests = engine.traced_run(schedule, policy, watch=watch)
        facts, lost = engine.facts(), show.losses(engine)
        detail = {
            "input_pools": engine.pool_facts(),
            "runtime": engine.runtime.name,
            "accelerators": [dict(device.detail) for device in engine.devices],
        }
        joules = engine.joules()
    if interrupted.is_set():  # what was under way says nothing of the machine
        finished = records.status != Status.CANCELLED
        records, requests = records[finished], requests.of(finished)
    found = summarize(records, sla)
    summary = {
        **files.provenance(NAME),
        **request.to_dict(),
        "rate_qps": rate,
        "policy": policy.to_dict(),
        "workers": facts.workers,
        "accelerator": show.accelerators(facts),
        "lost": lost,
        "interrupted": interrupted.is_set(),
        "usage": usage(
            records,
            requests,
            facts.workers,
            facts.detail["accelerators"],
            watts=request.power,
            measured=joules,
        ),
        **detail,
        **measured(found),
    }
    report = files.write_run(folder, summary, request.json_file, records, requests)
    if timeline:
        write_timeline(timeline, records, requests, f"{request.model}, {policy}")
    console.print(table(found))
    console.print(f"\n{show.emulation(summary)}{sentence(found, sla)}", style="bold", markup=False)
    for line in [*sentences(summary["usage"]), *lost]:
        console.print(line, markup=False)
    console.print(f"report: {report}", markup=False)
    if timeline:
        console.print(f"timeline: {timeline}, opens in https://ui.perfetto.dev", markup=False)
    if interrupted.is_set():
        console.print("interrupted: what was measured until then is kept", markup=False)
        return 130
    return 1 if request.sla_ms is not None and found.meets_sla is False else 0


def measured(found: Summary) -> dict[str, Any]:
    """The part of a summary that a run's records say."""
    return {name: value for name, value in found.to_dict().items() if name in _KEYS}


def table(found: Summary) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "ms", "95 % interval"):
        table.add_column(name, justify="right" if name else "left")
    for p in (50, 95, 99):
        bounds = getattr(found, f"p{p}_interval_s")
        table.add_row(f"p{p}", show.ms(getattr(found, f"p{p}_s")), show.interval(bounds, show.ms))
    table.add_row("generator lag p99", show.ms(found.generator_lag_p99_s), "")
    for row in found.by_size:
        table.add_row(
            f"{row['lo']}–{row['hi']} items, p95",
            show.ms(row["p95_s"]),
            f"{row['queries']} queries",
        )
    return table


def sentence(found: Summary, sla: SLA | None) -> str:
    word: dict[Any, str] = {True: "meets", False: "misses", None: "undecided whether it meets"}
    why = ", overloaded: the backlog grows" if found.overloaded else ""
    if found.limited_by:
        why = ", limited by the generator, not by the system"
    errors = "".join(f", {n} {name}" for name, n in found.errors.items())
    verdict = f"; {word[found.meets_sla]} {sla}" if sla else ""
    return (
        f"{show.rate(found.throughput_qps)} queries/s, {found.items_per_s:,.0f} items/s"
        f"{verdict}{why}{errors}"
    )
