"""Figures as plain Plotly descriptions: from a summary and records, no drawing here.

Each function answers {"data": [...], "layout": {...}} or None where there is nothing to show.
Colours are the page's (`page.py` paints text and grid for light and dark).
"""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from deeprecsys.core import Records, Status

Figure = dict[str, Any]

# Okabe and Ito's palette: told apart by every kind of colour vision.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8a8f98"
_MOST_POINTS = 2000


def capacity_by_batch(summary: dict[str, Any]) -> Figure | None:
    """Capacity against batch size, with brackets; baselines and the best are marked."""
    trials = [t for t in summary["trials"] if t["capacity"]["rate_qps"]]
    if not trials:
        return None
    best = (summary.get("best") or {}).get("policy")
    names = {c["policy"]["batch_size"]: c["name"] for c in summary.get("comparisons", [])}
    curve = _trace([t for t in trials if t["policy"] != best], "capacity", BLUE, lines=True)
    curve["x"], curve["y"] = _xy(trials)
    curve["error_y"] = _errors(trials)
    curve["marker"]["symbol"] = [_hollow("circle", [t]) for t in trials]
    marked = [(t, names[t["policy"]["batch_size"]]) for t in trials
              if t["policy"]["batch_size"] in names and t["policy"] != best]  # fmt: skip
    data = [curve]
    for trial, name in marked:
        data.append(_trace([trial], name, ORANGE, symbol="diamond", size=12))
    data += [_trace([t], "best", GREEN, symbol="star", size=17) for t in trials
             if t["policy"] == best]  # fmt: skip
    layout = _layout("batch size (items a request)", "capacity (queries/s)")
    layout["xaxis"] |= {"type": "log", "tickvals": [1 << k for k in range(21)]}
    layout["yaxis"]["rangemode"] = "tozero"
    return {"data": data, "layout": layout}


def latency_by_rate(summary: dict[str, Any]) -> Figure | None:
    """The best policy's runs: percentiles against the rate, and the target."""
    best = (summary.get("best") or {}).get("policy")
    runs = [r for t in summary["trials"] if t["policy"] == best for r in t["runs"]]
    runs = sorted((r for r in runs if r.get("p95_s")), key=lambda r: float(r["rate_qps"]))
    if not runs:
        return None
    data: list[Figure] = []
    symbols = [_symbol(r["meets_sla"]) for r in runs]
    for name, colour in (("p50_s", GREEN), ("p95_s", BLUE), ("p99_s", ORANGE)):
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name[:-2],
                "x": [r["rate_qps"] for r in runs],
                "y": [_ms(r.get(name)) for r in runs],
                "marker": {
                    "color": colour,
                    "size": 8,
                    "symbol": symbols,
                },
                "hovertemplate": "%{x:.0f} queries/s: %{y:.1f} ms",
            }
        )
    layout = _layout("offered rate (queries/s)", "latency (ms)")
    layout["yaxis"] |= {"type": "log", "tickvals": [k * 10**p for p in range(6) for k in (1, 2, 5)]}
    return {"data": data, "layout": _with_target(layout, summary)}


def latency_distribution(summary: dict[str, Any], records: Records | None) -> Figure | None:
    """Share of queries slower than a latency, on a log scale: the tail, to the last query."""
    latency = _latency_ms(records)
    if latency is None:
        return None
    # What was not answered is slower than any latency shown (the contract: over the target).
    n = int((records.status != Status.PENDING).sum()) if records is not None else 0
    rows = _tail_rows(len(latency))
    slower = 100 * (1 - (rows + 1) / (n + 1))
    trace = {
        "type": "scatter", "mode": "lines", "name": "queries", "x": _round(np.sort(latency)[rows]),
        "y": _round(slower), "line": {"color": BLUE, "width": 2.5},
        "hovertemplate": "%{y:.3g} % of the queries took longer than %{x:.1f} ms",
    }  # fmt: skip
    layout = _layout("latency (ms)", "slower queries (%)")
    layout["yaxis"] |= {"type": "log", "tickvals": [100, 50, 10, 5, 1, 0.1, 0.01]}
    layout["xaxis"]["rangemode"] = "tozero"
    return {"data": [trace], "layout": _with_target(layout, summary, vertical=True)}


def latency_by_size(summary: dict[str, Any], records: Records | None) -> Figure | None:
    """A box a class of query size: quartiles, and whiskers from p5 to p95."""
    if records is None or not np.isfinite(records.latency_s).any():
        return None
    shown = records[np.isfinite(records.latency_s)]
    edges = np.unique(np.quantile(shown.size, [0.2, 0.4, 0.6, 0.8], method="inverted_cdf"))
    kind = np.searchsorted(edges, shown.size)
    boxes = [shown[kind == k] for k in np.unique(kind)]
    points = np.array(
        [np.quantile(b.latency_s * 1e3, [0.05, 0.25, 0.5, 0.75, 0.95]) for b in boxes]
    )
    low, q1, median, q3, high = (_round(column) for column in points.T)
    trace = {
        "type": "box", "name": "latency", "x": [_span(b) for b in boxes], "lowerfence": low,
        "q1": q1, "median": median, "q3": q3, "upperfence": high, "marker": {"color": BLUE},
    }  # fmt: skip
    layout = _layout("query size (items)", "latency (ms), p5 to p95")
    layout["xaxis"]["type"] = "category"
    layout["yaxis"]["rangemode"] = "tozero"
    return {"data": [trace], "layout": _with_target(layout, summary)}


