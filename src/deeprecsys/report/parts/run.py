"""The figures of one run's records and requests."""

from __future__ import annotations

from typing import Any

import numpy as np

from deeprecsys.core import Records, Requests
from deeprecsys.report.figures import latency, run
from deeprecsys.report.html import Section


def latencies(summary: dict[str, Any], records: Records | None, which: str) -> list[Section]:
    """`which` says whose records these are."""
    lost = _unanswered(records)
    counted = f" {lost:,} of {len(records or ()):,} had no answer: slower than any." if lost else ""
    tail = f"{which} Share of the queries slower than a latency.{counted}".strip()
    of = " Of those that were answered." if lost else ""
    spread = f"{which} Median, quartiles, and whiskers from p5 to p95.{of}".strip()
    return [
        Section("Latency distribution", tail, latency.distribution(summary, records)),
        Section("Latency by query size", spread, latency.by_size(summary, records)),
    ]


def _unanswered(records: Records | None) -> int:
    return 0 if records is None else int((~np.isfinite(records.latency_s)).sum())


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
