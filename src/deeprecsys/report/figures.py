"""Figures as plain Plotly descriptions: from a summary and records, no drawing here.

Each function answers {"data": [...], "layout": {...}} or None where there is nothing to show.
Colours are the page's (`page.py` paints text and grid for light and dark).
"""

from __future__ import annotations

import math
from html import escape
from typing import Any

import numpy as np

from deeprecsys.core import Records, Requests, Status
from deeprecsys.report.timeline import busy_over_time, queue_over_time, slice_means

Figure = dict[str, Any]

# Okabe and Ito's palette: told apart by every kind of colour vision.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8a8f98"
_CYCLE = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", RED, "#F0E442")
_SYMBOLS = ("circle", "diamond", "square")
_MOST_POINTS = 2000
_SLICES = 300


def capacity_by_batch(summary: dict[str, Any]) -> Figure | None:
    """Capacity against batch size, with brackets; baselines and the best are marked."""
    trials = [t for t in _held(summary) if not t["policy"].get("offload_threshold")]
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
    predicted = (summary.get("simulated") or {}).get("trials")
    if predicted:  # the search in simulation that named the policies
        line = _trace(predicted, "simulated", GREY, lines=True, size=5)
        data.append(line | {"error_y": None, "line": {"color": GREY, "dash": "dot", "width": 1.5}})
    for trial, name in marked:
        data.append(_trace([trial], name, ORANGE, symbol="diamond", size=12))
    data += [_trace([t], "best", GREEN, symbol="star", size=17) for t in trials
             if t["policy"] == best]  # fmt: skip
    layout = _layout("batch size (items a request)", "capacity (queries/s)")
    layout["xaxis"] |= {"type": "log", "tickvals": [1 << k for k in range(21)]}
    layout["yaxis"]["rangemode"] = "tozero"
    return {"data": data, "layout": layout}


def capacity_by_threshold(summary: dict[str, Any]) -> Figure | None:
    """Capacity against the offload threshold; the cores alone and the best are marked."""
    offloading = [t for t in _held(summary) if t["policy"].get("offload_threshold")]
    if not offloading:
        return None
    best = (summary.get("best") or {}).get("policy")
    size = offloading[0]["policy"]["batch_size"]
    alone = max((t["capacity"]["rate_qps"] for t in _held(summary)
                 if not t["policy"].get("offload_threshold")), default=None)  # fmt: skip
    waiting = [t for t in offloading if not t["policy"].get("offload_backlog")]
    staying = [t for t in offloading if t["policy"].get("offload_backlog")]
    data = []
    if waiting:
        data.append(_trace(waiting, f"batch size {size}", BLUE, lines=True))
    if staying:
        data.append(_trace(staying, "with a backlog", ORANGE, symbol="diamond"))
    for curve, trials in zip(data, [waiting, staying] if waiting else [staying], strict=False):
        curve["x"] = [t["policy"]["offload_threshold"] for t in trials]
        curve["customdata"] = [t["policy"].get("offload_backlog") or "none" for t in trials]
        curve["hovertemplate"] = "offload ≥ %{x}, backlog %{customdata}: %{y:.0f} queries/s"
    for trial in offloading:
        if trial["policy"] == best:
            star = _trace([trial], "best", GREEN, symbol="star", size=17)
            data.append(star | {"x": [best["offload_threshold"]]})
    layout = _layout("queries of at least so many items are offloaded", "capacity (queries/s)")
    layout["yaxis"]["rangemode"] = "tozero"
    if alone is not None:
        layout["shapes"] = [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": alone,
                             "y1": alone, "line": {"color": GREY, "dash": "dot"}}]  # fmt: skip
        layout["annotations"] = [{"xref": "paper", "x": 1, "y": alone, "text": "cores alone",
                                  "showarrow": False, "xanchor": "right",
                                  "yanchor": "bottom"}]  # fmt: skip
    return {"data": data, "layout": layout}


