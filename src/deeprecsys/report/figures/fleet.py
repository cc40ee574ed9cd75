"""Many machines: a day's load, latency and utilisation, and how many machines a plan needs."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from typing import Any

from deeprecsys.report.figures.axes import axis, from_zero
from deeprecsys.report.figures.colours import BLUE, GREEN, GREY, ORANGE, PERCENTILES
from deeprecsys.report.figures.traces import (
    Figure,
    bars,
    column,
    figure,
    ms,
    rounded,
    scatter,
    with_target,
)


def load(summary: dict[str, Any]) -> Figure | None:
    """Queries/s over the day."""
    line = _line(summary, summary["rate_qps"], "queries/s", BLUE)
    return figure([line], axis("time (s)"), from_zero("queries/s"), showlegend=False)


def latency(summary: dict[str, Any], model: dict[str, Any]) -> Figure | None:
    """One model's percentiles over the day, and its target."""
    data = [
        _line(summary, map(ms, model["over_time"][name]), name[:-2], colour)
        for name, colour in PERCENTILES
    ]
    return with_target(figure(data, axis("time (s)"), from_zero("latency (ms)")), model)


def busy(summary: dict[str, Any]) -> Figure | None:
    """Share of the time at work, by kind; its accelerators dotted."""
    data = []
    colours = cycle((BLUE, ORANGE, GREEN, GREY))
    for (name, share), colour in zip(summary["busy"].items(), colours, strict=False):
        data.append(_percent(summary, share, name, colour))
        if name in summary["devices_busy"]:
            of_devices = summary["devices_busy"][name]
            dotted = _percent(summary, of_devices, f"{name}, accelerators", colour)
            data.append(dotted | {"line": {"dash": "dot", "color": colour}})
    return figure(data, axis("time (s)"), from_zero("busy (%)"))


def _percent(summary: dict[str, Any], share: list[float], name: str, colour: str) -> Figure:
    return _line(summary, [100 * x for x in share], name, colour)


def _line(summary: dict[str, Any], y: Iterable[Any], name: str, colour: str) -> Figure:
    line = {"color": colour, "width": 2}
    return scatter("lines", name, summary["time_s"], rounded(y), line=line)


def machines_needed(summary: dict[str, Any]) -> Figure | None:
    """Bars by kind, a colour for each balancer."""
    able = [a for a in summary["answers"] if a["machines"]]
    balancers = dict.fromkeys(column(able, "balancer"))
    data = [
        _machines(balancer, [a for a in able if a["balancer"] == balancer], colour)
        for balancer, colour in zip(balancers, cycle((BLUE, GREEN, ORANGE, GREY)), strict=False)
    ]
    return figure(data, axis("kind"), axis("machines")) if data else None


def _machines(balancer: str, answers: list[dict[str, Any]], colour: str) -> Figure:
    x, y = column(answers, "kind"), column(answers, "machines")
    return bars(balancer, x, y, colour, hovertemplate="%{x}: %{y} machines")
