"""The figures of one run's records and requests."""

from __future__ import annotations

from typing import Any

from deeprecsys.core import Records, Requests
from deeprecsys.report.figures import latency, run
from deeprecsys.report.html import Section


def latencies(summary: dict[str, Any], records: Records | None, which: str) -> list[Section]:
    """`which` says whose records these are."""
    tail = f"{which} Share of the queries slower than a latency.".strip()
    spread = f"{which} Median, quartiles, and whiskers from p5 to p95.".strip()
    return [
        Section("Latency distribution", tail, latency.distribution(summary, records)),
        Section("Latency by query size", spread, latency.by_size(summary, records)),
    ]


def inside(
    summary: dict[str, Any], records: Records | None, requests: Requests | None
) -> list[Section]:
    if records is not None and requests is not None and len(requests):
        records = records[: int(requests.query.max()) + 1]  # of a simulation, the first ones
    return [
        Section(
            "Where the time goes",
            "Of queries around the median, and around p95: until the first request begins, until "
            "the last one begins, and the last one.",
            run.parts(summary, records, requests),
        ),
        Section(
            "Queue and workers over time",
            "Items that wait, and workers that execute.",
            run.load(records, requests),
        ),
    ]
