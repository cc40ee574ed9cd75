"""One rate under one policy: live, in simulation, or of a server under load."""

from __future__ import annotations

import math
from typing import Any

from deeprecsys.core import Records, Requests
from deeprecsys.report import text
from deeprecsys.report.figures import latency
from deeprecsys.report.html import Part, Section
from deeprecsys.report.parts.head import Fact, client, head, used
from deeprecsys.report.parts.origin import origin
from deeprecsys.report.parts.run import inside, latencies


def body(summary: dict[str, Any], records: Records | None, requests: Requests | None) -> list[Part]:
    return [
        head(summary, _verdict(summary), _facts(summary)),
        *latencies(summary, records, ""),
        *inside(summary, records, requests),
        Section("Latency over time", "Every query at its arrival.",
                latency.over_time(summary, records)),
        origin(summary),
    ]  # fmt: skip


def _verdict(summary: dict[str, Any]) -> str:
    if summary.get("answered") == 0:  # of a remote server's queries: there is nothing to tell
        return str(summary["verdict"])
    _, p95, bounds = _percentile(summary, 95)
    at = f"{text.policy(summary['policy'])} at {text.rate(summary['rate_qps'])} queries/s"
    said = f"{at}: p95 {p95} {bounds}"
    if not summary["sla"]:
        return said
    meets = summary.get("meets_sla")
    word = "undecided whether it meets" if meets is None else text.meets(meets)
    return f"{said}, {word} {text.target(summary['sla'])}"


def _facts(summary: dict[str, Any]) -> list[Fact]:
    return [
        ("throughput", f"{text.rate(summary['throughput_qps'])} queries/s"),
        *[_percentile(summary, p) for p in (50, 95, 99)],
        ("generator lag p99", f"{text.ms(summary.get('generator_lag_p99_s'))} ms"),
        *used(summary),
        *client(summary),
    ]


def _percentile(summary: dict[str, Any], p: int) -> Fact:
    found = summary.get(f"p{p}_s")
    if found is None or math.isinf(found):
        return f"p{p}", "–", "too few answers"
    return f"p{p}", f"{text.ms(found)} ms", text.interval(summary.get(f"p{p}_interval_s"), text.ms)
