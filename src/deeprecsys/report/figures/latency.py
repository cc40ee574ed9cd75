"""How long queries took: by rate, as a distribution, by size, over time."""

from __future__ import annotations

from typing import Any

import numpy as np

from deeprecsys.core import Records, Status
from deeprecsys.report.figures.axes import axis, from_zero, steps
from deeprecsys.report.figures.colours import BLUE, PERCENTILES
from deeprecsys.report.figures.traces import (
    Figure,
    column,
    figure,
    ms,
    rounded,
    scatter,
    with_target,
)

_MOST_POINTS = 2000
_SYMBOLS = {True: "circle", False: "x", None: "circle-open"}


def by_rate(summary: dict[str, Any]) -> Figure | None:
    """The best policy's runs: percentiles against the rate, and the target."""
    best = (summary.get("best") or {}).get("policy")
    runs = [r for t in summary["trials"] if t["policy"] == best for r in t["runs"]]
    runs = sorted((r for r in runs if r.get("p95_s")), key=lambda r: float(r["rate_qps"]))
    if not runs:
        return None
    data = [_percentile_of(runs, name, colour) for name, colour in PERCENTILES]
    y = axis("latency (ms)", type="log", tickvals=steps(range(6)))
    return with_target(figure(data, axis("offered rate (queries/s)"), y), summary)


def _percentile_of(runs: list[dict[str, Any]], name: str, colour: str) -> Figure:
    symbols = [_SYMBOLS[r["meets_sla"]] for r in runs]
    return scatter(
        "markers", name[:-2], column(runs, "rate_qps"), [ms(r.get(name)) for r in runs],
        marker={"color": colour, "size": 8, "symbol": symbols},
        hovertemplate="%{x:.0f} queries/s: %{y:.1f} ms",
    )  # fmt: skip


def distribution(summary: dict[str, Any], records: Records | None) -> Figure | None:
    """Share of queries slower than a latency, on a log scale: the tail, to the last query."""
    shown = _answered(records)
    if records is None or shown is None:
        return None
    # What was not answered is slower than any latency shown (the contract: over the target).
    n = int((records.status != Status.PENDING).sum())
    rows = _tail_rows(len(shown))
    curve = scatter(
        "lines", "queries", rounded(np.sort(shown.latency_s * 1e3)[rows]),
        rounded(100 * (1 - (rows + 1) / (n + 1))), line={"color": BLUE, "width": 2.5},
        hovertemplate="%{y:.3g} % of the queries took longer than %{x:.1f} ms",
    )  # fmt: skip
    y = axis("slower queries (%)", type="log", tickvals=[100, 50, 10, 5, 1, 0.1, 0.01])
    return with_target(figure([curve], from_zero("latency (ms)"), y), summary, upright=True)


def _tail_rows(n: int) -> Any:
    """Ranks to draw: even over the body, and dense in the tail, where a log axis has room."""
    body = np.linspace(0, n - 1, min(n, _MOST_POINTS // 2))
    tail = n - np.geomspace(1, n, _MOST_POINTS // 2)
    return np.unique(np.concatenate([body, tail]).round().astype(int))


def by_size(summary: dict[str, Any], records: Records | None) -> Figure | None:
    """A box a class of query size: quartiles, and whiskers from p5 to p95."""
    shown = _answered(records)
    if shown is None:
        return None
    boxes = _fifths(shown)
    low, q1, median, q3, high = (rounded(column) for column in zip(*map(_box, boxes), strict=True))
    trace = {
        "type": "box", "name": "latency", "x": [_span(b) for b in boxes], "lowerfence": low,
        "q1": q1, "median": median, "q3": q3, "upperfence": high, "marker": {"color": BLUE},
    }  # fmt: skip
    x = axis("query size (items)", type="category")
    return with_target(figure([trace], x, from_zero("latency (ms), p5 to p95")), summary)


def _fifths(records: Records) -> list[Records]:
    """Five classes of size with as many queries each, or fewer where sizes repeat."""
    edges = np.unique(np.quantile(records.size, [0.2, 0.4, 0.6, 0.8], method="inverted_cdf"))
    kind = np.searchsorted(edges, records.size)
    return [records[kind == k] for k in np.unique(kind)]


def _box(records: Records) -> Any:
    return np.quantile(records.latency_s * 1e3, [0.05, 0.25, 0.5, 0.75, 0.95])


def _span(records: Records) -> str:
    lo, hi = int(records.size.min()), int(records.size.max())
    return str(lo) if lo == hi else f"{lo}–{hi}"


def over_time(summary: dict[str, Any], records: Records | None) -> Figure | None:
    """Each query at its arrival; thinned evenly where there are very many."""
    if records is None or _answered(records) is None:
        return None
    shown = records[_thinned(records)]
    points = scatter(
        "markers", "queries", rounded(shown.arrival_s), rounded(shown.latency_s * 1e3),
        marker={"color": BLUE, "size": 4, "opacity": 0.6},
        hovertemplate="at %{x:.2f} s: %{y:.1f} ms",
    )  # fmt: skip
    x = axis("scheduled arrival (s)")
    return with_target(figure([points], x, from_zero("latency (ms)")), summary)


def _thinned(records: Records) -> Any:
    """Rows to draw: evenly spaced ones, and the slowest always, since they are the question."""
    n, slowest = len(records), _MOST_POINTS // 10
    if n <= _MOST_POINTS:
        return np.arange(n)
    even = np.linspace(0, n - 1, _MOST_POINTS - slowest).astype(int)
    worst = np.argsort(np.nan_to_num(records.latency_s, nan=-np.inf))[-slowest:]
    return np.union1d(even, worst)


def _answered(records: Records | None) -> Records | None:
    """The queries with a latency; None where there are none."""
    if records is None or not np.isfinite(records.latency_s).any():
        return None
    return records[np.isfinite(records.latency_s)]
