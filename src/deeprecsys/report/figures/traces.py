"""What every figure is made of: traces, the target's line, numbers that JSON can hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np

from deeprecsys.report.figures.axes import Axis
from deeprecsys.report.figures.colours import RED

Figure = dict[str, Any]


def figure(data: list[Figure], x: Axis, y: Axis, **layout: Any) -> Figure:
    """Traces over two axes."""
    common = {
        "xaxis": x,
        "yaxis": y,
        "margin": {"l": 60, "r": 20, "t": 10, "b": 50},
        # Above the picture, growing upward: rows of names must not hang into it.
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hovermode": "closest",
    }
    return {"data": data, "layout": common | layout}


def scatter(mode: str, name: str, x: Any, y: Any, **style: Any) -> Figure:
    """Points, lines or both, as Plotly's `mode` says; markup in a name is shown as it stands."""
    return {"type": "scatter", "mode": mode, "name": escape(name), "x": x, "y": y, **style}


def bars(name: str, x: Any, y: Any, colour: str, **style: Any) -> Figure:
    return {
        "type": "bar",
        "name": escape(name),
        "x": x,
        "y": y,
        "marker": {"color": colour},
        **style,
    }


def spread(y: Iterable[float], bounds: Iterable[Sequence[float | None]], **style: Any) -> Figure:
    """Error bars from values and their [lo, hi]; an open end is drawn as none."""
    up, down = [], []
    for value, (lo, hi) in zip(y, bounds, strict=True):
        up.append(max(0.0, hi - value) if hi is not None else 0.0)
        down.append(max(0.0, value - lo) if lo is not None else 0.0)
    ends = {"array": up, "arrayminus": down}
    return {"type": "data", "symmetric": False, "thickness": 1.5, **ends, **style}


def with_target(shown: Figure, summary: dict[str, Any], *, upright: bool = False) -> Figure:
    """A dashed line at the target, labelled; across the picture, or upright in it."""
    sla = summary.get("sla")
    if sla:
        at_ms = sla["latency_s"] * 1e3
        here, across = ("x", "y") if upright else ("y", "x")
        layout = shown["layout"]
        layout["shapes"] = [_target_line(at_ms, here, across)]
        log = layout[f"{here}axis"].get("type") == "log"
        place = {f"{across}ref": "paper", f"{here}ref": here, across: 1 if upright else 0,
                 here: np.log10(at_ms) if log else at_ms}  # fmt: skip
        layout["annotations"] = [_target_label(at_ms, upright) | place]
    return shown


def _target_line(at_ms: float, here: str, across: str) -> Figure:
    span = {f"{here}0": at_ms, f"{here}1": at_ms, f"{across}0": 0, f"{across}1": 1}
    line = {"color": RED, "width": 1.5, "dash": "dash"}
    return {"type": "line", f"{across}ref": "paper", f"{here}ref": here, "line": line, **span}


def _target_label(at_ms: float, upright: bool) -> Figure:
    anchors = ("left", "top" if upright else "bottom")
    return {
        "text": f"target {at_ms:g} ms", "showarrow": False, "font": {"color": RED, "size": 12},
        "xanchor": anchors[0], "yanchor": anchors[1],
    }  # fmt: skip


def rounded(values: Iterable[float]) -> list[float | None]:
    """Five digits: enough for any screen, and a small file; what is not finite is a gap."""
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in values]


def ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


def column(rows: Iterable[dict[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows]
