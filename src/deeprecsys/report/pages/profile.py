"""How long a model's requests take here, and how far that is from the machine's limits."""

from __future__ import annotations

from typing import Any

from deeprecsys.report import text
from deeprecsys.report.figures import operators, profile
from deeprecsys.report.html import Part, Section
from deeprecsys.report.parts import executions
from deeprecsys.report.parts.head import Fact, head
from deeprecsys.report.parts.origin import origin


def body(summary: dict[str, Any], *_: Any) -> list[Part]:
    return [
        head(summary, *_found(summary)),
        Section("Service time by batch size", "Median time of one request, and p5 to p95, by "
                "the number of workers busy at the same time.", profile.service_time(summary)),
        Section("Items per second by batch size", "All busy workers together; dashed: what the "
                "measured limits of this machine allow, rows being uniformly random: popular ones "
                "come from the cache, so a model can pass it.", profile.items_per_s(summary)),
        *executions.profiled(summary),
        Section("Operators", "Share of a request's time, eager, one thread; beside it the paper's "
                "plot.", operators.shares(summary)),
        Section("Roofline", "Arithmetic a byte against arithmetic per second, by batch size, and "
                "of each execution at its best one; the roofs are measured.",
                operators.roofline(summary)),
        origin(summary),
    ]  # fmt: skip


def _found(summary: dict[str, Any]) -> tuple[str, list[Fact]]:
    """The verdict and its facts: of the batch size that gives the most items a second."""
    points = summary["points"]
    full = [row for row in points if row["busy"] == summary["workers"]]
    best = max(full or points, key=lambda row: float(row["items_per_s"]), default=None)
    if best is None:
        return f"{summary['model']}: nothing was measured", []
    verdict = (
        f"{summary['model']}: {text.rate(best['items_per_s'])} items/s at batch size "
        f"{best['batch_size']} with {best['busy']} workers busy"
    )
    facts: list[Fact] = [
        ("request of 1", f"{text.ms(min(r['median_s'] for r in points))} ms", "median")
    ]
    if best["limits_share"] is not None:
        # Of the rate that is shown, which slow requests lower: not of the median request.
        share = best["items_per_s"] / profile.allowed_items_per_s(best)
        facts.insert(0, ("of this machine's limits", f"{share:.0%}", "at that batch size"))
    return verdict, facts
