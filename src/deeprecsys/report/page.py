"""Which page a run's summary is shown by: the verdict first, then figures, and its origin last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deeprecsys.core import Records, Requests
from deeprecsys.report.html import Part, Section, document
from deeprecsys.report.pages import bench, capacity, fleet, paper, plan, profile, tune
from deeprecsys.report.parts.head import subject

_Body = Callable[..., list[Part]]
_BODIES: dict[str, _Body] = {
    "tune": tune.body, "bench": bench.body, "load": bench.body, "simulate": bench.body,
    "profile": profile.body, "plan": plan.body,
}  # fmt: skip
# What a summary holds tells the shapes of one verb apart.
_BY_KEY: dict[str, dict[str, _Body]] = {
    "simulate": {"trials": tune.body, "fleet": fleet.body, "paper": paper.body},
    "load": {"trials": capacity.body},
}


def page(summary: dict[str, Any], records: Records | None, requests: Requests | None = None) -> str:
    """The whole document."""
    return document(_title(summary), _body(summary, records, requests))


def glance(
    summary: dict[str, Any], records: Records | None, requests: Requests | None = None
) -> str:
    """The head and the first figure alone."""
    head, *rest = _body(summary, records, requests)
    figure = next((p for p in rest if isinstance(p, Section) and p.figure is not None), "")
    return document(_title(summary), [head, figure])


def _title(summary: dict[str, Any]) -> str:
    return f"{summary['verb']} {subject(summary)}"


def _body(
    summary: dict[str, Any], records: Records | None, requests: Requests | None
) -> list[Part]:
    """Its parts: head first, then sections and tables."""
    verb = summary["verb"]
    shapes = _BY_KEY.get(verb, {})
    make = next((body for key, body in shapes.items() if key in summary), _BODIES[verb])
    return make(summary, records, requests)
