"""`bench`: one rate, one policy; latency percentiles with intervals."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from deeprecsys.analysis.metrics import Summary
from deeprecsys.analysis.usage import sentences
from deeprecsys.cli import folder as files
from deeprecsys.cli import options as opt
from deeprecsys.cli import show
from deeprecsys.core import Policy, Records
from deeprecsys.report.timeline import write_timeline

if TYPE_CHECKING:
    from deeprecsys.experiments.benching import Bench

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


@dataclass(frozen=True)
class Wanted:
    """Which rate, for how long, under which policy."""

    qps: Annotated[
        float | None, typer.Option(help="Queries per second.  [default: a trace's own rate]")
    ] = None
    batch_size: Annotated[int, typer.Option(help="Most items of a request.")] = 128
    adaptive: Adaptive = False
    offload_threshold: opt.OffloadThreshold = None
    offload_backlog: opt.OffloadBacklog = None
    duration_s: opt.DurationS = None
    queries: Annotated[int | None, typer.Option(help="End after this many.")] = None
    timeline: Annotated[
        str | None, typer.Option(help="Write a Chrome trace for ui.perfetto.dev to this file.")
    ] = None


@opt.measuring
def run(request: opt.Request, wanted: Wanted) -> int:
    from deeprecsys.experiments.benching import bench, rate_of, scheduled

    policy, sla = Policy(batch_size=wanted.batch_size, adaptive=wanted.adaptive), request.target
    policy = opt.offloading(request, policy, wanted.offload_threshold, wanted.offload_backlog)
    policy = replace(policy, execution=request.which.execution)
    length = (wanted.qps, wanted.duration_s, wanted.queries)
    schedule = scheduled(request.workload, *length)
    files.check_target("--timeline", wanted.timeline)
    folder = files.prepared(request, NAME, request.label)
    rate = rate_of(schedule, wanted.qps)
    with (
        show.Progress(show.console(request.json_file), sla, schedule.duration_s) as progress,
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

        found = bench(
            engine, request.workload, policy, rate_qps=wanted.qps, duration_s=wanted.duration_s,
            queries=wanted.queries, sla=sla, watch=watch, watts=request.power, asked=request.asked,
        )  # fmt: skip
    report = files.write(found, folder, request.json_file)
    if wanted.timeline and found.records is not None and found.requests is not None:
        write_timeline(wanted.timeline, found.records, found.requests, f"{request.model}, {policy}")
    shown(found, request.json_file, report, wanted.timeline)
    if found.interrupted:
        return 130
    return 1 if request.sla_ms is not None and found.found.meets_sla is False else 0


def shown(found: Bench, json_file: str | None, report: Path, timeline: str | None = None) -> None:
    """Percentiles, verdict, what was used, and the files."""
    console, summary = show.console(json_file), found.to_dict()
    console.print(table(found.found))
    if summary.get("theory"):
        console.print(_theory_line(summary), markup=False)
    console.print(f"\n{found.verdict}", style="bold", markup=False)
    for line in [*sentences(found.used), *summary.get("lost", [])]:
        console.print(line, markup=False)
    console.print(f"report: {report}", markup=False)
    if timeline:
        console.print(f"timeline: {timeline}, opens in https://ui.perfetto.dev", markup=False)
    if found.interrupted:
        console.print("interrupted: what was measured until then is kept", markup=False)


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


def _theory_line(summary: dict[str, Any]) -> str:
    theory = summary["theory"]
    parts = [
        f"{name} {show.ms(theory[f'{name}_s'])} ({summary[f'{name}_s'] / theory[f'{name}_s']:.3f}×)"
        for name in ("mean", "p50", "p95", "p99")
    ]
    return f"{theory['name']}, ms (simulated over it): {', '.join(parts)}"
