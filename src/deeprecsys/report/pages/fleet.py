"""A day of many simulated machines."""

from __future__ import annotations

from typing import Any

from deeprecsys.report import text
from deeprecsys.report.figures import fleet
from deeprecsys.report.html import Part, Section
from deeprecsys.report.parts.head import Fact, head
from deeprecsys.report.parts.origin import origin


def body(summary: dict[str, Any], *_: Any) -> list[Part]:
    return [
        head(summary, summary["verdict"], _facts(summary)),
        Section("Load over the day", "Queries that arrive each second.", fleet.load(summary)),
        *[Section(f"Latency over the day, {model['name']}",
                  "Of the queries that arrive in a stretch.", fleet.latency(summary, model))
          for model in summary["models"]],
        Section("Utilisation by kind", "Share of the time at work, of cores and of accelerators.",
                fleet.busy(summary)),
        origin(summary),
    ]  # fmt: skip


def _facts(summary: dict[str, Any]) -> list[Fact]:
    machines = summary["fleet"]
    return [
        ("machines", f"{machines['machines']:,}", f"{machines['cores']:,} cores"),
        ("balancer", machines["balancer"]),
        ("queries", f"{summary['queries']:,}", f"in {machines['seconds']:g} s"),
        *map(_model, summary["models"]),
        *_busy(summary["busy"], ""),
        *_busy(summary["devices_busy"], ", accelerators"),
        ("retried", f"{summary['retried']:,}", f"{summary['unserved']:,} found no machine"),
    ]  # fmt: skip


def _busy(shares: dict[str, list[float]], of: str) -> list[Fact]:
    return [
        (f"{name}{of}", f"{max(share):.0%} busy", "at its busiest")
        for name, share in shares.items()
    ]


def _model(model: dict[str, Any]) -> Fact:
    p95, meets = text.ms(model["p95_s"]), text.meets(model["meets_sla"])
    return model["name"], f"p95 {p95} ms", meets, text.target(model["sla"])
