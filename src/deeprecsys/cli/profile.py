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
from deeprecsys.core import Limits, UserError, Work

if TYPE_CHECKING:
    from deeprecsys.engine.profiler import Grid
    from deeprecsys.machines.service_time import Profile

NAME = "profile"
HELP = """Measure how long one request takes, by its size and the number of busy workers.

Goes on where an interrupted profile in the same --out ended. profile.json in the run's folder
is what simulation reads.

Example: deeprecsys profile dlrm-rmc1 --operators
"""
BUDGET_S = 60.0
FILE = "profile.json"
_OPERATOR_SIZES = (1, 16, 64, 256)


@opt.measuring
def run(
    request: opt.Request,
    batch_sizes: Annotated[
        str | None, typer.Option(help="Like 1,16,256.  [default: 1, 2, 4 .. the largest query]")
    ] = None,
    operators: Annotated[
        bool, typer.Option("--operators", help="Also the share of each class of operator.")
    ] = False,
    budget_s: Annotated[float, typer.Option(help="Bound on the measuring time, s.")] = BUDGET_S,
) -> int:
    # Before torch is loaded: its profiler writes trace points to standard error otherwise.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from deeprecsys.engine.limits import measure_limits
    from deeprecsys.engine.profiler import Grid, busy_levels, powers_of_two

    opt.positive("--budget-s", budget_s)
    sizes = _sizes(batch_sizes) or powers_of_two(request.workload.size_law.largest)
    files.check_target("--json", request.json_file)
    folder = files.new_folder(request.out, NAME, request.model)
    before = _unfinished(folder, request)
    if before is not None and request.runtime == "auto":
        request = replace(request, runtime=before.about.get("runtime", "auto"))
    console = show.console(request.json_file)
    with (
        show.Progress(console, None, budget_s) as progress,
        show.interruptible() as interrupted,
        show.loaded(progress, request) as engine,
    ):
        if before is not None:
            progress.line(f"going on with the profile in {folder}")
        profile = engine.profile(
            sizes,
            budget_s=budget_s,
            indices=request.indices,
            before=before,
            stop=interrupted.is_set,
            on_visit=profiling(progress, folder),
        )
        grid = Grid(sizes, busy_levels(engine.workers))
        model, workers, cores = engine.model, engine.workers, engine.cores
        limits = measure_limits(cores, model.spec.width)
        more = operators and not interrupted.is_set()
        classes = _operators(model, sizes) if more else None
        roofline = _roofline(profile, model, limits, cores) if more else None
    summary = {
        **files.provenance(NAME),
        **request.to_dict(),
        "workers": workers,
        "runtime": profile.about["runtime"],
        "interrupted": interrupted.is_set(),
        "share_done": grid.share_done(profile),
        "points": [_row(profile, point, limits, model.work, workers) for point in profile.points],
        "limits": {name: getattr(limits, name) for name in Limits.__slots__},
        "operators": classes,
        "roofline": roofline,
        "paper_shares": _paper_shares(request.model) if classes else None,
    }
    report = files.write_run(folder, summary, request.json_file)
    console.print(_table(summary))
    if classes:
        console.print(_classes_table(summary))
    console.print(f"\n{_sentence(summary, grid)}", style="bold", markup=False)
    console.print(f"profile: {folder / FILE}\nreport: {report}", markup=False)
    if interrupted.is_set():
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
    found.check(**{name: getattr(request, name) for name in ABOUT_MODEL})
    return found


def _row(
    profile: Profile, point: tuple[int, int], limits: Limits, work: Work, workers: int
) -> dict[str, Any]:
    """A point of the profile, and how much of its time this machine's limits explain."""
    batch, busy = point
    samples = profile.points[point]
    rows = work.table_bytes / limits.lookup_bytes
    least_s = batch * workers * (work.flops / limits.flops_per_s + rows / limits.lookups_per_s)
    return {
        "batch_size": batch,
        "busy": busy,
        "samples": len(samples.seconds),
        "rounds": samples.rounds,
        "median_s": samples.median_s,
        "mean_s": samples.mean_s,
        "p5_s": samples.percentile_s(5),
        "p95_s": samples.percentile_s(95),
        "items_per_s": busy * batch / samples.mean_s,
        "limits_share": least_s / samples.median_s,
    }


