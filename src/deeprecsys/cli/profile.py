"""`profile`: service time by batch size and busy workers; where the time of a request goes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from deeprecsys.cli import folder as files
from deeprecsys.cli import options as opt
from deeprecsys.cli import show
from deeprecsys.core import UserError
from deeprecsys.report.text import factor

if TYPE_CHECKING:
    from deeprecsys.engine.profiler import Grid
    from deeprecsys.experiments.profiling import Profiling
    from deeprecsys.machines.service_time import Profile

NAME = "profile"
HELP = """Measure how long one request takes, by its size and the number of busy workers.

Goes on where an interrupted profile in the same --out ended. profile.json in the run's folder
is what simulation reads.

Example: deeprecsys profile dlrm-rmc1 --operators
"""
BUDGET_S = 60.0
FILE = "profile.json"


@opt.measuring
def run(
    request: opt.Request,
    batch_sizes: Annotated[
        str | None, typer.Option(help="Like 1,16,256.  [default: 1, 2, 4 .. the largest query]")
    ] = None,
    operators: Annotated[
        bool, typer.Option("--operators", help="Also the share of each class of operator.")
    ] = False,
    executions: Annotated[
        bool,
        typer.Option("--executions", help="Also the time of a request in each execution."),
    ] = False,
    budget_s: Annotated[float, typer.Option(help="Bound on the measuring time, s.")] = BUDGET_S,
) -> int:
    # Before torch is loaded: its profiler writes trace points to standard error otherwise.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from deeprecsys.experiments.profiling import profile

    opt.positive("--budget-s", budget_s)
    if request.beside:
        raise UserError(opt.NOT_BESIDE)
    sizes = _sizes(batch_sizes)
    folder = files.prepared(request, NAME, request.label)
    before = _unfinished(folder, request)
    if before is not None and request.runtime == "auto":
        request = replace(request, runtime=before.about.get("runtime", "auto"))
    with (
        show.Progress(show.console(request.json_file), None, budget_s) as progress,
        show.interruptible() as interrupted,
        show.loaded(progress, request) as engine,
    ):
        if before is not None:
            progress.line(f"going on with the profile in {folder}")
        found = profile(
            engine, request.workload, sizes, budget_s=budget_s, operators=operators,
            executions=executions,
            on_executions=lambda done: progress.at(f"executions, {done:.0%}"),
            before=before, stop=interrupted.is_set, on_visit=profiling(progress, folder),
            asked=request.asked,
        )  # fmt: skip
    return _shown(found, folder, request.json_file, files.write(found, folder, request.json_file))


def _shown(found: Profiling, folder: Path, json_file: str | None, report: Path) -> int:
    console, summary = show.console(json_file), found.to_dict()
    console.print(_table(summary))
    if found.operators:
        console.print(_classes_table(summary))
    if found.executions:
        console.print(executions_table(summary["executions"]))
        for row in summary["executions"]:
            if row["why"]:
                console.print(f"not {row['execution']}: {row['why']}", markup=False)
    console.print(f"\n{found.verdict}", style="bold", markup=False)
    console.print(f"profile: {folder / FILE}\nreport: {report}", markup=False)
    if found.interrupted:
        console.print("interrupted: run it again with the same --out to go on", markup=False)
        return 130
    return 0


def profiling(progress: show.Progress, folder: Path) -> Callable[[Profile, Grid], None]:
    """Keeps and shows a profile under way."""

    def keep(so_far: Profile, grid: Grid) -> None:
        so_far.save(folder / FILE)
        progress.at(f"profile, {grid.share_done(so_far):.0%}")

    return keep


def _sizes(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        sizes = [0]
    if sizes[0] < 1:
        raise UserError(f"--batch-sizes must be whole numbers of at least 1, not {text!r}")
    return sizes


def _unfinished(folder: Path, request: opt.Request) -> Profile | None:
    """The profile that is in the folder already; UserError if it is of something else."""
    from deeprecsys.machines.service_time import ABOUT_MODEL, Profile

    if not (folder / FILE).is_file():
        return None
    found = Profile.load(folder / FILE)
    said = {"model": request.label, "seed": request.seed, **request.which.about}
    found.check(**{name: said.get(name) for name in ABOUT_MODEL})
    return found


def _table(summary: dict[str, Any]) -> Table:
    """A row a batch size; median and spread at each number of busy workers."""
    levels = sorted({row["busy"] for row in summary["points"]})
    at = {(row["batch_size"], row["busy"]): row for row in summary["points"]}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("batch size", justify="right")
    for level in levels:
        table.add_column(f"ms, {level} busy [p5, p95]", justify="right")
    table.add_column("items/s", justify="right")
    table.add_column("of the limits", justify="right")
    for size in sorted({batch for batch, _ in at}):
        cells = [_cell(at.get((size, level))) for level in levels]
        last = at.get((size, levels[-1]))
        table.add_row(str(size), *cells, *_reached(last))
    return table


def _reached(row: dict[str, Any] | None) -> tuple[str, str]:
    if row is None:
        return "", ""
    share = row["limits_share"]
    return show.rate(row["items_per_s"]), "" if share is None else f"{share:.0%}"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    return f"{show.ms(row['median_s'])} {show.interval((row['p5_s'], row['p95_s']), show.ms)}"


def executions_table(rows: list[dict[str, Any]]) -> Table:
    """A row an execution that was made: how much faster than exact, and its times."""
    able = [row for row in rows if not row["why"]]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("execution")
    table.add_column("over exact, each at its best", justify="right")
    table.add_column("batch size", justify="right")
    for size in able[0]["seconds"]:
        table.add_column(f"ms at {size}", justify="right")
    for row in able:
        ratio = f"{row['ratio']:.2f}× {show.interval(row['interval'], factor)}"
        cells = [show.ms(seconds) for seconds in row["seconds"].values()]
        table.add_row(row["execution"], ratio, str(row["best_batch"]), *cells)
    return table


def _classes_table(summary: dict[str, Any]) -> Table:
    """Shares of the operator classes by batch size, and the paper's."""
    from deeprecsys.engine.operators import CLASSES, PAPER_BATCH_SIZE

    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    table.add_column("share of a request's time (eager)")
    for entry in summary["operators"]:
        table.add_column(f"batch {entry['batch_size']}", justify="right")
    paper_shares = summary["paper_shares"]
    if paper_shares:
        table.add_column(f"the paper, batch {PAPER_BATCH_SIZE}", justify="right")
    for name in CLASSES:
        shares = [f"{entry['shares'][name]:.1%}" for entry in summary["operators"]]
        paper = (
            [f"{paper_shares[name]:.1%}" if name in paper_shares else ""] if paper_shares else []
        )
        table.add_row(name, *shares, *paper)
    rest = summary["operators"][-1]["rest"]
    most = ", ".join(f"{name} {s * 1e6:.0f} µs" for name, s in list(rest.items())[:5])
    table.caption = f"rest at batch {summary['operators'][-1]['batch_size']}: {most}"
    return table
