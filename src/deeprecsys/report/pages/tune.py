"""A search over policies, live or in simulation."""

from __future__ import annotations

from typing import Any

from deeprecsys.core import Records, Requests
from deeprecsys.report import text
from deeprecsys.report.figures import capacity, latency
from deeprecsys.report.html import Part, Section
from deeprecsys.report.parts import executions
from deeprecsys.report.parts.head import Fact, capacity_fact, head, used
from deeprecsys.report.parts.origin import origin
from deeprecsys.report.parts.run import inside, latencies
from deeprecsys.report.parts.trials import trials


def body(summary: dict[str, Any], records: Records | None, requests: Requests | None) -> list[Part]:
    return [
        head(summary, summary.get("verdict", ""), _facts(summary), _binds(summary)),
        *_capacities(summary),
        *executions.tuned(summary),
        Section("Latency by rate",
                "The best policy's runs: filled meets, open undecided, cross misses.",
                latency.by_rate(summary)),
        *latencies(summary, records, _which(summary.get("shown"))),
        *inside(summary, records, requests),
        trials(summary),
        origin(summary),
    ]  # fmt: skip


def _which(shown: dict[str, Any] | None) -> str:
    """Of which run the pictures are, and whether it held."""
    if not shown:
        return "The best policy, near its capacity."
    word = "held" if shown["held"] else "missed"
    return (
        f"The best policy in a fresh run at {text.rate(shown['rate_qps'])} queries/s, just below "
        f"its capacity, which {word} the target."
    )


def _capacities(summary: dict[str, Any]) -> list[Part]:
    return [
        Section("Capacity by batch size",
                "Highest rate that holds the target; bars are brackets of the search, or 95 % "
                "intervals where rounds were run; hollow: undecided.", capacity.by_batch(summary)),
        Section("Capacity over both knobs",
                "Every policy that was tried; a brighter one holds more.",
                capacity.over_both(summary)),
        Section("Capacity by offload threshold", "Dotted: the best that the cores reach alone.",
                capacity.by_threshold(summary)),
    ]  # fmt: skip


def _facts(summary: dict[str, Any]) -> list[Fact]:
    always: list[Fact] = [
        ("target", text.target(summary["sla"])),
        ("method", summary.get("method", "–")),
        *used(summary),
    ]
    best = summary.get("best")
    if not best:
        return always
    return [capacity_fact(best["capacity"]), _policy(best), *_ratios(summary), *always]


def _policy(best: dict[str, Any]) -> Fact:
    """The batch size large, the rest below it."""
    batch, _, more = text.policy(best["policy"]).partition(", ")
    return "policy", batch, more or "items a request"


def _binds(summary: dict[str, Any]) -> str | None:
    return summary.get("binds") if summary.get("best") else None


def _ratios(summary: dict[str, Any]) -> list[Fact]:
    best = summary["best"]["policy"]
    return [
        (f"over {c['name']} of {c['policy']['batch_size']}", *_over(c, summary))
        for c in summary.get("comparisons", [])
        if c["policy"] != best
    ]


def _over(comparison: dict[str, Any], summary: dict[str, Any]) -> tuple[str, ...]:
    """The ratio and its interval, or why there is none."""
    if comparison.get("ratio") is None:
        rates = [t["capacity"] for t in summary["trials"] if t["policy"] == comparison["policy"]]
        none = any(not c["rate_qps"] and c.get("decided", True) for c in rates)
        return ("–", "it holds the target at no rate" if none else "not measured")
    ratio, _, rest = text.ratio(comparison).partition(" ")
    return ratio, rest