def capacity_over_both(summary: dict[str, Any]) -> Figure | None:
    """Batch size across, offload threshold up, capacity as colour; "cores" offload nothing."""
    trials = _held(summary)
    if not any(t["policy"].get("offload_threshold") for t in trials):
        return None
    best = (summary.get("best") or {}).get("policy")
    trials = sorted(trials, key=lambda t: t["policy"] == best)  # the best is drawn last
    thresholds = sorted({t["policy"].get("offload_threshold") or math.inf for t in trials})
    rows = {t: "cores" if math.isinf(t) else str(t) for t in thresholds}
    rates = [t["capacity"]["rate_qps"] for t in trials]
    where = [rows[t["policy"].get("offload_threshold") or math.inf] for t in trials]
    layout = _layout("batch size (items a request)", "offload threshold (items)")
    layout["xaxis"] |= {"type": "log", "tickvals": [1 << k for k in range(21)]}
    layout["yaxis"] |= {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": list(rows.values()),
    }
    mark = {
        "type": "scatter",
        "mode": "markers",
        "name": "policies",
        "x": [t["policy"]["batch_size"] for t in trials],
        "y": where,
        "customdata": rates,
        "hovertemplate": "batch size %{x}, offload ≥ %{y}: %{customdata:.0f} queries/s",
        "marker": {
            "color": rates,
            "colorscale": "Viridis",
            "showscale": True,
            "colorbar": {"title": {"text": "queries/s"}},
            "size": [20 if t["policy"] == best else 13 for t in trials],
            "symbol": ["star" if t["policy"] == best else "square" for t in trials],
        },
    }
    return {"data": [mark], "layout": layout | {"showlegend": False}}


def fleet_load(summary: dict[str, Any]) -> Figure | None:
    """Queries/s over the day."""
    line = _line(summary["time_s"], _round(summary["rate_qps"]), "queries/s", BLUE)
    layout = _layout("time (s)", "queries/s")
    layout["yaxis"]["rangemode"] = "tozero"
    return {"data": [line], "layout": layout | {"showlegend": False}}


def fleet_latency(summary: dict[str, Any], model: dict[str, Any]) -> Figure | None:
    """One model's percentiles over the day, and its target."""
    data = [
        _line(
            summary["time_s"], _round([_ms(s) for s in model["over_time"][name]]), name[:-2], colour
        )
        for name, colour in (("p50_s", GREEN), ("p95_s", BLUE), ("p99_s", ORANGE))
    ]
    layout = _layout("time (s)", "latency (ms)")
    layout["yaxis"]["rangemode"] = "tozero"
    return {"data": data, "layout": _with_target(layout, model)}


def fleet_busy(summary: dict[str, Any]) -> Figure | None:
    """Share of the time at work, by kind."""
    data = []
    for i, (name, share) in enumerate(summary["busy"].items()):
        colour = (BLUE, ORANGE, GREEN, GREY)[i % 4]
        percent = _round([100 * x for x in share])
        data.append(_line(summary["time_s"], percent, name, colour))
        if name in summary["devices_busy"]:
            percent = _round([100 * x for x in summary["devices_busy"][name]])
            dotted = _line(summary["time_s"], percent, f"{name}, accelerators", colour)
            data.append(dotted | {"line": {"dash": "dot", "color": colour}})
    layout = _layout("time (s)", "busy (%)")
    layout["yaxis"]["rangemode"] = "tozero"
    return {"data": data, "layout": layout}


def machines_needed(summary: dict[str, Any]) -> Figure | None:
    """Bars by kind, a colour for each balancer."""
    able = [a for a in summary["answers"] if a["machines"]]
    if not able:
        return None
    data = []
    for balancer, colour in zip(
        dict.fromkeys(a["balancer"] for a in able), (BLUE, GREEN, ORANGE, GREY) * 2, strict=False
    ):
        mine = [a for a in able if a["balancer"] == balancer]
        data.append({"type": "bar", "name": balancer, "x": [a["kind"] for a in mine],
                     "y": [a["machines"] for a in mine], "marker": {"color": colour},
                     "hovertemplate": "%{x}: %{y} machines"})  # fmt: skip
    return {"data": data, "layout": _layout("kind", "machines")}


def _line(x: list[float], y: list[float | None], name: str, colour: str) -> Figure:
    return {"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y,
            "line": {"color": colour, "width": 2}}  # fmt: skip


