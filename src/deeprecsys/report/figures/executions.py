"""What each execution is worth, against how far it moves the scores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from deeprecsys.report.figures.axes import axis, from_zero
from deeprecsys.report.figures.colours import GREEN, GREY, ORANGE
from deeprecsys.report.figures.traces import Figure, figure, scatter, spread

Row = dict[str, Any]
# Where no drift at all is drawn, on an axis that has no zero.
NONE_AT = 1e-8
_NAMES = 0.8  # decades beside the last point, for its name


def against_drift(summary: dict[str, Any]) -> Figure | None:
    """Factor over exact fp32 by drift: of capacity where both were measured, else hollow, of a
    request's time. None where nothing was held against the exact scores."""
    rows = [row for row in summary.get("executions") or [] if row.get("drift")]
    exact = next((r["capacity"] for r in summary.get("executions") or []
                  if r["execution"] == "exact" and r.get("capacity")), None)  # fmt: skip
    if not rows:
        return None
    groups = {"within the guard": (GREEN, True), "beyond it": (ORANGE, False)}
    data = [
        _points(name, chosen, colour, exact)
        for name, (colour, admitted) in groups.items()
        if (chosen := [row for row in rows if row["admitted"] == admitted])
    ]
    decades = np.log10([drift_of(row) for row in rows])
    x = axis("p99.9 of |Δscore| over the spread of the scores", type="log", dtick=1,
             exponentformat="power", range=[math.floor(decades.min()) - 0.2,
                                            math.ceil(decades.max()) + _NAMES])  # fmt: skip
    return figure(data, x, from_zero("over exact fp32"), **_exact())


def _points(name: str, rows: list[Row], colour: str, exact: Row | None) -> Figure:
    found = [_factor(row, exact) for row in rows]
    y = [ratio for ratio, _, _ in found]
    return scatter(
        "markers+text", name, [drift_of(row) for row in rows], y,
        text=[row["execution"] for row in rows], textposition="middle right",
        error_y=spread(y, [bounds for _, bounds, _ in found], color=colour),
        marker={"color": colour, "size": 11,
                "symbol": ["circle" if held else "circle-open" for _, _, held in found]},
        hovertemplate="%{text}: %{y:.2f}×, drift %{x:.2g}",
    )  # fmt: skip


def drift_of(row: Row) -> float:
    found = row["drift"]
    return max(float(found["p999"]) / (float(found["spread"]) or 1.0), NONE_AT)


def _factor(row: Row, exact: Row | None) -> tuple[float, tuple[float | None, float | None], bool]:
    """The factor, its ends, and whether it is of capacities."""
    own = row.get("capacity")
    if own and exact and exact["rate_qps"] and own["rate_qps"]:
        lo, hi = (end and end / exact["rate_qps"] for end in own["interval_qps"])
        return own["rate_qps"] / exact["rate_qps"], (lo, hi), True
    return row["ratio"], tuple(row["interval"]), False


def _exact() -> dict[str, Any]:
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1,
            "line": {"color": GREY, "dash": "dot"}}  # fmt: skip
    label = {"xref": "paper", "x": 0, "y": 1, "text": "exact fp32", "showarrow": False,
             "xanchor": "left", "yanchor": "bottom"}  # fmt: skip
    return {"shapes": [line], "annotations": [label]}
