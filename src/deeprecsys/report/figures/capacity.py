"""What each policy holds: capacity by batch size, by offload threshold, and over both."""

from __future__ import annotations

import math
from itertools import cycle
from typing import Any

from deeprecsys.report import text
from deeprecsys.report.figures.axes import axis, batch_axis, from_zero
from deeprecsys.report.figures.colours import BLUE, CYCLE, GREEN, GREY, ORANGE
from deeprecsys.report.figures.traces import Figure, column, figure, scatter, spread

Trial = dict[str, Any]
# Without those of baselines and of the best.
_CURVES = [colour for colour in CYCLE if colour not in (ORANGE, GREEN)]


def by_batch(summary: dict[str, Any]) -> Figure | None:
    """Capacity against batch size, with brackets, a curve for each way to execute a request;
    baselines and the best are marked."""
    tried = [t for t in summary["trials"] if _threshold(t) is None]
    trials = [t for t in tried if _rate(t)]
    if not trials:
        return None
    data = [
        *_curves(trials),
        *_hopeless(tried),
        *_simulated(summary),
        *_baselines(trials, summary),
        *_stars(trials, summary),
    ]
    return figure(data, batch_axis(), from_zero("capacity (queries/s)"))


def _curves(trials: list[Trial]) -> list[Figure]:
    """Of what differs in more than the batch size, one each."""
    alike: dict[str, list[Trial]] = {}
    for one in sorted(trials, key=_batch):
        alike.setdefault(text.policy(one["policy"]).partition(", ")[2], []).append(one)
    if len(alike) == 1:
        return [_trace(trials, "capacity", BLUE, mode="lines+markers")]
    return [
        _trace(some, how or "exact fp32", colour, mode="lines+markers")
        for (how, some), colour in zip(sorted(alike.items()), cycle(_CURVES), strict=False)
    ]


def _hopeless(trials: list[Trial]) -> list[Figure]:
    """Those that no rate was found for: otherwise nobody would see that they were tried."""
    none = [t for t in trials if not _rate(t)]
    return [_trace(none, "no rate", GREY, symbol="x", size=7)] if none else []


def _simulated(summary: dict[str, Any]) -> list[Figure]:
    """The search in simulation that named the policies, dotted, where there was one."""
    trials = (summary.get("simulated") or {}).get("trials")
    if not trials:
        return []
    curve = _trace(trials, "simulated", GREY, mode="lines+markers", size=5)
    return [curve | {"error_y": None, "line": {"color": GREY, "dash": "dot", "width": 1.5}}]


def _baselines(trials: list[Trial], summary: dict[str, Any]) -> list[Figure]:
    return [
        _trace([t], c["name"], ORANGE, symbol="diamond", size=12)
        for c in summary.get("comparisons", [])
        for t in trials
        if t["policy"] == c["policy"] and not _is_best(t, summary)
    ]


def _stars(trials: list[Trial], summary: dict[str, Any]) -> list[Figure]:
    return [
        _trace([t], "best", GREEN, symbol="star", size=17) for t in trials if _is_best(t, summary)
    ]


def by_threshold(summary: dict[str, Any]) -> Figure | None:
    """Capacity against the offload threshold; the cores alone and the best are marked."""
    trials = [t for t in _held(summary) if _threshold(t) is not None]
    if not trials:
        return None
    waiting = [t for t in trials if not t["policy"].get("offload_backlog")]
    staying = [t for t in trials if t["policy"].get("offload_backlog")]
    data = []
    if waiting:
        name = f"batch size {_batch(trials[0])}"
        data.append(_over_thresholds(waiting, _trace(waiting, name, BLUE, mode="lines+markers")))
    if staying:
        marks = _trace(staying, "with a backlog", ORANGE, symbol="diamond")
        data.append(_over_thresholds(staying, marks))
    best = [t for t in trials if _is_best(t, summary)]
    data += [
        star | {"x": [_threshold(t)]} for t, star in zip(best, _stars(best, summary), strict=True)
    ]
    x = axis("queries of at least so many items are offloaded")
    return figure(data, x, from_zero("capacity (queries/s)"), **_cores_alone(summary))