def latency_over_time(summary: dict[str, Any], records: Records | None) -> Figure | None:
    """Each query at its arrival; thinned evenly where there are very many."""
    if records is None or not np.isfinite(records.latency_s).any():
        return None
    shown = records[_thinned(records)]
    trace = {
        "type": "scatter", "mode": "markers", "name": "queries", "x": _round(shown.arrival_s),
        "y": _round(shown.latency_s * 1e3), "marker": {"color": BLUE, "size": 4, "opacity": 0.6},
        "hovertemplate": "at %{x:.2f} s: %{y:.1f} ms",
    }  # fmt: skip
    layout = _layout("scheduled arrival (s)", "latency (ms)")
    layout["yaxis"]["rangemode"] = "tozero"
    return {"data": [trace], "layout": _with_target(layout, summary)}


def _trace(
    trials: list[dict[str, Any]],
    name: str,
    colour: str,
    *,
    lines: bool = False,
    symbol: str = "circle",
    size: int = 9,
) -> Figure:
    x, y = _xy(trials)
    return {
        "type": "scatter",
        "mode": "lines+markers" if lines else "markers",
        "name": escape(name),  # Plotly reads markup in names
        "x": x,
        "y": y,
        "error_y": {**_errors(trials), "color": colour},
        "line": {"color": colour, "width": 2},
        "marker": {"color": colour, "size": size, "symbol": _hollow(symbol, trials)},
        "hovertemplate": "batch size %{x}: %{y:.0f} queries/s",
    }


def _xy(trials: list[dict[str, Any]]) -> tuple[list[int], list[float]]:
    return (
        [t["policy"]["batch_size"] for t in trials],
        [t["capacity"]["rate_qps"] for t in trials],
    )


def _hollow(symbol: str, trials: list[dict[str, Any]]) -> str:
    """The open form of a symbol where a capacity is undecided."""
    decided = all(t["capacity"].get("decided", True) for t in trials)
    return symbol if decided else f"{symbol}-open"


def _errors(trials: list[dict[str, Any]]) -> Figure:
    """Distances to the ends of the intervals; an open end is drawn as none."""
    up, down = [], []
    for trial in trials:
        rate, (lo, hi) = trial["capacity"]["rate_qps"], trial["capacity"]["interval_qps"]
        up.append(max(0.0, hi - rate) if hi is not None else 0.0)
        down.append(max(0.0, rate - lo) if lo is not None else 0.0)
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.5}


def _layout(x: str, y: str) -> Figure:
    return {
        "xaxis": {"title": {"text": x}, "automargin": True},
        "yaxis": {"title": {"text": y}, "automargin": True},
        "margin": {"l": 60, "r": 20, "t": 10, "b": 50},
        "legend": {"orientation": "h", "y": 1.12, "x": 0},
        "hovermode": "closest",
    }


def _with_target(layout: Figure, summary: dict[str, Any], *, vertical: bool = False) -> Figure:
    """A dashed line at the target, labelled."""
    sla = summary.get("sla")
    if not sla:
        return layout
    at: float = sla["latency_s"] * 1e3
    here, across = ("x", "y") if vertical else ("y", "x")
    line = {"color": RED, "width": 1.5, "dash": "dash"}
    span = {f"{here}0": at, f"{here}1": at, f"{across}0": 0, f"{across}1": 1}
    layout["shapes"] = [
        {"type": "line", f"{across}ref": "paper", f"{here}ref": here, "line": line, **span}
    ]
    log = layout[f"{here}axis"].get("type") == "log"
    layout["annotations"] = [{
        f"{across}ref": "paper", f"{here}ref": here, across: 1, here: np.log10(at) if log else at,
        "text": f"target {at:g} ms", "showarrow": False, "font": {"color": RED, "size": 12},
        "xanchor": "left" if vertical else "right", "yanchor": "top" if vertical else "bottom",
    }]  # fmt: skip
    return layout


def _latency_ms(records: Records | None) -> Any:
    if records is None:
        return None
    latency = records.latency_s[np.isfinite(records.latency_s)] * 1e3
    return latency if len(latency) else None


def _round(values: Any) -> list[float | None]:
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in values]


def _tail_rows(n: int) -> Any:
    """Ranks to draw: even over the body, and dense in the tail, where a log axis has room."""
    body = np.linspace(0, n - 1, min(n, _MOST_POINTS // 2))
    tail = n - np.geomspace(1, n, _MOST_POINTS // 2)
    return np.unique(np.concatenate([body, tail]).round().astype(int))


def _thinned(records: Records) -> Any:
    """Rows to draw: evenly spaced ones, and the slowest always, since they are the question."""
    n, slowest = len(records), _MOST_POINTS // 10
    if n <= _MOST_POINTS:
        return np.arange(n)
    even = np.linspace(0, n - 1, _MOST_POINTS - slowest).astype(int)
    worst = np.argsort(np.nan_to_num(records.latency_s, nan=-np.inf))[-slowest:]
    return np.union1d(even, worst)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


def _symbol(meets: bool | None) -> str:
    return {True: "circle", False: "x", None: "circle-open"}[meets]


def _span(records: Records) -> str:
    lo, hi = int(records.size.min()), int(records.size.max())
    return str(lo) if lo == hi else f"{lo}–{hi}"