def _held(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Trials of a rate that holds the target."""
    return [t for t in summary["trials"] if t["capacity"]["rate_qps"]]


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


def time_parts(
    summary: dict[str, Any], records: Records | None, requests: Requests | None
) -> Figure | None:
    """Mean milliseconds of each part, of the queries around two percentiles of latency."""
    if records is None or requests is None or not len(requests):
        return None
    last_s = np.full(len(records), np.nan)
    last_s[requests.query] = requests.start_s  # in order of finish: the last one stays
    parts = {
        "waiting": records.start_s - records.arrival_s,
        "executing": last_s - records.start_s,
        "last request": records.finish_s - last_s,
    }
    latency = records.latency_s
    rows = np.flatnonzero(np.isfinite(latency))
    if len(rows) < 20:
        return None
    ranked = rows[np.argsort(latency[rows])]
    p = summary["sla"]["percentile"] if summary.get("sla") else 95.0
    bars = {}
    for label, at in (("median", 50.0), (f"p{p:g}", p)):
        around = ranked[int(len(ranked) * max(at - 3, 0) / 100) :][: max(5, len(ranked) * 6 // 100)]
        size = int(np.median(records.size[around]))
        bars[f"{label} query ({size} items)"] = around
    data = [
        {
            "type": "bar", "orientation": "h", "name": name, "y": list(bars),
            "x": [_ms(float(seconds[around].mean())) for around in bars.values()],
            "marker": {"color": colour}, "hovertemplate": f"{name}: %{{x:.1f}} ms",
        }
        for colour, (name, seconds) in zip((GREY, BLUE, ORANGE), parts.items(), strict=True)
    ]  # fmt: skip
    layout = _layout("latency (ms)", "")
    layout["barmode"] = "stack"
    layout["yaxis"]["autorange"] = "reversed"
    return {"data": data, "layout": _with_target(layout, summary, vertical=True)}


def load_over_time(records: Records | None, requests: Requests | None) -> Figure | None:
    """Means over even slices of the run: items in the queue, and busy workers."""
    if records is None or requests is None or not len(requests):
        return None
    end_s = float(requests.finish_s.max())
    edges = np.linspace(0, end_s, _SLICES + 1)
    at = (edges[:-1] + edges[1:]) / 2
    queue = slice_means(*queue_over_time(records, requests), edges)
    busy = slice_means(*busy_over_time(requests), edges)
    data = [
        {
            "type": "scatter", "mode": "lines", "name": name, "x": _round(at), "y": _round(y),
            "yaxis": axis, "line": {"color": colour, "width": 1.5},
        }
        for name, y, axis, colour in (
            ("queued items", queue, "y", BLUE), ("busy workers", busy, "y2", ORANGE)
        )
    ]  # fmt: skip
    workers = int(requests.worker.max()) + 1
    layout = _layout("time (s)", "queued items")
    layout["yaxis"]["rangemode"] = "tozero"
    layout["yaxis2"] = {
        "title": {"text": "busy workers"}, "overlaying": "y", "side": "right",
        "range": [0, 1.05 * workers], "dtick": max(1, workers // 4), "showgrid": False,
        "automargin": True,
    }  # fmt: skip
    return {"data": data, "layout": layout}


def service_time(summary: dict[str, Any]) -> Figure | None:
    """Median request time by batch size, a curve a number of busy workers."""
    data = []
    for colour, busy in zip(_CYCLE, _levels(summary), strict=False):
        rows = [r for r in summary["points"] if r["busy"] == busy]
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": f"{busy} busy",
            "x": [r["batch_size"] for r in rows], "y": [_ms(r["median_s"]) for r in rows],
            "error_y": {
                "type": "data", "symmetric": False, "thickness": 1.5,
                "array": [_ms(r["p95_s"] - r["median_s"]) for r in rows],
                "arrayminus": [_ms(r["median_s"] - r["p5_s"]) for r in rows],
            },
            "line": {"color": colour}, "hovertemplate": "batch size %{x}: %{y:.3g} ms",
        })  # fmt: skip
    layout = _layout("batch size (items a request)", "time of a request (ms)")
    layout["xaxis"] |= {"type": "log", "tickvals": [1 << k for k in range(21)]}
    layout["yaxis"] |= {"type": "log", "dtick": 1}
    return {"data": data, "layout": layout} if data else None


def items_per_s(summary: dict[str, Any]) -> Figure | None:
    """Items per second of all busy workers, and what the limits allow with all of them."""
    data: list[Figure] = []
    for colour, busy in zip(_CYCLE, _levels(summary), strict=False):
        rows = [r for r in summary["points"] if r["busy"] == busy]
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": f"{busy} busy",
            "x": [r["batch_size"] for r in rows], "y": _round([r["items_per_s"] for r in rows]),
            "line": {"color": colour}, "hovertemplate": "batch size %{x}: %{y:.4g} items/s",
        })  # fmt: skip
    if not data:
        return None
    last = [r for r in summary["points"] if r["busy"] == _levels(summary)[-1]]
    bound = [r["batch_size"] * r["busy"] / (r["limits_share"] * r["median_s"]) for r in last]
    data.append({
        "type": "scatter", "mode": "lines", "name": "what the limits allow",
        "x": [r["batch_size"] for r in last], "y": _round(bound),
        "line": {"color": RED, "dash": "dash", "width": 1.5},
        "hovertemplate": "limit: %{y:.4g} items/s",
    })  # fmt: skip
    layout = _layout("batch size (items a request)", "items/s")
    layout["xaxis"] |= {"type": "log", "tickvals": [1 << k for k in range(21)]}
    layout["yaxis"]["rangemode"] = "tozero"
    return {"data": data, "layout": layout}


def operator_shares(summary: dict[str, Any]) -> Figure | None:
    """Stacked shares of the operator classes by batch size, and the paper's bar."""
    entries = summary.get("operators") or []
    if not entries:
        return None
    paper = summary.get("paper_shares") or {}
    bars = [(f"batch {e['batch_size']}", e["shares"]) for e in entries]
    if paper:
        bars.append(("the paper, batch 64", {**paper, "rest": 1 - sum(paper.values())}))
    data = [
        {
            "type": "bar", "name": name, "x": [label for label, _ in bars],
            "y": [round(100 * shares.get(name, 0.0), 2) for _, shares in bars],
            "marker": {"color": colour}, "hovertemplate": f"{name}: %{{y:.1f}} %",
        }
        for colour, name in zip((*_CYCLE[:4], GREY), entries[0]["shares"], strict=True)
        if any(shares.get(name) for _, shares in bars)
    ]  # fmt: skip
    layout = _layout("", "share of the time (%)")
    layout["barmode"] = "stack"
    return {"data": data, "layout": layout}


def roofline(summary: dict[str, Any]) -> Figure | None:
    """Points (intensity, achieved rate) under the measured roofs; None without them."""
    found = summary.get("roofline")
    if not found:
        return None
    data: list[Figure] = []
    x = [2.0**k for k in range(-6, 11)]
    for name, roof in found["roofs"].items():
        ceiling = [min(roof["flops_per_s"], at * found["stream_bytes_per_s"]) / 1e9 for at in x]
        data.append({
            "type": "scatter", "mode": "lines", "name": name, "x": x, "y": _round(ceiling),
            "line": {"color": GREY, "dash": roof.get("dash", "solid"), "width": 1.5},
        })  # fmt: skip
    random = [at * found["random_bytes_per_s"] / 1e9 for at in x if at <= 64]
    data.append({
        "type": "scatter", "mode": "lines", "name": "random rows", "x": x[: len(random)],
        "y": _round(random), "line": {"color": GREY, "dash": "dot", "width": 1.5},
    })  # fmt: skip
    for number, (name, points) in enumerate(found["models"].items()):
        lap, place = divmod(number, len(_CYCLE))
        colour, symbol = _CYCLE[place], _SYMBOLS[lap % len(_SYMBOLS)]
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": escape(name),
            "x": _round([p["flops_per_byte"] for p in points]),
            "y": _round([p["flops_per_s"] / 1e9 for p in points]),
            "text": [f"batch {p['batch_size']}" for p in points],
            "line": {"color": colour, "width": 1}, "marker": {"size": 7, "symbol": symbol},
            "hovertemplate": "%{text}: %{y:.3g} GFLOP/s at %{x:.3g} FLOP a byte",
        })  # fmt: skip
    layout = _layout("arithmetic intensity (FLOP a byte)", "GFLOP/s")
    layout["xaxis"] |= {"type": "log", "dtick": 1}
    layout["yaxis"] |= {"type": "log", "dtick": 1}
    if len(found["models"]) > 3:  # beside the picture: above it, so many names would cover it
        layout["legend"] = {"orientation": "v", "x": 1.02, "y": 1}
    return {"data": data, "layout": layout}


def _levels(summary: dict[str, Any]) -> list[int]:
    return sorted({int(row["busy"]) for row in summary["points"]})


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
