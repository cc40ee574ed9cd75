"""`simulate --fleet FILE`: a fleet's day; load, percentiles and utilisation over it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from deeprecsys.cli import folder as files
from deeprecsys.cli import show
from deeprecsys.cli.options import SimulationRequest

if TYPE_CHECKING:
    from deeprecsys.experiments.day import Day

_ROWS = 12  # of the table in the terminal


def run(request: SimulationRequest, path: str) -> int:
    from deeprecsys.experiments.day import DayTask

    task = DayTask.read(path, request.seed)
    folder = files.prepared(request, "simulate", "fleet")
    console = show.console(request.json_file)
    console.print(str(task), markup=False)
    found = task.run()
    report = files.write(found, folder, request.json_file)
    console.print(_table(found))
    console.print(f"\n{found.verdict}", style="bold", markup=False)
    console.print(f"report: {report}", markup=False)
    return 0 if found.holds else 1


def _table(found: Day) -> Table:
    """Every few stretches of the day."""
    day, busy = found.found, found.found.busy()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("time s", "queries/s", "p50 ms", "p95 ms", "p99 ms", *busy):
        table.add_column(name, justify="right")
    rates = day.rates_qps()
    latency = [day.percentiles_s(p, 0) for p in (50, 95, 99)]
    step = max(1, len(rates) // _ROWS)
    for i in range(step // 2, len(rates), step):
        table.add_row(
            f"{(i + 0.5) * day.counts.stretch_s:,.0f}",
            f"{rates[i]:,.0f}",
            *(show.ms(row[i]) for row in latency),
            *(f"{share[i]:.0%}" for share in busy.values()),
        )
    return table