def _operators(model: Any, sizes: list[int]) -> list[dict[str, Any]]:
    from deeprecsys.engine.operators import measure_operators

    return [measure_operators(model, n).to_dict() for n in _OPERATOR_SIZES if n <= sizes[-1]]


def _roofline(profile: Profile, model: Any, limits: Limits, cores: Any) -> dict[str, Any]:
    from deeprecsys.engine import roofline

    points = [
        roofline.point(model.work, model.spec.weights(), batch, busy / samples.median_s)
        for (batch, busy), samples in profile.points.items()
        if busy == len(cores)
    ]
    return {
        **roofline.roofs(limits, roofline.bf16_flops_per_s(cores)),
        "models": {model.name: points, **roofline.contrast(cores)},
        "query_bytes": model.spec.bytes_per_query(270, model.query_inputs),
    }


def _paper_shares(model: str) -> dict[str, float]:
    from deeprecsys.engine.operators import PAPER_SHARES

    return dict(PAPER_SHARES[model])


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
        more = (show.rate(last["items_per_s"]), f"{last['limits_share']:.0%}") if last else ("", "")
        table.add_row(str(size), *cells, *more)
    return table


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    return f"{show.ms(row['median_s'])} {show.interval((row['p5_s'], row['p95_s']), show.ms)}"


def _classes_table(summary: dict[str, Any]) -> Table:
    """Shares of the operator classes by batch size, and the paper's."""
    from deeprecsys.engine.operators import CLASSES, PAPER_BATCH_SIZE

    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    table.add_column("share of a request's time (eager)")
    for entry in summary["operators"]:
        table.add_column(f"batch {entry['batch_size']}", justify="right")
    table.add_column(f"the paper, batch {PAPER_BATCH_SIZE}", justify="right")
    for name in CLASSES:
        shares = [f"{entry['shares'][name]:.1%}" for entry in summary["operators"]]
        paper = summary["paper_shares"].get(name)
        table.add_row(name, *shares, "" if paper is None else f"{paper:.1%}")
    rest = summary["operators"][-1]["rest"]
    most = ", ".join(f"{name} {s * 1e6:.0f} µs" for name, s in list(rest.items())[:5])
    table.caption = f"rest at batch {summary['operators'][-1]['batch_size']}: {most}"
    return table


def _sentence(summary: dict[str, Any], grid: Grid) -> str:
    """What contention costs, and how far the best batch size is from the limits."""
    at = {(row["batch_size"], row["busy"]): row for row in summary["points"]}
    workers = summary["workers"]
    both = [size for size in grid.batch_sizes if (size, 1) in at and (size, workers) in at]
    parts = []
    if both and workers > 1:
        slower = max(both, key=lambda n: at[n, workers]["median_s"] / at[n, 1]["median_s"])
        ratio = at[slower, workers]["median_s"] / at[slower, 1]["median_s"]
        parts.append(
            f"with {workers} workers busy a request takes up to {ratio:.2f}× as long as alone "
            f"(batch size {slower})"
        )
    full = [row for row in summary["points"] if row["busy"] == workers]
    if full:
        best = max(full, key=lambda row: float(row["items_per_s"]))
        parts.append(
            f"most items/s at batch size {best['batch_size']}: {show.rate(best['items_per_s'])}, "
            f"{best['limits_share']:.0%} of what this machine's limits allow"
        )
        if best["limits_share"] > 1:
            parts.append(
                "that limit is of uniformly random rows, and popular ones come from the cache"
            )
    done = summary["share_done"]
    if done < 1:
        parts.append(f"{done:.0%} of the visits were made; give more --budget-s for the rest")
    return "; ".join(parts)
