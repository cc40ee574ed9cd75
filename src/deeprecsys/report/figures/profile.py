"""What a profile measured: time of a request, and items per second, by batch size."""

from __future__ import annotations

from typing import Any

from deeprecsys.report.figures.axes import axis, batch_axis, from_zero, steps
from deeprecsys.report.figures.colours import CYCLE, RED
from deeprecsys.report.figures.traces import Figure, column, figure, ms, rounded, scatter

Point = dict[str, Any]


def service_time(summary: dict[str, Any]) -> Figure | None:
    """Median request time by batch size, a curve a number of busy workers."""
    data = [_times(points, colour) for points, colour in _curves(summary)]
    y = axis("time of a request (ms)", type="log", tickvals=steps(range(-3, 5)))
    return figure(data, batch_axis(), y) if data else None


def _times(points: list[Point], colour: str) -> Figure:
    median = [ms(p["median_s"]) for p in points]
    return _curve(points, median, colour, "%{y:.3g} ms") | {
        "error_y": {
            "type": "data", "symmetric": False, "thickness": 1.5,
            "array": [ms(p["p95_s"] - p["median_s"]) for p in points],
            "arrayminus": [ms(p["median_s"] - p["p5_s"]) for p in points],
        }
    }  # fmt: skip


def items_per_s(summary: dict[str, Any]) -> Figure | None:
    """Items per second of all busy workers, and what the limits allow with all of them."""
    curves = _curves(summary)
    if not curves:
        return None
    data = [
        _curve(points, rounded(column(points, "items_per_s")), colour, "%{y:.4g} items/s")
        for points, colour in curves
    ]
    return figure([*data, *_bound(curves[-1][0])], batch_axis(), from_zero("items/s"))


def _bound(points: list[Point]) -> list[Figure]:
    """Nothing where nobody knows what the model asks for."""
    if points[0]["limits_share"] is None:
        return []
    return [scatter(
        "lines", "what the limits allow", column(points, "batch_size"),
        rounded(map(allowed_items_per_s, points)),
        line={"color": RED, "dash": "dash", "width": 1.5},
        hovertemplate="limit: %{y:.4g} items/s",
    )]  # fmt: skip


def allowed_items_per_s(point: Point) -> float:
    """Of all its busy workers, if the machine's limits were all that bound them."""
    request_s = point["limits_share"] * point["median_s"]
    return float(point["batch_size"] * point["busy"] / request_s)


def _curve(points: list[Point], y: list[float | None], colour: str, said: str) -> Figure:
    return scatter(
        "lines+markers", f"{points[0]['busy']} busy", column(points, "batch_size"), y,
        line={"color": colour}, hovertemplate=f"batch size %{{x}}: {said}",
    )  # fmt: skip


def _curves(summary: dict[str, Any]) -> list[tuple[list[Point], str]]:
    """The points of each number of busy workers, and their colour."""
    levels = sorted({int(row["busy"]) for row in summary["points"]})
    return [
        ([row for row in summary["points"] if row["busy"] == busy], colour)
        for colour, busy in zip(CYCLE, levels, strict=False)
    ]