def _over_thresholds(trials: list[Trial], trace: Figure) -> Figure:
    return trace | {
        "x": [_threshold(t) for t in trials],
        "customdata": [t["policy"].get("offload_backlog") or "none" for t in trials],
        "hovertemplate": "offload ≥ %{x}, backlog %{customdata}: %{y:.0f} queries/s",
    }


def _cores_alone(summary: dict[str, Any]) -> dict[str, Any]:
    """A dotted line at the best that needs no accelerator, for a layout."""
    rates = [_rate(t) for t in _held(summary) if _threshold(t) is None]
    if not rates:
        return {}
    y = max(rates)
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y,
            "line": {"color": GREY, "dash": "dot"}}  # fmt: skip
    label = {"xref": "paper", "x": 0, "y": y, "text": "cores alone", "showarrow": False,
             "xanchor": "left", "yanchor": "bottom"}  # fmt: skip
    return {"shapes": [line], "annotations": [label]}


def over_both(summary: dict[str, Any]) -> Figure | None:
    """Batch size across, offload threshold up, capacity as colour; "cores" offload nothing."""
    trials = _held(summary)
    if all(_threshold(t) is None for t in trials):
        return None
    trials = sorted(trials, key=lambda t: _is_best(t, summary))  # the best is drawn last
    rates = [_rate(t) for t in trials]
    marks = scatter(
        "markers", "policies", [_batch(t) for t in trials], [_row(_threshold(t)) for t in trials],
        customdata=rates, marker=_coloured(rates, [_is_best(t, summary) for t in trials]),
        hovertemplate="batch size %{x}, offload ≥ %{y}: %{customdata:.0f} queries/s",
    )  # fmt: skip
    rows = sorted({_threshold(t) for t in trials}, key=lambda t: t or math.inf)
    y = axis("offload threshold (items)", type="category", categoryorder="array",
             categoryarray=[_row(t) for t in rows])  # fmt: skip
    return figure([marks], batch_axis(), y, showlegend=False)


def _row(threshold: int | None) -> str:
    return "cores" if threshold is None else str(threshold)


def _coloured(rates: list[float], best: list[bool]) -> Figure:
    return {
        "color": rates,
        "colorscale": "Viridis",
        "showscale": True,
        "colorbar": {"title": {"text": "queries/s"}},
        "size": [20 if one else 13 for one in best],
        "symbol": ["star" if one else "square" for one in best],
    }


def _trace(
    trials: list[Trial],
    name: str,
    colour: str,
    *,
    mode: str = "markers",
    symbol: str = "circle",
    size: int = 9,
) -> Figure:
    """Trials at their batch size and capacity; an undecided one is hollow."""
    found = column(trials, "capacity")
    rates = column(found, "rate_qps")
    symbols = [symbol if c.get("decided", True) else f"{symbol}-open" for c in found]
    return scatter(
        mode, name, [_batch(t) for t in trials], rates,
        error_y=spread(rates, column(found, "interval_qps"), color=colour),
        line={"color": colour, "width": 2},
        marker={"color": colour, "size": size, "symbol": symbols},
        hovertemplate="batch size %{x}: %{y:.0f} queries/s",
    )  # fmt: skip


def _held(summary: dict[str, Any]) -> list[Trial]:
    """Trials of a rate that holds the target."""
    return [t for t in summary["trials"] if _rate(t)]


def _rate(trial: Trial) -> float:
    return float(trial["capacity"]["rate_qps"])


def _batch(trial: Trial) -> int:
    return int(trial["policy"]["batch_size"])


def _threshold(trial: Trial) -> int | None:
    return trial["policy"].get("offload_threshold") or None


def _is_best(trial: Trial, summary: dict[str, Any]) -> bool:
    best = summary.get("best") or {}
    return bool(trial["policy"] == best.get("policy"))
