"""Inside one run: where the time of a query goes, and the queue and the workers over time."""

from __future__ import annotations

from typing import Any

import numpy as np

from deeprecsys.core import FloatArray, Records, Requests
from deeprecsys.report.figures.axes import axis, from_zero
from deeprecsys.report.figures.colours import BLUE, GREY, ORANGE
from deeprecsys.report.figures.traces import Figure, bars, figure, ms, rounded, scatter, with_target
from deeprecsys.report.timeline import busy_over_time, queue_over_time, slice_means

_SLICES = 300
_FEWEST = 20  # queries, below which no percentile has others around it


def parts(
    summary: dict[str, Any], records: Records | None, requests: Requests | None
) -> Figure | None:
    """Mean milliseconds of each part, of the queries around two percentiles of latency."""
    if records is None or requests is None or not len(requests):
        return None
    rows = np.flatnonzero(np.isfinite(records.latency_s))
    if len(rows) < _FEWEST:
        return None
    p = summary["sla"]["percentile"] if summary.get("sla") else 95.0
    ranked = rows[np.argsort(records.latency_s[rows])]
    groups = {"median": _around(ranked, 50.0), f"p{p:g}": _around(ranked, p)}
    labels = [f"{name} query ({_size(records, rows)} items)" for name, rows in groups.items()]
    data = [
        bars(name, [ms(float(seconds[rows].mean())) for rows in groups.values()], labels, colour,
             orientation="h", hovertemplate=f"{name}: %{{x:.1f}} ms")
        for colour, (name, seconds) in zip(
            (GREY, BLUE, ORANGE), _parts_s(records, requests).items(), strict=True)
    ]  # fmt: skip
    y = axis("", autorange="reversed")
    return with_target(
        figure(data, axis("latency (ms)"), y, barmode="stack"), summary, upright=True
    )


def _parts_s(records: Records, requests: Requests) -> dict[str, FloatArray]:
    """Seconds [n] that each query waits, executes, and spends in its last request."""
    last_s = np.full(len(records), np.nan)
    last_s[requests.query] = requests.start_s  # in order of finish: the last one stays
    return {
        "waiting": records.start_s - records.arrival_s,
        "executing": last_s - records.start_s,
        "last request": records.finish_s - last_s,
    }


def _around(ranked: Any, percentile: float) -> Any:
    """Of rows in order of latency the 6 % around a percentile, five at least."""
    first = int(len(ranked) * max(percentile - 3, 0) / 100)
    return ranked[first:][: max(5, len(ranked) * 6 // 100)]


def _size(records: Records, rows: Any) -> int:
    return int(np.median(records.size[rows]))


def load(records: Records | None, requests: Requests | None) -> Figure | None:
    """Means over even slices of the run: items in the queue, and busy workers."""
    if records is None or requests is None or not len(requests):
        return None
    edges = np.linspace(0, float(requests.finish_s.max()), _SLICES + 1)
    data = [
        _means("queued items", queue_over_time(records, requests), edges, "y", BLUE),
        _means("busy workers", busy_over_time(requests), edges, "y2", ORANGE),
    ]
    workers = _workers_axis(int(requests.worker.max()) + 1)
    return figure(data, axis("time (s)"), from_zero("queued items"), yaxis2=workers)


def _means(
    name: str, steps: tuple[FloatArray, FloatArray], edges: FloatArray, yaxis: str, colour: str
) -> Figure:
    at = (edges[:-1] + edges[1:]) / 2
    line = {"color": colour, "width": 1.5}
    y = rounded(slice_means(*steps, edges))
    return scatter("lines", name, rounded(at), y, yaxis=yaxis, line=line)


def _workers_axis(workers: int) -> Figure:
    return axis(
        "busy workers", overlaying="y", side="right", range=[0, 1.05 * workers],
        dtick=max(1, workers // 4), showgrid=False,
    )  # fmt: skip
