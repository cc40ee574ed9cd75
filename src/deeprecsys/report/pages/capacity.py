"""The highest rate at which a server holds a target."""

from __future__ import annotations

from typing import Any

from deeprecsys.core import Records
from deeprecsys.report import text
from deeprecsys.report.figures import latency
from deeprecsys.report.html import Part, Section
from deeprecsys.report.parts.head import Fact, capacity_fact, client, head
from deeprecsys.report.parts.origin import origin
from deeprecsys.report.parts.run import latencies
from deeprecsys.report.parts.trials import trials


def body(summary: dict[str, Any], records: Records | None, *_: Any) -> list[Part]:
    facts: list[Fact] = [
        capacity_fact(summary["capacity"]),
        ("target", text.target(summary["sla"])),
        *client(summary),
    ]
    return [
        head(summary, summary["verdict"], facts),
        Section("Latency by rate", "Every run: filled meets, open undecided, cross misses.",
                latency.by_rate(summary)),
        *latencies(summary, records, "The run nearest the capacity."),
        trials(summary),
        origin(summary),
    ]  # fmt: skip
